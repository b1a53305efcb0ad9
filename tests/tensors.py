"""Tensors that several tests start from."""

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1), the same for the same seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def constant_flow(x: float, y: float, size: tuple[int, int] = (8, 8)) -> Tensor:
    """(1, 2, *size), the same displacement everywhere."""
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).repeat(1, 1, *size)
