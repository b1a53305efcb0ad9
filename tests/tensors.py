"""Tensors that several tests start from."""

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1), the same for the same seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
