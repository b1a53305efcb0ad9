"""Optimiser: Muon for the kernels of convolutions and linear maps, AdamW for all else."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of matrices near 1, by Newton-Schulz iteration (Jordan et al. 2024).

    It computes in the type of the matrix; torch.optim.Muon always takes bfloat16, which processors without it emulate
    at a tenth of the speed.

    Args:
        matrix: (B, m, n), none all zero.
        steps: 5 bring singular values from a thousandth of the norm up to between 0.7 and 1.2.

    Returns:
        (B, m, n).
    """
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        # Products and sums in one kernel each.
        square = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, square, x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Momentum whose step has all directions equally long, for tensors of two or more dimensions; AdamW for the others.

    A kernel (outputs, inputs, h, w) is taken as the matrix (outputs, inputs h w), that of a convolution in groups as
    one such matrix a group; a linear map as its own. The step is scaled to the size that AdamW's steps have, so that
    one learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training").

    On an accelerator the matrices of one height go through each product together, as every kernel costs a launch. On a
    CPU the products of single matrices stay in its cache and are faster.

    Args:
        module: whose parameters to optimise.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.
        momentum: decay of the mean gradient.
        dtype: in which directions are made equally long; bfloat16 is exact enough, and fast where the processor has it.
        batched: whether matrices of one height go together; None decides by the device.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float = 1e-3,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        batched: bool | None = None,
    ) -> None:
        device = next(module.parameters()).device
        super().__init__(
            module.parameters(), lr, weight_decay=weight_decay, fused=True if device.type == "cuda" else None
        )
        self.groups = {layer.weight: layer.groups for layer in module.modules() if isinstance(layer, nn.Conv2d)}
        self.momentum, self.dtype = momentum, dtype
        self.batched = device.type != "cpu" if batched is None else batched

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make one step; the gradients of kernels are used up. `closure` is there for the signature only."""
        for group in self.param_groups:
            kernels = [p for p in group["params"] if p.ndim > 1 and p.grad is not None]
            for kernel in kernels:
                if not self.state[kernel]:
                    # AdamW looks for a count in the state of every tensor when a state is loaded; here it stays 0.
                    self.state[kernel] |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
            for part in [kernels] if self.batched else [[kernel] for kernel in kernels]:
                self._step_kernels(part, group["lr"], group["weight_decay"])
            for kernel in kernels:
                kernel.grad = None  # AdamW passes over it
        super().step()

    def _step_kernels(self, kernels: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        if not kernels:
            return
        gradients = [kernel.grad for kernel in kernels]
        means = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        # Nesterov: the mean as it will be if the gradient stays.
        steps = torch._foreach_lerp(gradients, means, self.momentum)
        directions = self._directions(kernels, steps)
        torch._foreach_mul_(kernels, 1 - lr * weight_decay)
        torch._foreach_add_(kernels, directions, alpha=-lr)

    def _directions(self, kernels: list[nn.Parameter], steps: list[Tensor]) -> list[Tensor]:
        """Compute the step of each kernel: all directions equally long, in the size of AdamW's steps."""
        by_height: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for place, (kernel, step) in enumerate(zip(kernels, steps, strict=True)):
            matrices = step.flatten(1).to(self.dtype).unflatten(0, (self.groups.get(kernel, 1), -1))
            matrices = _wide(matrices)
            by_height[matrices.shape[1]].append((place, matrices))
        directions = list(steps)
        for entries in by_height.values():
            # Columns of zeros stay zeros and change nothing.
            width = max(matrices.shape[2] for _, matrices in entries)
            together = [F.pad(matrices, (0, width - matrices.shape[2])) for _, matrices in entries]
            parts = orthogonalise(torch.cat(together)).split([len(matrices) for matrices in together])
            for (place, matrices), part in zip(entries, parts, strict=True):
                kernel, part = kernels[place], part[..., : matrices.shape[2]]
                tall = kernel[0].numel() < len(kernel) // self.groups.get(kernel, 1)
                direction = (part.mT if tall else part).reshape(kernel.shape).to(kernel.dtype)
                directions[place] = direction * (0.2 * matrices.shape[2] ** 0.5)
        return directions


def _wide(matrices: Tensor) -> Tensor:
    """Transpose matrices (B, m, n) so that the longer side is the rows."""
    return matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
