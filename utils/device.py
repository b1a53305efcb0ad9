"""Choice of the device by name."""

import torch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`.

    Args:
        name: auto, cpu, cuda or mps; auto takes the first accelerator that is there.
        local_rank: number of this process on its machine, which picks among several GPUs.

    Raises:
        ValueError: no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device: expected one that is here ({here}), found {name}")
    return torch.device("cuda", local_rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)
