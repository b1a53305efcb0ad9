"""Align and fuse one pair of arrays with a trained network, colour included."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from kornia.image import image_to_tensor, tensor_to_image
from torch import Tensor

from data.pairs import is_blank
from inference.fused_pair import FusedPair
from inference.luma_fit import fit_luma
from inference.multistart import register_from_afar
from inference.pair_arrays import checked, colored, maps_of, mean_in_head, without_drawn_out_border
from inference.view import View, choose_view
from models.outputs import Output
from models.room import in_color, room_of, with_color
from utils.arguments import COLOR_MODES
from utils.geometry.continuation import continue_into
from utils.geometry.warp import invert, warp
from utils.imaging.colormaps import palette
from utils.imaging.images import has_color, luma


class _Known(NamedTuple):
    """What was estimated for a pair before: arguments of `PairFuser.__call__`."""

    flow: np.ndarray | None = None
    disagreement: float | None = None
    expected_error: np.ndarray | None = None


class _Prepared(NamedTuple):
    """A pair on the device of the network.

    Attributes:
        fixed, grey: (1, 1, H, W), the grey values of both images.
        moving: (1, 1 or 3, H, W).
        blank: whether one image is blank.
        scale: colours for a grey moving image.
        room: what its colours leave to the fused image, as `EDARFusion.forward` takes it.
        view: part of the images that the registration sees; None for all.
        seen: fixed and grey image as the registration sees them.
        passes: number of registrations.
        known: estimates from before.
        mask: argument of `PairFuser.__call__`; None where it is empty.
        luma_steps: argument of `PairFuser.__call__`.
        seconds: time that this took.
    """

    fixed: Tensor
    grey: Tensor
    moving: Tensor
    blank: bool
    scale: Tensor | None
    room: Tensor | None
    view: View | None
    seen: tuple[Tensor, Tensor]
    passes: int
    known: _Known
    mask: np.ndarray | None
    luma_steps: int
    seconds: float

    @property
    def model_arguments(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Arguments of the first run of the model: fixed, moving and, where both are seen as a whole, the room."""
        return *self.seen, self.room if self.view is None else None


class PairFuser:
    """Aligns and fuses pairs.

    Args:
        model: `EDARFusion` in evaluation mode, or what stands in for it (`inference.openvino_model`).
        device: where the model is, such as ``torch.device("cpu")`` or ``"cpu"``.
        passes: how often the registration is made; see `EDARFusion.forward`.
        average: average the estimates of both directions, of the pair and of its mirror image; see there too.
        multistart: of averaged estimates: try other starts for pairs that lie far apart (`inference.multistart`).
        color: how colours are shown, one of `COLOR_MODES`: ``keep`` keeps the tracer's hue and saturation and shows the
            fixed image's detail in the room that they leave (`models.room`); ``luma`` is the field's usual way, which
            replaces the luma and lets colours go pale where the fused image is bright.
        colormap: colour scale for tracers that are grey, of `utils.imaging.colormaps`; None leaves them grey.
        blend: share of the moving image in a plain overlay; None makes none.
        grey: also fuse grey tracers without their colour scale.
    """

    def __init__(
        self,
        model: Callable[..., Output],
        device: torch.device | str,
        *,
        passes: int = 1,
        average: bool = False,
        multistart: bool = True,
        color: str = COLOR_MODES[0],
        colormap: str | None = None,
        blend: float | None = None,
        grey: bool = False,
    ) -> None:
        self.color, self.blend, self.grey = color, blend, grey
        self.palette = None if colormap is None else torch.from_numpy(palette(colormap)).to(device)
        self.model, self.device, self.passes, self.average = model, torch.device(device), passes, average
        self.multistart = multistart and average
        self._met: set[tuple] = set()
        self._preparing = 0.0

    @torch.inference_mode()
    def __call__(
        self,
        fixed: np.ndarray | Tensor,
        moving: np.ndarray | Tensor,
        *,
        aspect: float = 1.0,
        longest: float | None = None,
        flow: np.ndarray | None = None,
        disagreement: float | None = None,
        expected_error: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        luma_steps: int = 0,
    ) -> FusedPair:
        """Align and fuse a pair.

        Of a colour image the network sees and fuses the luma (BT.601); the colour is warped with the same flow and put
        back. A grey image is aligned as it is and gets its colours, if a colour scale is given, in the fused image
        only. Where one image is blank there is nothing to align: the fused image is the brighter one.

        Args:
            fixed: (H, W) in [0, 1], sides of at least 64.
            moving: (H, W) or (H, W, 3) in [0, 1]; the results have the same channels, but for the colours that a
                colour scale gives to grey. Both may be tensors as well, on any device.
            aspect, longest: of `inference.view.choose_view`.
            flow: (2, H, W), px, where the displacement is known already, as of a volume; nothing is estimated then.
            disagreement, expected_error: of the estimates that it came from; the latter (H, W), px.
            mask: bool (H, W), True where nothing is to be matched, as in a lesion. What both images show there has no
                say, and the displacement is the smooth continuation of that around it. The gate is 0 there.
            luma_steps: steps that fit the fused luma of this pair, if its colours are kept, by `inference.luma_fit`;
                0 leaves what the network fused.

        Raises:
            ValueError: shapes that do not go together, an array that is not of floating point, values beyond [0, 1], or
                a negative number of steps.
        """
        known = {"flow": flow, "disagreement": disagreement, "expected_error": expected_error}
        how = {"aspect": aspect, "longest": longest, "mask": mask, "luma_steps": luma_steps}
        return self._complete(self._prepare(fixed, moving, **how, **known))

    @torch.inference_mode()
    def together(self, pairs: Sequence[Mapping[str, Any]]) -> list[FusedPair]:
        """Align and fuse several pairs. The model runs once for all that it sees at one size.

        Pairs with a mask or a known displacement, further starts of multi-start and fits of the luma run one by one.
        The results are those of single pairs, but for rounding.

        Args:
            pairs: arguments of `__call__`, by name.

        Returns:
            The results, in the order of the pairs. The seconds of a common run are divided by its pairs.

        Raises:
            ValueError: as `__call__`.
        """
        prepared = [self._prepare(**pair) for pair in pairs]
        groups = defaultdict(list)
        for place, pair in enumerate(prepared):
            if pair.known.flow is None and pair.mask is None:
                fixed, _, room = pair.model_arguments
                groups[fixed.shape, pair.passes, room is None].append(place)
        first: dict[int, tuple[Output, float]] = {}
        for places in groups.values():
            if len(places) > 1:
                first |= zip(places, self._run_together([prepared[place] for place in places]), strict=True)
        return [self._complete(pair, *first.get(place, ())) for place, pair in enumerate(prepared)]

    def _run_together(self, pairs: Sequence[_Prepared]) -> list[tuple[Output, float]]:
        """Run the model once for pairs seen at one size; return the output of each and its share of the seconds."""
        start = self._clock()
        fixed, moving, rooms = zip(*(pair.model_arguments for pair in pairs), strict=True)
        room = None if rooms[0] is None else torch.cat(rooms)
        output = self._run(torch.cat(fixed), torch.cat(moving), passes=pairs[0].passes, room=room)
        output.disagreement.tolist()  # waits until it is done
        seconds = (self._clock() - start) / len(pairs)
        singles = zip(*([None] * len(pairs) if x is None else x.split(1) for x in output), strict=True)
        return [(Output(*single), seconds) for single in singles]

    def _prepare(
        self,
        fixed: np.ndarray | Tensor,
        moving: np.ndarray | Tensor,
        *,
        aspect: float = 1.0,
        longest: float | None = None,
        mask: np.ndarray | None = None,
        luma_steps: int = 0,
        **known: np.ndarray | float | None,
    ) -> _Prepared:
        """Check the arguments of `__call__` and bring the images to the device; `known` are those of `_Known`."""
        if luma_steps < 0:
            raise ValueError(f"luma_steps: expected 0 or more, found {luma_steps}")
        fixed, moving = checked(fixed, moving, mask)
        start = self._clock()
        blank = is_blank(fixed) or is_blank(moving)
        nothing_to_estimate = blank or not self.passes or known.get("flow") is not None
        view = None if nothing_to_estimate else choose_view(fixed, aspect, longest)
        color = moving.ndim == 3
        scale = None if color and has_color(moving) else self.palette
        fixed, moving, grey = (
            image_to_tensor(x, keepdim=False).to(self.device).contiguous()
            for x in (fixed, moving, luma(moving) if color else moving)
        )
        room = None
        if not blank and self.color == "keep" and (color or scale is not None):
            room = room_of(moving if scale is None else colored(grey, scale))
        return _Prepared(
            fixed=fixed,
            grey=grey,
            moving=moving,
            blank=blank,
            scale=scale,
            room=room,
            view=view,
            seen=_seen(view, fixed, grey),
            passes=0 if blank else self.passes,
            known=_Known(**known),
            mask=mask if mask is not None and mask.any() else None,
            luma_steps=luma_steps,
            seconds=self._clock() - start,
        )

    def _complete(self, pair: _Prepared, first: Output | None = None, seconds: float = 0.0) -> FusedPair:
        """Align and fuse a pair.

        Args:
            first: output of the first run of the model, where there was one already.
            seconds: its time.
        """
        start, known = self._clock(), pair.known
        if known.flow is not None:
            flow = torch.from_numpy(known.flow)[None].to(self.device)
            output = self._fuse_along(pair.fixed, pair.grey, flow, pair.room)
        elif pair.mask is None:
            output = self._estimate(pair, first)
        else:
            output = self._estimate_beside(pair.mask, pair)
        disagreement = known.disagreement
        if known.flow is None:
            disagreement = output.disagreement.item() if self.average and not pair.blank else None
        images = self._shown(pair, output)
        fused_grey = self._fused_grey(pair, output) if self.grey and pair.scale is not None else None
        seconds += pair.seconds + self._clock() - start
        expected = output.expected_error
        if known.expected_error is not None:
            expected = torch.from_numpy(known.expected_error)[None, None]
        expected = None if pair.blank else expected
        mean, maps = mean_in_head(expected, output.aligned), maps_of(output, expected, pair.mask)
        flow = output.flow[0].cpu().numpy()
        return FusedPair(*images[:2], flow, maps, seconds, disagreement, mean, blend=images[2], fused_grey=fused_grey)

    def _shown(self, pair: _Prepared, output: Output) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Colour the fused and the aligned image where there are colours, and make the plain overlay."""
        fixed, moving, scale = pair.fixed, pair.moving, pair.scale
        fused = torch.maximum(fixed, pair.grey) if pair.blank else output.fused
        shown = aligned = warp(moving, output.flow) if moving.shape[1] == 3 else output.aligned
        if scale is not None:
            shown = colored(output.aligned, scale)
        if shown.shape[1] == 3:
            if pair.luma_steps and pair.room is not None and pair.room[:, 2].any():
                fused = fit_luma(fixed, shown, fused, pair.luma_steps)
            fused = in_color(fused, shown) if self.color == "keep" else with_color(fused, shown)
        flow, blend = output.flow[0].cpu().numpy(), None
        if self.blend is not None:
            blend = torch.lerp(fixed.expand_as(shown), shown, self.blend)
            blend, _ = without_drawn_out_border(*map(tensor_to_image, (blend, aligned, fixed)), flow)
        return *without_drawn_out_border(*map(tensor_to_image, (fused, aligned, fixed)), flow), blend

    def _fused_grey(self, pair: _Prepared, output: Output) -> np.ndarray:
        """Fuse a grey tracer without its colour scale."""
        fixed, aligned = pair.fixed, output.aligned
        fused = torch.maximum(fixed, pair.grey) if pair.blank else self._run(fixed, aligned, passes=0).fused
        images = map(tensor_to_image, (fused, aligned, fixed))
        return without_drawn_out_border(*images, output.flow[0].cpu().numpy())[0]

    def _estimate(self, pair: _Prepared, first: Output | None = None) -> Output:
        """Align and fuse the grey images of a pair, in which nothing is known.

        The flow belongs to the whole image, also where it was estimated on a view of the head. Fusion and maps are then
        those of the whole images, which are aligned already.

        Args:
            first: output of the first run of the model, where there was one already.
        """
        model, view, fixed = partial(self._run, passes=pair.passes), pair.view, pair.fixed
        *seen, room = pair.model_arguments
        if first is None:
            first = model(*seen, room=room)
        best = register_from_afar(model, *seen, first) if self.multistart and pair.passes else first
        if view is None and best is first:
            return first
        flow, inverse_flow, expected = best.flow, best.inverse_flow, best.expected_error
        if view is not None:
            flow, inverse_flow = (view.enlarge(x, fixed.shape[2:]) for x in (flow, inverse_flow))
            expected = None if expected is None else view.enlarge_lengths(expected, fixed.shape[2:])
        known = {"inverse_flow": inverse_flow, "disagreement": best.disagreement, "expected_error": expected}
        return self._fuse_aligned(fixed, pair.grey, flow, pair.room)._replace(**known)

    def _estimate_beside(self, mask: np.ndarray, pair: _Prepared) -> Output:
        """Align and fuse as `_estimate` does, but match nothing within a mask."""
        fixed, grey = (
            torch.from_numpy(continue_into(image[0].cpu().numpy(), mask))[None].to(self.device)
            for image in (pair.fixed, pair.grey)
        )
        seen = _seen(pair.view, fixed, grey)
        estimate = self._estimate(pair._replace(fixed=fixed, grey=grey, seen=seen, room=None))
        flow = torch.from_numpy(continue_into(estimate.flow[0].cpu().numpy(), mask))[None].to(self.device)
        known = {"disagreement": estimate.disagreement, "expected_error": estimate.expected_error}
        return self._fuse_along(pair.fixed, pair.grey, flow, pair.room)._replace(**known)

    def _fuse_along(self, fixed: Tensor, moving: Tensor, flow: Tensor, room: Tensor | None) -> Output:
        """Fuse grey images (1, 1, H, W) with a known displacement field (1, 2, H, W)."""
        known = {"inverse_flow": invert(flow), "expected_error": None}
        return self._fuse_aligned(fixed, moving, flow, room)._replace(**known)

    def _fuse_aligned(self, fixed: Tensor, moving: Tensor, flow: Tensor, room: Tensor | None) -> Output:
        """Fuse grey images (1, 1, H, W), the moving one warped with a flow; the output has that flow."""
        aligned = warp(moving, flow)
        room = None if room is None else warp(room, flow)
        return self._run(fixed, aligned, passes=0, room=room)._replace(aligned=aligned, flow=flow)

    def _clock(self) -> float:
        """Return the time in seconds, less what making the model ready has taken so far."""
        return time.perf_counter() - self._preparing

    def _run(self, fixed: Tensor, moving: Tensor, *, passes: int, room: Tensor | None = None) -> Output:
        """Run the model, made ready first for a new size of images.

        OpenVINO compiles a graph for each size, an accelerator chooses its kernels; PyTorch on a CPU has nothing to do.
        What that takes is kept out of `FusedPair.seconds`, which are of the pairs alone.
        """
        kind = (fixed.shape, passes, room is None)
        extra = {} if room is None else {"room": room}
        ready = self.device.type == "cpu" and isinstance(self.model, torch.nn.Module)
        if not ready and kind not in self._met:
            start = time.perf_counter()
            blank = torch.zeros_like(fixed)
            self.model(blank, blank, passes, self.average, **extra).disagreement.tolist()  # waits until it is done
            self._preparing += time.perf_counter() - start
            self._met.add(kind)
        return self.model(fixed, moving, passes, self.average, **extra)


def _seen(view: View | None, fixed: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both images to what the registration sees of them."""
    return (fixed, grey) if view is None else (view.show(fixed), view.show(grey))
