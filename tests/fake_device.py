"""A device that is not the CPU's, without having one: what a GPU would be asked to do is counted.

FakeTensorMode computes shapes, types and devices only, and refuses to mix devices, so that a forgotten `.to(device)` is
an error. "meta" stands for the accelerator, as a CPU build of PyTorch has no device guard for "cuda".
"""

import collections
import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parents[1]) + os.sep
DEVICE = torch.device("meta")
VIEWS = (
    "view", "detach", "expand", "slice", "select", "unsqueeze", "squeeze", "permute", "transpose", "t.", "split",
    "chunk", "unbind", "as_strided", "alias", "_unsafe_view", "unfold", "empty", "prim",
)  # fmt: skip
"""Beginnings of the names of operators that launch no kernel."""
READS = ("_local_scalar_dense", "is_nonzero", "equal.", "nonzero")
"""Beginnings of the names of operators whose result the host waits for."""


class Watch(TorchDispatchMode):
    """Counts kernels, copies between the devices and reads by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        self.operators[name] += 1
        target = kwargs.get("device")
        copied = name.startswith("_to_copy") and target is not None
        moved = copied and args[0].device.type != torch.device(target).type
        if moved or (name.startswith(READS) and args[0].device.type == DEVICE.type):
            self.waits[f"{name} at {caller()}"] += 1
        return func(*args, **kwargs)

    @property
    def kernels(self) -> int:
        """Number of operators that do some work."""
        return sum(count for name, count in self.operators.items() if not name.startswith(VIEWS))


def caller() -> str:
    """The line of the project that is at work."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(ROOT) and f.filename != __file__]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "elsewhere"


@contextlib.contextmanager
def fake_device() -> Iterator[FakeTensorMode]:
    """A block in which tensors have no values, and `DEVICE` does what CUDA does where the two differ.

    Beside this, `torch.Tensor.new_tensor` and `torch.tensor` make a copy from the host, which `Watch` counts.
    """
    with (
        patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True),
        patch("torch.optim.adam._default_to_fused_or_foreach", lambda *_, **__: (False, True)),
        # Counts of AdamW's steps, which are on the CPU here and on the device in its fused form.
        patch("torch.optim.adam._get_value", lambda _: 1.0),
        patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()),
        patch.object(torch.Tensor, "new_tensor", _new_tensor),
        FakeTensorMode(allow_non_fake_inputs=False) as mode,
    ):
        yield mode


def _new_tensor(self: Tensor, data: object, dtype: torch.dtype | None = None, device: object = None) -> Tensor:
    host = torch.empty(np.shape(data), dtype=dtype or self.dtype)
    return host.to(device or self.device)


def without_values(model: nn.Module, device: torch.device = DEVICE) -> nn.Module:
    """The network on a device with weights that have no values; to be called inside a FakeTensorMode."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, device=device))
        for name, value in module._buffers.items():
            module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return model
