"""What a training run needs to go on exactly where it broke off, as tensors for `utils.checkpoint`."""

import torch
from torch import Tensor, nn

from utils.files import InputError

_RAW, _OPTIMIZER = "raw.", "optimizer."


def pack_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights as the optimizer left them (the checkpoint's own are averaged ones) and the optimizer's moments."""
    state = {_RAW + name: value for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        state |= {f"{_OPTIMIZER}{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    return state


def unpack_state(state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `pack_state` took.

    Raises:
        InputError: the state belongs to another model.
    """
    raw = {name.removeprefix(_RAW): value for name, value in state.items() if name.startswith(_RAW)}
    try:
        model.load_state_dict(raw)
    except RuntimeError as error:
        raise InputError(f"training state: {' '.join(str(error).split())[:300]}") from error
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split(".")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
