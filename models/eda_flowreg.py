"""EDA-FlowReg: entropy-difference-aware estimation of the displacement field, coarse to fine.

One pixel of an MRI cannot be matched with one pixel of a CT. A neighbourhood as wide as the deformation is smooth can.
So matching scores are averaged over a Gaussian window with the reliability R as weight. A U-shaped network turns the
averaged scores into a smooth increment.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import GaussianBlur, UNet, zero_conv
from utils.filters import resize
from utils.geometry.warp import compose, warp

CELL = 8  # px between the grid points where the flow is estimated
STEP = 4  # px between matching candidates
TILE = 32  # cells of a row that are matched at once: the work grows with the square of a row


class FlowStep(NamedTuple):
    """Result of one scale. Both fields are in px of the full image, on the grid of cells.

    Attributes:
        flow: (B, 2, h, w), the displacement field after this scale.
        before: (B, 2, h, w), the field that this scale started from. The scores refer to the difference.
        scores: log-scores (B, K, h, w) of the candidates for each window, wide first.
        radius: largest candidate displacement in steps of 4 px.
    """

    flow: Tensor
    before: Tensor
    scores: list[Tensor]
    radius: int


def correlate(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """Compute dot products of fixed features with moving features displaced by steps of half a cell.

    Args:
        fixed, moving: (B, 4, C, h, w), see `models.encoder.Encoders`.
        radius: largest displacement, in half cells (4 px).

    Returns:
        (B, (2 radius + 1)^2, h, w), for displacements row by row from the top left; beyond the border features count
        as zero.
    """
    batch, _, channels, height, width = fixed.shape
    count = 2 * radius + 1
    fixed = fixed[:, 0].permute(0, 2, 3, 1)
    # The four phases of each cell become a grid of twice the resolution.
    moving = moving.unflatten(1, (2, 2)).permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * height, 2 * width)
    moving = F.pad(moving, (radius,) * 4)
    tiles = []
    for left in range(0, width, TILE):
        cells = fixed[:, :, left : left + TILE]
        tile = cells.shape[2]
        span = 2 * tile + 2 * radius
        # Every cell of a row against every point of the displaced rows. Only a diagonal band is used, but one large
        # product is far cheaper than many small ones.
        points = moving[..., 2 * left : 2 * left + span].contiguous()
        rows = points.unfold(2, count, 2).permute(0, 2, 1, 4, 3).flatten(3)
        product = (cells @ rows).contiguous()
        across = count * span
        # The next steps work on the whole map of each candidate.
        strides = (height * tile * across, span, 1, tile * across, across + 2)
        tiles.append(product.as_strided((batch, count, count, height, tile), strides).flatten(1, 2))
    return torch.cat(tiles, dim=3)


def expected_displacement(scores: Tensor, radius: int) -> Tensor:
    """Average the candidates' displacements with the softmax of their scores as weights (soft-argmax).

    Sums, as bfloat16 would round a product with a matrix under autocast to 0.03 px.

    Args:
        scores: (B, (2 radius + 1)^2, h, w), in the order of `correlate`.
        radius: of the candidates.

    Returns:
        (B, 2, h, w), px.
    """
    count = 2 * radius + 1
    shares = torch.softmax(scores.float(), dim=1).unflatten(1, (count, count))
    axis = STEP * torch.arange(-radius, radius + 1, dtype=torch.float32, device=scores.device).view(-1, 1, 1)
    x, y = (axis * shares.sum(dim=1)).sum(dim=1), (axis * shares.sum(dim=2)).sum(dim=1)
    return torch.stack((x, y), dim=1)


def soft_gate(alpha: Tensor, gate: Tensor) -> Tensor:
    """Return the share of an increment that passes a gate W (B, 1, h, w) in [0, 1].

    It is a + (1 - a) W, with a = sigmoid(alpha) learned, and never 0.
    """
    share = torch.sigmoid(alpha)
    return share + (1 - share) * gate


def add_increment(flow: Tensor, increment: Tensor) -> Tensor:
    """Compose a flow with an increment after it; all (B, 2, h, w) on the grid of cells, px."""
    return CELL * compose(flow / CELL, increment / CELL)


def warp_phases(features: Tensor, flow: Tensor) -> Tensor:
    """Warp features (B, 4, C, h, w) with a flow (B, 2, h, w) in px of the full image."""
    batch, _, channels, height, width = features.shape
    # A point between two cells' centres moves by the mean of both.
    flow = F.pad(flow, (0, 1, 0, 1), mode="replicate")
    flow = torch.stack((flow[..., :-1], (flow[..., :-1] + flow[..., 1:]) / 2), dim=-1).flatten(-2)
    flow = torch.stack((flow[:, :, :-1], (flow[:, :, :-1] + flow[:, :, 1:]) / 2), dim=3).flatten(2, 3)
    grid = F.pixel_shuffle(features.transpose(1, 2).flatten(1, 2), 2)
    warped = F.pixel_unshuffle(warp(grid, flow / STEP), 2)
    return warped.view(batch, channels, 4, height, width).transpose(1, 2)


class Scale(NamedTuple):
    """Settings of one scale of EDA-FlowReg.

    Attributes:
        radius: largest candidate displacement in steps of 4 px.
        windows: sigmas of the aggregation in px, wide first. The wide one is learned first and guides the narrow one,
            which moves the flow. None compares each cell by itself (ablation).
        stride: cells between the grid points where the increment is refined.
        widths: channels of the refining network, at the stride's resolution and at halves of it.
    """

    radius: int
    windows: tuple[float | None, ...]
    stride: int
    widths: tuple[int, ...]


class FlowScale(nn.Module):
    """One scale: matching with reliability-weighted aggregation, then a gated increment.

    Args:
        features: channels of one feature vector.
        scale: settings.
    """

    def __init__(self, features: int, scale: Scale) -> None:
        super().__init__()
        self.radius, self.stride = scale.radius, scale.stride
        self.blurs = nn.ModuleList(GaussianBlur(w / CELL) if w else nn.Identity() for w in scale.windows)
        self.smooth = GaussianBlur(1.0)
        self.log_temperature = nn.Parameter(torch.full((len(scale.windows),), 30.0).log())
        self.alpha = nn.Parameter(torch.tensor(0.0))
        inputs = (1 + len(scale.windows)) * (2 * scale.radius + 1) ** 2 + 2 * features + 2 * len(scale.windows) + 4
        self.squeeze = nn.Linear(inputs, scale.widths[0])
        self.refine = UNet(scale.widths)
        self.head = zero_conv(scale.widths[0], 2)

    def forward(self, fixed: Tensor, moving: Tensor, reliability: Tensor, gate: Tensor, flow: Tensor) -> FlowStep:
        """Add one increment to a flow.

        Args:
            fixed, moving: features (B, 4, C, h, w).
            reliability, gate: R and W, (B, 1, h, w).
            flow: (B, 2, h, w), px, found so far; `moving` is warped with it.
        """
        raw = correlate(fixed, moving, self.radius)
        weighted = torch.cat((reliability * raw, reliability), dim=1)
        scores = []
        for blur, temperature in zip(self.blurs, self.log_temperature.exp(), strict=True):
            score, weight = blur(weighted).float().split((raw.shape[1], 1), dim=1)
            scores.append(score * (temperature / weight.clamp_min(1e-4)))
        matched = [expected_displacement(s, self.radius) for s in scores]
        gate = self.smooth(gate)
        evidence = (
            raw,
            *(s - s.mean(dim=1, keepdim=True) for s in scores),
            fixed[:, 0],
            moving[:, 0],
            *(m / CELL for m in matched),
            flow / CELL,
            reliability,
            gate,
        )
        # A 1 x 1 convolution as a linear layer: its result needs no copy for the next convolution.
        x = self.squeeze(torch.cat(evidence, dim=1).flatten(2).transpose(1, 2))
        x = F.avg_pool2d(x.transpose(1, 2).unflatten(2, flow.shape[2:]), self.stride)
        residual = STEP * resize(self.head(self.refine(x)).float(), flow.shape[2:])
        increment = soft_gate(self.alpha, gate) * matched[-1] + residual
        return FlowStep(add_increment(flow, increment), flow, scores, self.radius)


class EDAFlowReg(nn.Module):
    """Estimate the flow coarse to fine. Each scale warps the moving features with the flow so far.

    Args:
        features: channels of one feature vector.
        scales: settings of each scale, coarse first.
    """

    def __init__(self, features: int, scales: tuple[Scale, ...]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(FlowScale(features, scale) for scale in scales)

    def forward(self, fixed: Tensor, moving: Tensor, reliability: Tensor, gate: Tensor) -> list[FlowStep]:
        """Return a `FlowStep` for each scale, coarse to fine.

        Args:
            fixed, moving: features (B, 4, C, h, w).
            reliability: R, (B, 1, h, w).
            gate: W, (B, 1, H, W) of any size.
        """
        flow = fixed.new_zeros(fixed.shape[0], 2, *fixed.shape[3:], dtype=torch.float32)
        gate = resize(gate, flow.shape[2:])
        steps = []
        for scale in self.scales:
            warped = warp_phases(moving, flow) if steps else moving
            steps.append(scale(fixed, warped, reliability, gate, flow))
            flow = steps[-1].flow
        return steps
