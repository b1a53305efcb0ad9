"""Sampling of images and displacement fields. No other module builds a sampling grid.

Convention: `flow` is (B, 2, H, W), channel 0 is x (columns), channel 1 is y (rows), in pixels of its own grid,
and `aligned(p) = moving(p + flow(p))`.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from kornia.image import image_to_tensor, tensor_to_image
from torch import Tensor

from utils.geometry.field_of_view import field_of_view
from utils.geometry.fit import before_sampling


def _centres(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns (W,) and rows (H,) of a grid (..., H, W) for `_sample`: pixel i is at (2 i + 1) / size - 1."""
    height, width = grid.shape[-2:]
    x, y = (torch.linspace(1 / size - 1, 1 - 1 / size, size, device=grid.device) for size in (width, height))
    return x, y


def _sample(image: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(image, places, mode="bilinear", padding_mode="border", align_corners=False)


def _by_axis(flow: Tensor, x: float, y: float) -> Tensor:
    """Scale both components of a flow (B, 2, H, W). A tensor of the two numbers would have to be copied to a GPU."""
    return flow * x if x == y else torch.stack((flow[:, 0] * x, flow[:, 1] * y), dim=1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Sample `image` at `p + flow(p)`, bilinear, with border padding.

    Args:
        image: (B, C, H, W), any real values.
        flow: (B, 2, H, W), pixels.

    Returns:
        (B, C, H, W), float32. A displacement of exactly zero returns the pixel unchanged.

    Raises:
        ValueError: the shapes do not match.
    """
    if image.ndim != 4 or flow.shape != (image.shape[0], 2, *image.shape[2:]):
        raise ValueError(
            f"warp: expected image (B, C, H, W) and flow (B, 2, H, W) of one size, "
            f"found {tuple(image.shape)} and {tuple(flow.shape)}"
        )
    height, width = image.shape[2:]
    image, flow = image.float(), flow.float()
    x, y = _centres(flow)
    grid = torch.stack((x + flow[:, 0] * (2 / width), y[:, None] + flow[:, 1] * (2 / height)), dim=-1)
    sampled = _sample(image, grid)
    # Normalised coordinates round to about 1e-5 px. Zero flow must be the identity, gradients included.
    still = (flow[:, :1] == 0) & (flow[:, 1:] == 0)
    if torch.is_grad_enabled():
        image = image.detach() + (sampled - sampled.detach())
    return torch.where(still, image, sampled)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a displacement field to `size` = (H, W) and scale its values to pixels of the new grid.

    Args:
        flow: (B, 2, h, w), pixels of the (h, w) grid.
        size: new height and width.

    Returns:
        (B, 2, H, W), pixels of the new grid.
    """
    height, width = flow.shape[2:]
    if (height, width) == tuple(size):
        return flow
    # Convolutions leave their two channels side by side, which takes four times as long to enlarge.
    scaled = _by_axis(flow.float(), size[1] / width, size[0] / height).contiguous()
    return F.interpolate(scaled, size=size, mode="bilinear", align_corners=False)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Compose two displacement fields: `warp(warp(x, first), second) = warp(x, compose(first, second))`.

    Args:
        first: (B, 2, H, W), pixels, applied to the image first.
        second: (B, 2, H, W), pixels, applied to the result.

    Returns:
        (B, 2, H, W): `second(p) + first(p + second(p))`, pixels.
    """
    return second + warp(first, second)


def invert(flow: Tensor, iterations: int = 8, step: float = 1.0) -> Tensor:
    """Invert a smooth displacement field by fixed-point iteration v <- -u(p + v(p)) (Chen et al. 2008).

    Args:
        flow: (B, 2, H, W), pixels. With a step of 1 the iteration converges where the field's derivative stays below 1.
        iterations: with 8, a deformation of the benchmark is exact to 0.05 px everywhere. The wide ones of training are
            exact to 0.0003 px on average; one in a hundred is off by 1 px or more somewhere.
        step: share of each change that is made. Smaller steps converge on steeper fields: a half where nothing folds
            and no place is stretched more than fourfold. They need more iterations.

    Returns:
        (B, 2, H, W), pixels: `compose(flow, invert(flow))` is near zero away from the border.
    """
    # All in sampling units: each operation counts, as every pair is inverted on a small grid.
    height, width = flow.shape[2:]
    places = torch.stack(torch.meshgrid(*_centres(flow), indexing="xy"), dim=-1)
    flow = _by_axis(flow.float(), 2 / width, 2 / height)
    inverse = -flow
    for _ in range(iterations):
        target = -_sample(flow, places + inverse.permute(0, 2, 3, 1))
        inverse = target if step == 1 else torch.lerp(inverse, target, step)
    return _by_axis(inverse, width / 2, height / 2)


def invert_steep(flow: Tensor) -> Tensor:
    """Invert a displacement field (B, 2, H, W), px, that is steep in places, in many small steps of `invert`."""
    return invert(flow, iterations=60, step=0.5)


def apply_flow(image: np.ndarray, flow: np.ndarray, background: float | None = None) -> np.ndarray:
    """Warp an image.

    Args:
        image: float32 (H, W) or (H, W, 3).
        flow: float32 (2, h, w), px of the image: the result at p is the image at p + flow(p).
        background: value beyond the field of view of the image; None repeats its border.

    Returns:
        (h, w) or (h, w, 3). A larger image is blurred first, as far as the flow leaves pixels out.
    """
    if image.shape[:2] == flow.shape[1:]:
        warped = tensor_to_image(warp(image_to_tensor(image, keepdim=False), torch.from_numpy(flow)[None]))
        inside = field_of_view(flow)
    else:
        rows, columns = np.indices(flow.shape[1:], dtype=np.float32) + flow[::-1]
        scale = float(np.gradient(rows, axis=0).mean() + np.gradient(columns, axis=1).mean()) / 2
        blurred = before_sampling(image, scale)
        warped = cv2.remap(blurred, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (rows >= -0.5) & (rows <= image.shape[0] - 0.5) & (columns >= -0.5) & (columns <= image.shape[1] - 0.5)
    if background is not None:
        warped[~inside] = background
    return warped
