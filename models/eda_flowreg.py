"""EDA-FlowReg: entropy-difference-aware estimation of the displacement field, coarse to fine.

One pixel of an MRI cannot be matched with one pixel of a CT; a neighbourhood as wide as the deformation is smooth
can. So matching scores are averaged over a Gaussian window with the reliability R as weight before they are compared,
and a U-shaped network turns the evidence into a smooth increment.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import GaussianBlur, UNet, conv
from utils.maps import resize

STEP = 4  # px between matching candidates: one cell of the features


class FlowStep(NamedTuple):
    """One scale's result: flow (B, 2, h, w) in px of the full image and log-scores (B, K, h, w) of the candidates."""

    flow: Tensor
    scores: Tensor


def candidates(radius: int) -> Tensor:
    """Displacements (K, 2) in px, (x, y), that the matching compares: (2 radius + 1)^2 of them, row by row."""
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32) * STEP
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def correlate(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """Dot products of fixed features with displaced moving features, at half the features' resolution.

    Args:
        fixed, moving: (B, C, h, w) with even h and w.
        radius: largest displacement, in cells of the features.

    Returns:
        (B, K, h/2, w/2), candidates in the order of `candidates`.
    """
    count, span = 2 * radius + 1, moving.shape[3] + 2 * radius
    fixed = F.avg_pool2d(fixed, 2).permute(0, 2, 3, 1).contiguous()
    # Both sides are read at the corner shared by four cells, so a displacement of k cells is exactly k cells.
    moving = F.avg_pool2d(F.pad(moving, (radius, radius + 1, radius, radius + 1)), 2, stride=1)
    moving = moving.permute(0, 2, 1, 3).contiguous()
    batch, height, width, _ = fixed.shape
    rows = []
    for dy in range(count):
        # Every pixel of a row against every pixel of the displaced row; only a diagonal band is wanted. Padding each
        # row of products by two cells turns the band into a column block.
        product = fixed @ moving[:, dy : dy + 2 * height : 2]
        product = F.pad(product.flatten(2), (0, 2 * width)).view(batch, height, width, span + 2)
        rows.append(product[..., :count])
    return torch.cat(rows, dim=-1).permute(0, 3, 1, 2).contiguous()


class EDAFlowReg(nn.Module):
    """Matching under reliability-weighted aggregation, and a gated increment.

    Args:
        features: channels of the features.
        widths: channels of the refining network at 1/8, 1/16, ... of the resolution.
        radius: largest candidate displacement in cells of 4 px.
        window: sigma of the aggregation, px.
        aggregate: False compares each pixel by itself (ablation).
        gate: False sets the gate W to 1 (ablation).
    """

    def __init__(
        self,
        features: int,
        widths: tuple[int, ...],
        radius: int = 4,
        window: float = 12.0,
        aggregate: bool = True,
        gate: bool = True,
    ) -> None:
        super().__init__()
        self.radius, self.aggregate, self.gate = radius, aggregate, gate
        self.blur = GaussianBlur(window / 8)
        self.smooth = GaussianBlur(1.0)
        self.log_temperature = nn.Parameter(torch.log(torch.tensor(30.0)))
        self.alpha = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("candidates", candidates(radius), persistent=False)
        count = len(self.candidates)
        self.squeeze = conv(2 * count + 2 * features + 2 + 2, widths[0], kernel=1)
        self.refine = UNet(widths[0], widths)
        self.head = conv(widths[0], 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, fixed: Tensor, moving: Tensor, reliability: Tensor, gate: Tensor) -> FlowStep:
        """Features (B, C, h, w), reliability (B, 1, h/2, w/2), gate W (B, 1, ...) -> `FlowStep` at h/2 x w/2."""
        raw = correlate(fixed, moving, self.radius)
        scores = self.blur(reliability * raw) / self.blur(reliability).clamp_min(1e-4) if self.aggregate else raw
        scores = scores * self.log_temperature.exp()
        probability = torch.softmax(scores, dim=1)
        matched = torch.einsum("bkhw,kc->bchw", probability, self.candidates)
        w = self.smooth(resize(gate, raw.shape[2:])) if self.gate else torch.ones_like(reliability)
        alpha = torch.sigmoid(self.alpha)
        evidence = (
            raw,
            scores - scores.mean(dim=1, keepdim=True),
            F.avg_pool2d(fixed, 2),
            F.avg_pool2d(moving, 2),
            matched / 8,
            reliability,
            w,
        )
        x = torch.cat(evidence, dim=1).contiguous(memory_format=torch.channels_last)
        residual = self.head(self.refine(self.squeeze(x))).float()
        return FlowStep((alpha + (1 - alpha) * w) * matched + 4 * residual, scores)
