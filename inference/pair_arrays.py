"""What goes into `inference.pair_fuser.PairFuser` as arrays, and what comes out: checked, coloured, cut, collected."""

import numpy as np
from torch import Tensor

from models.outputs import Output
from utils.geometry.field_of_view import field_of_view
from utils.geometry.foreground import as_weight, foreground, masked_means
from utils.maps import jacobian_determinant


def checked(
    fixed: np.ndarray | Tensor, moving: np.ndarray | Tensor, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Convert fixed and moving image to float32 arrays.

    Args:
        fixed: (H, W) in [0, 1].
        moving: (H, W) or (H, W, 3) in [0, 1].
        mask: bool (H, W), or None.

    Raises:
        ValueError: shapes that do not go together, an array that is not of floating point, or values beyond [0, 1].
    """
    fixed, moving = _as_array(fixed), _as_array(moving)
    if fixed.ndim != 2 or moving.shape not in (fixed.shape, (*fixed.shape, 3)):
        expected = "fixed (H, W) and moving (H, W) or (H, W, 3)"
        raise ValueError(f"expected {expected}, found shapes {fixed.shape} and {moving.shape}")
    for role, image in (("fixed", fixed), ("moving", moving)):
        if image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
            state = f"{image.dtype} from {image.min():g} to {image.max():g}"
            raise ValueError(f"{role}: expected floating point numbers in [0, 1], found {state}")
    if mask is not None and (mask.shape != fixed.shape or mask.dtype != bool):
        raise ValueError(f"mask: expected bool {fixed.shape}, found {mask.dtype} {mask.shape}")
    return tuple(np.ascontiguousarray(image, np.float32) for image in (fixed, moving))


def _as_array(image: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return (image.float() if image.is_floating_point() else image).numpy()
    return np.asarray(image)


def colored(grey: Tensor, scale: Tensor) -> Tensor:
    """Show grey images (B, 1, H, W) in [0, 1] in the colours (256, 3) of a scale: (B, 3, H, W)."""
    levels = (grey[:, 0] * (len(scale) - 1)).round().long()
    return scale[levels].permute(0, 3, 1, 2).contiguous()


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
    fixed = fixed[..., None] if fused.ndim == 3 else fixed
    seen_fused, seen_aligned = (seen[..., None] if image.ndim == 3 else seen for image in (fused, aligned))
    return np.where(seen_fused, fused, fixed), np.where(seen_aligned, aligned, np.float32(0))


def mean_in_head(lengths: Tensor | None, aligned: Tensor) -> float | None:
    """Average lengths (1, 1, H, W) in the head that an aligned image (1, 1, H, W) shows; None without any."""
    if lengths is None:
        return None
    head = as_weight(foreground(aligned, tuple(lengths.shape[2:])))
    return masked_means(lengths.to(head.device), head).item()


def maps_of(output: Output, expected: Tensor | None, mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Collect the maps (H, W) that explain an alignment, by their name in `evaluation.map_styles.MAPS`."""
    names = "entropy_fixed", "entropy_moving", "entropy_difference", "gate", "reliability", "consistency"
    maps = {name: getattr(output, name) for name in names} | {"jacobian": jacobian_determinant(output.flow)}
    if expected is not None:
        maps["expected_error"] = expected
    maps = {name: map_[0, 0].cpu().numpy() for name, map_ in maps.items()}
    if mask is not None:
        maps["gate"] = np.where(mask, np.float32(0), maps["gate"])
    return maps
