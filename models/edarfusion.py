"""EDARFusion: align a moving image with a fixed one, then fuse them, and show why."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.consensus import held_back, mean_spread, spread_of
from models.eda_flowreg import CELL, EDAFlowReg, FlowStep, Scale
from models.encoder import Encoders, EntropyAtQuarter
from models.expected_error import ExpectedError, signs_of_error
from models.frg_prereg import FRGPreReg, unit_length
from models.fusion import FlowGuidedFusion, Fusion
from models.layers import to_device
from models.refinement import Refinement
from utils.filters import Padder, gradient_magnitude, halved, resize
from utils.geometry.foreground import foreground, masked_means
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import MIN_SIDE
from utils.maps import entropy_difference, gate

TRAINED_SIDE = 256  # px; heads of that scale are what the registration has learned

SECOND_PASS = (2.0, 6.0)
"""Mean displacement found so far, px, from which a further pass counts, and at which it counts in full.

Chosen on validation pairs (experiments 70 and 74 in docs/experiments.md)."""

PRESETS = {
    "tiny": {
        "depth": 2,
        "encoder": (32, 48, 64),
        "features": 16,
        "scales": (Scale(4, (32.0, 12.0), 2, (32, 48)), Scale(2, (8.0,), 1, (24, 32))),
        "refinement": (32, 48),
        "refinement_stride": 1,
        "fusion": 8,
    },
    "fast": {
        "depth": 1,
        "encoder": (32, 64),
        "features": 24,
        "scales": (Scale(4, (32.0, 12.0), 2, (32, 48)),),
        "refinement": (32, 48),
        "refinement_stride": 2,
        "fusion": 16,
    },
    "small": {
        "depth": 2,
        "encoder": (64, 96, 128),
        "features": 32,
        "scales": (Scale(4, (32.0, 12.0), 2, (64, 96)),),
        "refinement": (64, 96, 128),
        "refinement_stride": 1,
        "fusion": 16,
    },
    "base": {
        "depth": 2,
        "encoder": (96, 128, 192),
        "features": 48,
        # Experiments 12 and 17: a second scale brings nothing. 23: a refinement at a quarter of the resolution does.
        "scales": (Scale(4, (32.0, 12.0), 2, (96, 128)),),
        "refinement": (160, 224, 288),
        "refinement_stride": 1,
        "fusion": 32,
    },
}
"""Sizes of the network; `depth` is that of the residual blocks of encoders, refinement and fusion."""


class Registration(NamedTuple):
    """What the registration finds, for images (B, 1, H, W); maps are (B, 1, h, w) at a lower resolution.

    Attributes:
        flow: (B, 2, H, W), px: `warp(moving, flow)` lies on the fixed image.
        inverse_flow: (B, 2, H, W), px: `warp(fixed, inverse_flow)` lies on the moving image; without gradient.
        steps: a `FlowStep` a scale, coarse to fine. Of a registration both ways the batch entries B.. are the inverse
            direction; of an averaged one the entries are pair and mirror image, then the inverse direction of both.
        refined: (B, 2, h, w), px, on the grid of cells: `flow` before it was enlarged.
        spread: mean square distance of the matches that `flow` is the mean of, px^2; 0 for a single one.
        reliability: R of FRG-PreReg, in [0, 1].
        gate: W, in [0, 1].
        entropy_fixed, entropy_moving: local entropy, bits.
    """

    flow: Tensor
    inverse_flow: Tensor
    steps: list[FlowStep]
    refined: Tensor
    spread: Tensor
    reliability: Tensor
    gate: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor


class _Matched(NamedTuple):
    """What precedes the refinement: both images at half the resolution, (B, 2, H / 2, W / 2), and the fixed one's edges
    there; the rest as in `Registration`.
    """

    half: Tensor
    fixed_edges: Tensor
    steps: list[FlowStep]
    spread: Tensor
    reliability: Tensor
    gate: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor


class Output(NamedTuple):
    """Result of `EDARFusion`; every map is (B, 1, H, W), flows are (B, 2, H, W) in px.

    Attributes:
        fused: in [0, 1].
        aligned: the moving image warped with `flow`, in [0, 1].
        flow: `aligned(p) = moving(p + flow(p))`.
        inverse_flow: the way back, from the fixed to the moving image.
        entropy_fixed, entropy_moving: local entropy in bits; that of the moving image before alignment.
        entropy_difference: |entropy_fixed - entropy_moving|, bits.
        gate: W in [0, 1], how far the entropies let an increment of the flow pass.
        reliability: R in [0, 1], how much a place speaks in the matching.
        consistency: C in [0, 1], where edges of both images may be joined.
        disagreement: (B,), root mean square in the head of how far the estimates that the flow is the mean of lie from
            it, px at the scale of the training (`TRAINED_SIDE`): the larger, the larger the endpoint error is likely
            to be. 0 without averaging. Of a registration that began anew (`inference.multistart`) it is that of
            its first start.
        expected_error: the endpoint error that is to be expected at each place, px of the image. None where the
            network has no such part, and without averaging.
    """

    fused: Tensor
    aligned: Tensor
    flow: Tensor
    inverse_flow: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor
    entropy_difference: Tensor
    gate: Tensor
    reliability: Tensor
    consistency: Tensor
    disagreement: Tensor
    expected_error: Tensor | None = None


class EDARFusion(nn.Module):
    """The whole network.

    Args:
        preset: name of a size in `PRESETS`.
        entropy: False withholds the local entropy from the features (ablation).
        prereg: False leaves all of FRG-PreReg out: features are matched as the encoders give them, R is 1 (ablation).
        reliability: False sets R to 1 (ablation).
        aggregation: False matches each cell by itself (ablation).
        use_gate: False sets W to 1 (ablation).
        refinement: False leaves the last increment out (ablation).
        expected_error: True adds the part that expects errors; `tools.expected_error` trains it.

    Raises:
        ValueError: for an unknown preset.
    """

    def __init__(
        self,
        preset: str = "small",
        entropy: bool = True,
        prereg: bool = True,
        reliability: bool = True,
        aggregation: bool = True,
        use_gate: bool = True,
        refinement: bool = True,
        expected_error: bool = False,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
        size = PRESETS[preset]
        self.arguments = {
            "preset": preset,
            "entropy": entropy,
            "prereg": prereg,
            "reliability": reliability,
            "aggregation": aggregation,
            "use_gate": use_gate,
            "refinement": refinement,
            "expected_error": expected_error,
        }
        levels = (1, size["encoder"]), (1, size["refinement"]), *((s.stride, s.widths) for s in size["scales"])
        self.stride = CELL * max(stride * 2 ** (len(widths) - 1) for stride, widths in levels)
        self.entropy_at_quarter = EntropyAtQuarter()
        self.encoders = Encoders(size["encoder"], size["features"], size["depth"], entropy)
        self.frg_prereg = FRGPreReg(size["features"], reliability) if prereg else None
        scales = size["scales"] if aggregation else tuple(s._replace(windows=(None,)) for s in size["scales"])
        self.eda_flowreg = EDAFlowReg(size["features"], scales)
        arguments = size["refinement"], size["depth"], size["refinement_stride"]
        self.refinement = Refinement(*arguments) if refinement else None
        self.fusion = FlowGuidedFusion(size["fusion"], size["depth"])
        self.expected_error = ExpectedError() if expected_error else None
        to_device(self, "cpu")

    def register(self, fixed: Tensor, moving: Tensor, both: bool = False) -> Registration:
        """Estimate the displacement field and its inverse.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1]; H and W multiples of `stride`.
            both: also match in the inverse direction, with the same weights, so that training can hold the two
                against each other.
        """
        matched = self._match(fixed, moving, both)
        return self._finish(self._refine(fixed, moving, matched, matched.steps[-1].flow[: len(fixed)]), matched)

    def register_averaged(self, fixed: Tensor, moving: Tensor) -> Registration:
        """As `register`, for the mean of four matches: both directions, of the pair and of its mirror image."""
        count = len(fixed)
        fixed, moving = torch.cat((fixed, fixed.flip(3))), torch.cat((moving, moving.flip(3)))
        matched = self._match(fixed, moving, both=True)
        there, back = (matched.steps[-1].flow / CELL).chunk(2)
        directions = CELL * torch.stack((there, invert(back)))
        estimates = torch.cat((directions[:, :count], _mirrored(directions[:, count:])))
        mean = estimates.mean(dim=0)
        refined, mirrored = self._refine(fixed, moving, matched, torch.cat((mean, _mirrored(mean)))).chunk(2)
        half, edges, steps, *maps = matched
        maps = ((map_[:count] + map_[count:].flip(3)) / 2 for map_ in maps)
        matched = _Matched(half, edges, steps, *maps)._replace(spread=spread_of(estimates))
        return self._finish((refined + _mirrored(mirrored)) / 2, matched)

    def _match(self, fixed: Tensor, moving: Tensor, both: bool) -> _Matched:
        """FRG-PreReg and EDA-FlowReg."""
        images = torch.cat((fixed, moving), dim=1)
        half = halved(images)
        edges = gradient_magnitude(half)
        with torch.no_grad():
            entropy = self.entropy_at_quarter(half)
            w = gate(*entropy.split(1, dim=1))
            w = w if self.arguments["use_gate"] else torch.ones_like(w)
        features = self.encoders(images, edges, entropy)
        if self.frg_prereg:
            features, reliability = self.frg_prereg(features, edges[:, 1:])
        else:
            features, reliability = unit_length(features, dim=3), torch.ones_like(features[:, :, 0, 0])
        (f, m), (r, r_moving) = features.unbind(1), reliability.split(1, dim=1)
        if both:
            r_both = torch.cat((r, r_moving))
            steps = self.eda_flowreg(torch.cat((f, m)), torch.cat((m, f)), r_both, torch.cat((w, w)))
        else:
            steps = self.eda_flowreg(f, m, r, w)
        agreed = torch.zeros_like(steps[-1].flow[: len(fixed), :1])
        return _Matched(half, edges[:, :1], steps, agreed, r, w, *entropy.split(1, dim=1))

    def _refine(self, fixed: Tensor, moving: Tensor, matched: _Matched, flow: Tensor) -> Tensor:
        """A flow on the grid of cells, px, with the last increment."""
        if self.refinement is None:
            return flow
        seen = (fixed, moving) if self.refinement.stride == 1 else matched.half.split(1, dim=1)
        # The matching has losses of its own; what follows it learns from where it stands.
        return self.refinement(*seen, matched.fixed_edges, matched.reliability.detach(), matched.gate, flow.detach())

    def _finish(self, flow: Tensor, matched: _Matched) -> Registration:
        """A flow on the grid of cells, px, at full size, with its inverse and all that led to it."""
        _, _, steps, *maps = matched
        return Registration(*_both_ways(flow), steps, flow, *maps)

    def fuse(
        self, fixed: Tensor, aligned: Tensor, registration: Registration, room: Tensor | None = None
    ) -> Fusion:
        """Fuse the fixed image with an aligned one, both (B, 1, H, W), under the maps of `registration`.

        Args:
            room: (B, 3, H, W), `models.room.room_of` the aligned image in colour; by default of the grey one.
        """
        return self.fusion(fixed, aligned, registration.reliability, registration.gate, room)

    def prepare(self, fixed: Tensor, moving: Tensor) -> tuple[Padder, list[Tensor], list[Tensor]]:
        """The padder for a pair of images, the padded images, and what the registration sees of them."""
        power = round(math.log2(sum(fixed.shape[2:]) / (2 * TRAINED_SIDE)))
        padder = Padder(fixed.shape[2:], self.stride * 2 ** max(0, power))
        padded = [padder.pad(image) for image in (fixed, moving)]
        return padder, padded, [rescale(image, power) for image in padded]

    def forward(
        self, fixed: Tensor, moving: Tensor, passes: int = 1, average: bool = False, room: Tensor | None = None
    ) -> Output:
        """Align and fuse.

        The registration sees the images at the power of two of their size whose sides are nearest to the 256 px of
        its training; the fusion sees them as they are.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1], any size from 64 up.
            passes: how often the registration is made, each time on the image aligned so far; of what further passes
                find, `further_share` counts. 0 takes the images as aligned and only fuses them.
            average: average the estimates of both directions, of the pair and of its mirror image, and hold the
                displacement back as far as they disagree (`models.consensus`).
            room: (B, 3, H, W), `models.room.room_of` the moving image in colour, where the fused image is to be shown
                in its colours (`models.room.in_color`); by default of the grey one.

        Raises:
            ValueError: the images are not of one such size, or have more than one channel.
        """
        if fixed.shape != moving.shape or fixed.ndim != 4 or fixed.shape[1] != 1 or min(fixed.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"expected fixed and moving images of one size (B, 1, H, W) with sides of at least {MIN_SIDE}, "
                f"found {tuple(fixed.shape)} and {tuple(moving.shape)}"
            )
        padder, (fixed, moving), (fixed_seen, moving_seen) = self.prepare(fixed, moving)
        full = fixed.shape[2:]
        average = average and passes > 0
        register = self.register_averaged if average else self.register
        first = register(fixed_seen, moving_seen)
        found = first.flow, first.inverse_flow
        flow, inverse_flow = found if passes else map(torch.zeros_like, found)
        for _ in range(passes - 1):
            aligned = warp(moving_seen, flow)
            further = further_share(flow, aligned) * register(fixed_seen, aligned).refined
            flow, inverse_flow = _followed_by(further, flow, inverse_flow)
        expected = None
        if average:
            cells = F.avg_pool2d(flow, CELL)
            head = foreground(warp(moving_seen, flow), tuple(cells.shape[2:]))
            doubt = mean_spread(first.spread, head)
            back = held_back(cells, first.spread, head)
            flow, inverse_flow = _followed_by(-back, flow, inverse_flow)
            if self.expected_error:
                expected = self._expect_error(fixed_seen, warp(moving_seen, flow), cells - back, back, first)
                expected = padder.unpad(resize(expected * (full[1] / fixed_seen.shape[3]), full))
        else:
            doubt = first.spread.new_zeros(len(fixed), 1, 1, 1)
        flow, inverse_flow = resize_flow(flow, full), resize_flow(inverse_flow, full)
        aligned = warp(moving, flow)
        room = None if room is None else warp(padder.pad(room), flow)
        fused, consistency = self.fuse(fixed, aligned, first, room)
        entropy_fixed, entropy_moving = resize(first.entropy_fixed, full), resize(first.entropy_moving, full)
        fields = (
            fused,
            aligned,
            flow,
            inverse_flow,
            entropy_fixed,
            entropy_moving,
            entropy_difference(entropy_fixed, entropy_moving),
            resize(first.gate, full),
            resize(first.reliability, full),
            consistency,
        )
        return Output(*map(padder.unpad, fields), doubt.sqrt().flatten(), expected)

    def _expect_error(self, fixed: Tensor, aligned: Tensor, flow: Tensor, back: Tensor, first: Registration) -> Tensor:
        """The error to be expected of a flow on the grid of cells, of which `back` was held back: (B, 1, h, w), px."""
        maps = first.reliability, first.gate, first.entropy_fixed, first.entropy_moving
        head = foreground(aligned, tuple(flow.shape[2:]))
        return self.expected_error(signs_of_error(fixed, aligned, flow, back, first.spread, maps, head))


class AtSettings(nn.Module):
    """An `EDARFusion` as exporters want it: images in, a tuple of tensors out, all else settled.

    Args:
        model: in evaluation mode.
        passes, average: as in `EDARFusion.forward`.
        names: fields of `Output` that are wanted, in this order.
    """

    def __init__(self, model: EDARFusion, passes: int, average: bool, names: tuple[str, ...] = Output._fields) -> None:
        super().__init__()
        self.model, self.passes, self.average, self.names = model, passes, average, names

    def forward(self, fixed: Tensor, moving: Tensor, room: Tensor | None = None) -> tuple[Tensor, ...]:
        """Images (B, 1, H, W) in [0, 1] and the room that colours leave -> the wanted fields of `Output`, as far as
        there are values.
        """
        output = self.model(fixed, moving, self.passes, self.average, room)
        fields = (getattr(output, name) for name in self.names)
        return tuple(field for field in fields if field is not None)


def further_share(flow: Tensor, aligned: Tensor) -> Tensor:
    """How much of what a further pass finds is to be believed.

    The best guess from one look at a pair is a displacement of the usual size, which is too short for a large one; a
    second look finds the rest. Where little was displaced, it finds what only looks like misalignment.

    Args:
        flow: (B, 2, H, W), px, found so far, at the scale of the training; H and W multiples of 4.
        aligned: (B, 1, H, W) in [0, 1], the moving image warped with it.

    Returns:
        (B, 1, 1, 1) in [0, 1], rising with the mean displacement in the head between the bounds of `SECOND_PASS`.
    """
    start, full = SECOND_PASS
    lengths = F.avg_pool2d(flow.norm(dim=1, keepdim=True), 4)
    displacement = masked_means(lengths, foreground(aligned, tuple(lengths.shape[2:])))
    return ((displacement - start) / (full - start)).clamp(0, 1).view(-1, 1, 1, 1)


def _both_ways(flow: Tensor) -> tuple[Tensor, Tensor]:
    """A flow on the grid of cells (B, 2, h, w), px, and its inverse, both at full size."""
    size = tuple(CELL * side for side in flow.shape[2:])
    cells = flow / CELL
    return resize_flow(torch.cat((cells, invert(cells.detach()))), size).chunk(2)


def _followed_by(further: Tensor, flow: Tensor, inverse_flow: Tensor) -> tuple[Tensor, Tensor]:
    """A flow and its inverse, at full size, with a further displacement on the grid of cells, px, after it."""
    further, inverse_further = _both_ways(further)
    return compose(flow, further), compose(inverse_further, inverse_flow)


def _mirrored(flow: Tensor) -> Tensor:
    """The flow (..., 2, H, W) of the mirrored pair: x runs the other way there."""
    x, y = flow.flip(-1).unbind(-3)
    return torch.stack((-x, y), dim=-3)


def rescale(image: Tensor, power: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H / 2^power, W / 2^power): means over blocks, or bilinear for a negative power."""
    if power > 0:
        return F.avg_pool2d(image, 2**power)
    return F.interpolate(image, scale_factor=2**-power, mode="bilinear") if power else image
