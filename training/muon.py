"""Optimiser: Muon for the kernels of convolutions and linear maps, AdamW for all else."""

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of a matrix near 1, by Newton-Schulz iteration (Jordan et al. 2024).

    It computes in the type of the matrix; torch.optim.Muon always takes bfloat16, which processors without it emulate
    at a tenth of the speed.

    Args:
        matrix: (..., m, n), none all zero.
        steps: 5 bring singular values from a thousandth of the norm up to between 0.7 and 1.2.

    Returns:
        (..., m, n).
    """
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Momentum whose step has all directions equally long, for tensors of two or more dimensions; AdamW for the others.

    A kernel (outputs, inputs, h, w) is taken as the matrix (outputs, inputs h w), that of a convolution in groups as
    one such matrix a group; a linear map as its own. The step is scaled to the size that AdamW's steps have, so that
    one learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training").

    Args:
        module: whose parameters to optimise.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.
        momentum: decay of the mean gradient.
        dtype: in which directions are made equally long; bfloat16 is exact enough, and fast where the processor has it.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float = 1e-3,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(module.parameters(), lr, weight_decay=weight_decay)
        self.groups = {layer.weight: layer.groups for layer in module.modules() if isinstance(layer, nn.Conv2d)}
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; the gradients of kernels are used up. `closure` is there for the signature and is not called."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim > 1 and kernel.grad is not None:
                    self._step_kernel(kernel, group["lr"], group["weight_decay"])
                    kernel.grad = None  # AdamW passes over it
        super().step()

    def _step_kernel(self, kernel: nn.Parameter, lr: float, weight_decay: float) -> None:
        state = self.state[kernel]
        if not state:
            # AdamW looks for the count in the state of every tensor when a state is loaded.
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
        state["step"] += 1
        mean = state["momentum"]
        mean.lerp_(kernel.grad, 1 - self.momentum)
        # Nesterov: the mean as it will be if the gradient stays.
        step = kernel.grad.lerp(mean, self.momentum).flatten(1).to(self.dtype)
        direction = orthogonalise(step.unflatten(0, (self.groups.get(kernel, 1), -1)))
        scale = 0.2 * max(direction.shape[1:]) ** 0.5
        kernel.mul_(1 - lr * weight_decay).add_(direction.view_as(kernel).to(kernel.dtype), alpha=-lr * scale)
