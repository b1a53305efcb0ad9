"""EDARFusion: align a moving image with a fixed one, then fuse them, and show why."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.consensus import FaintPart, HeldBack, mean_spread, spread_of
from models.eda_flowreg import CELL, EDAFlowReg, FlowStep
from models.encoder import Encoders, EntropyAtQuarter
from models.expected_error import ExpectedError, signs_of_error
from models.frg_prereg import FRGPreReg, unit_length
from models.fusion import FlowGuidedFusion, Fusion
from models.layers import to_device
from models.outputs import MAP_FIELDS, Alignment, Output, Registration
from models.presets import PRESETS
from models.refinement import Refinement
from utils.filters import Padder, gradient_magnitude, halved, resize
from utils.geometry.foreground import foreground, masked_means
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import MIN_SIDE
from utils.maps import entropy_difference, gate

TRAINED_SIDE = 256  # px; the registration is trained on heads of that scale

SECOND_PASS = (2.0, 6.0)
"""Mean displacement found so far, px, from which a further pass counts, and at which it counts in full.

Chosen on validation pairs (experiments 70 and 74 in docs/experiments.md)."""

class _Matched(NamedTuple):
    """Result of the matching, before the refinement.

    Attributes:
        half: (B, 2, H / 2, W / 2), both images at half the resolution.
        fixed_edges: (B, 1, H / 2, W / 2), gradient magnitude of the fixed image there.
        steps, spread, reliability, gate, entropy_fixed, entropy_moving: as in `Registration`.
    """

    half: Tensor
    fixed_edges: Tensor
    steps: list[FlowStep]
    spread: Tensor
    reliability: Tensor
    gate: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor


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
        self.held_back, self.faint_part = HeldBack(), FaintPart()
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
        """Register with the mean of four matches: both directions, of the pair and of its mirror image.

        Args:
            fixed, moving: as in `register`.
        """
        count = len(fixed)
        fixed, moving = torch.cat((fixed, fixed.flip(3))), torch.cat((moving, moving.flip(3)))
        matched = self._match(fixed, moving, both=True)
        forward, backward = (matched.steps[-1].flow / CELL).chunk(2)
        directions = CELL * torch.stack((forward, invert(backward)))
        estimates = torch.cat((directions[:, :count], _mirrored(directions[:, count:])))
        mean = estimates.mean(dim=0)
        refined, mirrored = self._refine(fixed, moving, matched, torch.cat((mean, _mirrored(mean)))).chunk(2)
        maps = {name: getattr(matched, name) for name in MAP_FIELDS}
        maps = {name: (map_[:count] + map_[count:].flip(3)) / 2 for name, map_ in maps.items()}
        return self._finish((refined + _mirrored(mirrored)) / 2, matched._replace(spread=spread_of(estimates), **maps))

    def _match(self, fixed: Tensor, moving: Tensor, both: bool) -> _Matched:
        """Adapt the features with FRG-PreReg and match them with EDA-FlowReg."""
        images = torch.cat((fixed, moving), dim=1)
        half = halved(images)
        edges = gradient_magnitude(half)
        with torch.no_grad():
            entropy = self.entropy_at_quarter(half)
            entropy_fixed, entropy_moving = entropy.split(1, dim=1)
            w = gate(entropy_fixed, entropy_moving)
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
        return _Matched(
            half=half,
            fixed_edges=edges[:, :1],
            steps=steps,
            spread=torch.zeros_like(steps[-1].flow[: len(fixed), :1]),
            reliability=r,
            gate=w,
            entropy_fixed=entropy_fixed,
            entropy_moving=entropy_moving,
        )

    def _refine(self, fixed: Tensor, moving: Tensor, matched: _Matched, flow: Tensor) -> Tensor:
        """Add the last increment to a flow on the grid of cells, px."""
        if self.refinement is None:
            return flow
        images = (fixed, moving) if self.refinement.stride == 1 else matched.half.split(1, dim=1)
        # The matching has losses of its own. Its results reach the refinement without gradient.
        return self.refinement(*images, matched.fixed_edges, matched.reliability.detach(), matched.gate, flow.detach())

    def _finish(self, refined: Tensor, matched: _Matched) -> Registration:
        """Enlarge a flow on the grid of cells, px, to full size, and add its inverse and the maps of the matching."""
        flow, inverse_flow = _both_ways(refined)
        return Registration(
            flow=flow,
            inverse_flow=inverse_flow,
            steps=matched.steps,
            refined=refined,
            spread=matched.spread,
            **{name: getattr(matched, name) for name in MAP_FIELDS},
        )

    def align(self, fixed: Tensor, moving: Tensor, passes: int, average: bool) -> Alignment:
        """Register a pair `passes` times, each time on the result so far.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1], as `prepare` makes them for the registration.
            passes, average: as in `forward`.
        """
        average = average and passes > 0
        register = self.register_averaged if average else self.register
        first = register(fixed, moving)
        flow, inverse_flow = first.flow, first.inverse_flow
        if passes == 0:
            flow, inverse_flow = torch.zeros_like(flow), torch.zeros_like(inverse_flow)
        for _ in range(passes - 1):
            aligned = warp(moving, flow)
            increment = further_share(flow, aligned) * register(fixed, aligned).refined
            flow, inverse_flow = _followed_by(increment, flow, inverse_flow)
        alignment = Alignment(first, flow, inverse_flow, disagreement=first.spread.new_zeros(len(fixed)))
        return self._hold_back(fixed, moving, alignment) if average else alignment

    def _hold_back(self, fixed: Tensor, moving: Tensor, alignment: Alignment) -> Alignment:
        """Shorten the displacement where the averaged estimates disagree, drop what is faint, and predict its error."""
        first, flow, inverse_flow, *_ = alignment
        cells = F.avg_pool2d(flow, CELL)
        head = foreground(warp(moving, flow), tuple(cells.shape[2:]))
        excess = self.held_back(cells, first.spread, head)
        excess = excess + self.faint_part(cells - excess, head)
        flow, inverse_flow = _followed_by(-excess, flow, inverse_flow)
        disagreement = mean_spread(first.spread, head).sqrt().flatten()
        expected = None
        if self.expected_error:
            aligned = warp(moving, flow)
            head = foreground(aligned, tuple(cells.shape[2:]))
            maps = tuple(getattr(first, name) for name in MAP_FIELDS)
            signs = signs_of_error(fixed, aligned, cells - excess, excess, first.spread, maps, head)
            expected = self.expected_error(signs)
        return Alignment(first, flow, inverse_flow, disagreement, expected)

    def fuse(
        self, fixed: Tensor, aligned: Tensor, registration: Registration, room: Tensor | None = None
    ) -> Fusion:
        """Fuse the fixed image with an aligned one, both (B, 1, H, W), under the maps of `registration`.

        Args:
            room: (B, 3, H, W), `models.room.room_of` the aligned image in colour; by default of the grey one.
        """
        return self.fusion(fixed, aligned, registration.reliability, registration.gate, room)

    def prepare(self, fixed: Tensor, moving: Tensor) -> tuple[Padder, list[Tensor], list[Tensor]]:
        """Pad a pair of images and bring copies to the scale of the registration.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1].

        Returns:
            The padder, both padded images, and both as the registration sees them.
        """
        power = scale_power(fixed.shape[2:])
        padder = Padder(fixed.shape[2:], self.stride * 2 ** max(0, power))
        padded = [padder.pad(image) for image in (fixed, moving)]
        return padder, padded, [rescale(image, power) for image in padded]

    def forward(
        self, fixed: Tensor, moving: Tensor, passes: int = 1, average: bool = False, room: Tensor | None = None
    ) -> Output:
        """Align and fuse.

        The registration sees the images at the power of two of their size whose sides are nearest to the 256 px of
        its training. The fusion sees them as they are.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1], any size from 64 up.
            passes: number of registrations, each on the image aligned so far; of the increment of further passes
                `further_share` counts. 0 takes the images as aligned and only fuses them.
            average: average the estimates of both directions, of the pair and of its mirror image, hold the
                displacement back as far as they disagree, and drop it where it is faint (`models.consensus`).
            room: (B, 3, H, W), `models.room.room_of` the moving image in colour, where the fused image is to be shown
                in its colours (`models.room.in_color`); by default of the grey one.

        Raises:
            ValueError: the images are not of one such size, or have more than one channel.
        """
        _check_images(fixed, moving)
        padder, (fixed, moving), (fixed_seen, moving_seen) = self.prepare(fixed, moving)
        size = fixed.shape[2:]

        # FRG-PreReg and EDA-FlowReg, at the scale of the training.
        alignment = self.align(fixed_seen, moving_seen, passes, average)
        first, expected = alignment.first, alignment.expected_error
        flow, inverse_flow = (resize_flow(field, size) for field in (alignment.flow, alignment.inverse_flow))

        # Flow-guided fusion, at full size.
        aligned = warp(moving, flow)
        room = None if room is None else warp(padder.pad(room), flow)
        fused, consistency = self.fuse(fixed, aligned, first, room)

        maps = {name: resize(getattr(first, name), size) for name in MAP_FIELDS}
        if expected is not None:
            expected = padder.unpad(resize(expected * (size[1] / fixed_seen.shape[3]), size))
        return Output(
            fused=padder.unpad(fused),
            aligned=padder.unpad(aligned),
            flow=padder.unpad(flow),
            inverse_flow=padder.unpad(inverse_flow),
            entropy_difference=padder.unpad(entropy_difference(maps["entropy_fixed"], maps["entropy_moving"])),
            consistency=padder.unpad(consistency),
            disagreement=alignment.disagreement,
            expected_error=expected,
            **{name: padder.unpad(map_) for name, map_ in maps.items()},
        )


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
        """Return the wanted fields of `Output` that have values, for images (B, 1, H, W) in [0, 1] and their room."""
        output = self.model(fixed, moving, self.passes, self.average, room)
        fields = (getattr(output, name) for name in self.names)
        return tuple(field for field in fields if field is not None)


def _check_images(fixed: Tensor, moving: Tensor) -> None:
    """Check that two images are grey, of one size, and large enough.

    Raises:
        ValueError: they are not.
    """
    if fixed.shape != moving.shape or fixed.ndim != 4 or fixed.shape[1] != 1 or min(fixed.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"expected fixed and moving images of one size (B, 1, H, W) with sides of at least {MIN_SIDE}, "
            f"found {tuple(fixed.shape)} and {tuple(moving.shape)}"
        )


def further_share(flow: Tensor, aligned: Tensor) -> Tensor:
    """Weight the increment of a further pass by the displacement found so far.

    The best guess from one look at a pair is a displacement of the usual size. This is too short for a large one, and
    a second look finds the rest. At a small one, a second look finds differences that only resemble misalignment.

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
    """Return a flow on the grid of cells (B, 2, h, w), px, and its inverse, both at full size."""
    size = tuple(CELL * side for side in flow.shape[2:])
    cells = flow / CELL
    return resize_flow(torch.cat((cells, invert(cells.detach()))), size).chunk(2)


def _followed_by(increment: Tensor, flow: Tensor, inverse_flow: Tensor) -> tuple[Tensor, Tensor]:
    """Compose a flow and its inverse, at full size, with an increment on the grid of cells, px."""
    increment, inverse_increment = _both_ways(increment)
    return compose(flow, increment), compose(inverse_increment, inverse_flow)


def _mirrored(flow: Tensor) -> Tensor:
    """Mirror a flow (..., 2, H, W): x runs the other way in the mirrored pair."""
    x, y = flow.flip(-1).unbind(-3)
    return torch.stack((-x, y), dim=-3)


def scale_power(size: Sequence[int]) -> int:
    """Tell by which power of two images of `size` (H, W), px, are to be divided to come nearest to `TRAINED_SIDE`."""
    return round(math.log2(sum(size) / (2 * TRAINED_SIDE)))


def rescale(image: Tensor, power: int) -> Tensor:
    """Scale (B, C, H, W) to (B, C, H / 2^power, W / 2^power): means over blocks, or bilinear for a negative power."""
    if power > 0:
        return F.avg_pool2d(image, 2**power)
    return F.interpolate(image, scale_factor=2**-power, mode="bilinear") if power else image
