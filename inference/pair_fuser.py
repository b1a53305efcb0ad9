"""Align and fuse one pair of arrays with a trained network, colour included."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.image import image_to_tensor, tensor_to_image
from torch import Tensor

from data.pairs import is_blank
from evaluation.metrics import endpoint_error
from inference.multistart import register_from_afar
from inference.result_folder import FusedPair
from inference.view import View, choose_view
from models.edarfusion import Output
from utils.geometry.field_of_view import field_of_view
from utils.geometry.foreground import as_weight, foreground, masked_means
from utils.geometry.warp import invert, warp
from utils.imaging.images import luma
from utils.maps import jacobian_determinant


class PairFuser:
    """Aligns and fuses pairs.

    Args:
        model: `EDARFusion` in evaluation mode, or what stands in for it (`inference.openvino_model`).
        device: where the model is.
        passes: how often the registration is made; see `EDARFusion.forward`.
        average: average the estimates of both directions, of the pair and of its mirror image; see there too.
        multistart: of averaged estimates: try other starts for pairs that lie far apart (`inference.multistart`).
    """

    def __init__(
        self,
        model: Callable[..., Output],
        device: torch.device,
        *,
        passes: int = 1,
        average: bool = False,
        multistart: bool = True,
    ) -> None:
        self.model, self.device, self.passes, self.average = model, device, passes, average
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
    ) -> FusedPair:
        """Align and fuse a pair.

        Of a colour image the network sees and fuses the luma (BT.601); the colour is warped with the same flow and put
        back (`with_color`). Where one image is blank there is nothing to align: the fused image is the brighter one.

        Args:
            fixed: (H, W) in [0, 1], sides of at least 64.
            moving: (H, W) or (H, W, 3) in [0, 1]; the results have the same channels. Both may be tensors as well, on
                any device.
            aspect, longest: of `inference.view.choose_view`.
            flow: (2, H, W), px, where the displacement is known already, as of a volume; nothing is estimated then.
            disagreement: of the estimates that it came from.

        Raises:
            ValueError: shapes that do not go together, an array that is not of floating point, or values beyond [0, 1].
        """
        fixed, moving = _as_array(fixed), _as_array(moving)
        if fixed.ndim != 2 or moving.shape not in (fixed.shape, (*fixed.shape, 3)):
            expected = "fixed (H, W) and moving (H, W) or (H, W, 3)"
            raise ValueError(f"expected {expected}, found shapes {fixed.shape} and {moving.shape}")
        for role, image in (("fixed", fixed), ("moving", moving)):
            if image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
                found = f"{image.dtype} from {image.min():g} to {image.max():g}"
                raise ValueError(f"{role}: expected floating point numbers in [0, 1], found {found}")
        blank = is_blank(fixed) or is_blank(moving)
        fixed, moving = (np.ascontiguousarray(image, np.float32) for image in (fixed, moving))
        start = time.perf_counter()
        view = None if blank or not self.passes else choose_view(fixed, aspect, longest)
        color = moving.ndim == 3
        images = (fixed, moving, luma(moving) if color else moving)
        fixed, moving, grey = (image_to_tensor(x, keepdim=False).to(self.device).contiguous() for x in images)
        self._preparing = 0.0
        if flow is None:
            output = self._estimate(fixed, grey, view, 0 if blank else self.passes)
        else:
            output = self._fuse_along(fixed, grey, torch.from_numpy(flow)[None].to(self.device))
        aligned, fused = output.aligned, torch.maximum(fixed, grey) if blank else output.fused
        if color:
            aligned = warp(moving, output.flow)
            fused = with_color(fused, aligned)
        if flow is None:
            disagreement = output.disagreement.item() if self.average and not blank else None
        flow = output.flow[0].cpu().numpy()
        fused, aligned = without_drawn_out_border(*map(tensor_to_image, (fused, aligned, fixed)), flow)
        seconds = time.perf_counter() - start - self._preparing
        maps = {
            "entropy_fixed": output.entropy_fixed,
            "entropy_moving": output.entropy_moving,
            "entropy_difference": output.entropy_difference,
            "gate": output.gate,
            "reliability": output.reliability,
            "consistency": output.consistency,
            "jacobian": jacobian_determinant(output.flow),
        }
        maps = {name: map_[0, 0].cpu().numpy() for name, map_ in maps.items()}
        expected = output.expected_error
        if expected is None or blank:
            return FusedPair(fused, aligned, flow, maps, seconds, disagreement)
        maps["expected_error"] = expected[0, 0].cpu().numpy()
        mean = masked_means(expected, as_weight(foreground(output.aligned, tuple(expected.shape[2:])))).item()
        return FusedPair(fused, aligned, flow, maps, seconds, disagreement, mean)

    def _estimate(self, fixed: Tensor, moving: Tensor, view: View | None, passes: int) -> Output:
        """What the model makes of grey images (1, 1, H, W); the flow is of the whole frame, wherever it was found.

        The fusion and the maps are then of the frame, whose images are aligned already.
        """
        model = partial(self._run, passes=passes)
        seen = (fixed, moving) if view is None else (view.show(fixed), view.show(moving))
        first = found = model(*seen)
        if self.multistart and passes:
            found = register_from_afar(model, *seen, first)
        if view is None and found is first:
            return first
        flow, inverse_flow, expected = found.flow, found.inverse_flow, found.expected_error
        if view is not None:
            flow, inverse_flow = (view.enlarge(x, fixed.shape[2:]) for x in (flow, inverse_flow))
            expected = None if expected is None else view.enlarge_lengths(expected, fixed.shape[2:])
        aligned = warp(moving, flow)
        found = {"aligned": aligned, "flow": flow, "inverse_flow": inverse_flow, "disagreement": found.disagreement}
        found["expected_error"] = expected
        return self._run(fixed, aligned, passes=0)._replace(**found)

    def _fuse_along(self, fixed: Tensor, moving: Tensor, flow: Tensor) -> Output:
        """What the model makes of grey images (1, 1, H, W) with a displacement field (1, 2, H, W) that is known."""
        aligned = warp(moving, flow)
        known = {"aligned": aligned, "flow": flow, "inverse_flow": invert(flow), "expected_error": None}
        return self._run(fixed, aligned, passes=0)._replace(**known)

    def _run(self, fixed: Tensor, moving: Tensor, *, passes: int) -> Output:
        """The model, made ready first where images of a size come for the first time.

        OpenVINO compiles a graph for each size, an accelerator chooses its kernels; PyTorch on a CPU has nothing to do.
        What that takes is kept out of `FusedPair.seconds`, which are of the pairs alone.
        """
        kind = (fixed.shape[2:], passes)
        ready = self.device.type == "cpu" and isinstance(self.model, torch.nn.Module)
        if not ready and kind not in self._met:
            start = time.perf_counter()
            blank = torch.zeros_like(fixed)
            self.model(blank, blank, passes, self.average).disagreement.tolist()  # waits until it is done
            self._preparing += time.perf_counter() - start
            self._met.add(kind)
        return self.model(fixed, moving, passes, self.average)


def _as_array(image: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return (image.float() if image.is_floating_point() else image).numpy()
    return np.asarray(image)


def without_drawn_out_border(
    fused: np.ndarray, aligned: np.ndarray, fixed: np.ndarray, flow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Show the fixed image alone where the moving one has no value, and black in its aligned image.

    The warp repeats the border there, which would draw out what touches it, such as the table of a scanner, to bars.

    Args:
        fused, aligned: (H, W) or (H, W, 3).
        fixed: (H, W).
        flow: (2, H, W), px.

    Returns:
        Both images.
    """
    seen = field_of_view(flow)
    if fused.ndim == 3:
        seen, fixed = seen[..., None], fixed[..., None]
    return np.where(seen, fused, fixed), np.where(seen, aligned, np.float32(0))


def endpoint_scores(flow: np.ndarray, true_flow: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Endpoint error of a flow, and of zero flow, within about 8 px of the label's tissue.

    Args:
        flow, true_flow: (2, H, W), px.
        label: the truly aligned moving image, (H, W) in [0, 1]; of one without tissue the whole counts.

    Returns:
        epe and epe_before, px.
    """
    tissue = foreground(torch.from_numpy(label)[None, None], label.shape)[0, 0].numpy() > 0.5
    mask = tissue if tissue.any() else None
    return {
        "epe": endpoint_error(flow, true_flow, mask),
        "epe_before": endpoint_error(np.zeros_like(true_flow), true_flow, mask),
    }


def with_color(fused: Tensor, aligned: Tensor) -> Tensor:
    """Give a fused image the colour of the aligned one, and keep its luma.

    By BT.601 a colour is luma and what its channels differ from it (as Cb and Cr say it). These differences are added
    to the fused luma; where a channel would leave [0, 1], all three are shortened alike. Cut off channel by channel
    instead, a colour would change the luma that was fused, and take fine structures of the fixed image with it.

    Args:
        fused: (B, 1, H, W) in [0, 1].
        aligned: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], of the luma `fused` and of the hue of `aligned`.
    """
    difference = aligned - rgb_to_grayscale(aligned)
    room = torch.where(difference > 0, 1 - fused, fused)
    share = (room / difference.abs().clamp_min(1e-6)).amin(dim=1, keepdim=True).clamp_max(1)
    return (fused + share * difference).clamp(0, 1)
