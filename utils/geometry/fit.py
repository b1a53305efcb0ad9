"""Bring an image into the frame of another one that has another size, so that the heads in both are about alike."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.geometry.head_box import head_box

MOST = 4.0
"""Factor by which the heads' scale may differ from that of the frames. Beyond it, one of them is no head."""


class Fit(NamedTuple):
    """Where a pixel p of the frame lies in the image that is brought there: scale * p + (x, y), in its pixels."""

    scale: float
    x: float
    y: float

    def apply(self, image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Show an image in the frame.

        Args:
            image: (H, W) or (H, W, 3).
            size: height and width of the frame.

        Returns:
            (*size) or (*size, 3); finer pixels are averaged. It is black beyond the image: a border that goes on would
            draw out what touches it, such as the table of a scanner, to bars.
        """
        return self._sample(before_sampling(image, self.scale), size, cv2.BORDER_CONSTANT)

    def to_original(self, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert a displacement field for the fitted image to one for the original image.

        Args:
            flow: (2, H, W), px of the frame.

        Returns:
            (2, H, W): aligned(p) = original(p + flow(p)), in the original image's pixels.
        """
        points = _points(flow.shape[1:])
        return (np.float32(self.scale) * (points + flow) + self._shift() - points).astype(np.float32)

    def to_frame(self, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert a displacement field for the original image to one for the fitted image, the way back.

        Args:
            flow: (2, H, W): aligned(p) = original(p + flow(p)), in the original image's pixels.

        Returns:
            (2, H, W), px of the frame.
        """
        points = _points(flow.shape[1:])
        return ((points + flow - self._shift()) / np.float32(self.scale) - points).astype(np.float32)

    def inverse_to_original(self, inverse: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Convert an inverse displacement field, in the frame, to one on the original image's grid.

        Args:
            inverse: (2, H, W), px of the frame: the fitted image at p shows what the fixed one shows at p + inverse(p).
            size: height and width of the original image.

        Returns:
            (2, *size): the original image at q shows what the fixed image shows at q + result(q), in its pixels.
        """
        back = Fit(1 / self.scale, -self.x / self.scale, -self.y / self.scale)
        sampled = np.moveaxis(back._sample(np.moveaxis(inverse, 0, -1), size), -1, 0)
        points = _points(size)
        return ((points - self._shift()) / np.float32(self.scale) + sampled - points).astype(np.float32)

    def apply_to_flow(self, flow: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Show a displacement field on the original image's grid, in its pixels, in the frame.

        Args:
            flow: (2, H, W).
            size: height and width of the frame.

        Returns:
            (2, *size), px of the frame.
        """
        return np.moveaxis(self._sample(np.moveaxis(flow, 0, -1), size), -1, 0) / np.float32(self.scale)

    def points_to_frame(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (N, 2), as (x, y) in px of the original image, to those of the frame."""
        return (points - [self.x, self.y]) / self.scale

    def _shift(self) -> NDArray[np.float32]:
        return np.array([self.x, self.y], np.float32).reshape(2, 1, 1)

    def _sample(
        self, image: NDArray[np.float32], size: tuple[int, int], border: int = cv2.BORDER_REPLICATE
    ) -> NDArray[np.float32]:
        matrix = np.array([[self.scale, 0, self.x], [0, self.scale, self.y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = np.ascontiguousarray(image, np.float32)
        return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=border)


def _points(size: tuple[int, int]) -> NDArray[np.float32]:
    """Coordinates x, y of the pixels of a grid: (2, *size)."""
    return np.indices(size, dtype=np.float32)[::-1]


def before_sampling(image: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Blur an image that is about to be sampled at every `scale`-th pixel, so that no pixel is left out.

    Args:
        image: (H, W) or (H, W, 3).
        scale: distance of the samples, px. Up to 1.05 the image stays as it is.

    Returns:
        The image in the same shape, blurred by a Gaussian of 0.5 * sqrt(scale^2 - 1) px.
    """
    return cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(scale**2 - 1)) if scale > 1.05 else image


def fit_frame(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> Fit:
    """Find where the moving image lies in the fixed one's frame, roughly, with its aspect kept.

    The boxes around the heads get one middle and one size. Where one of the images shows no head, or one that cannot be
    right, the frames get one middle, and the whole moving image is shown.

    Args:
        moving, fixed: (H, W) in [0, 1].
    """
    boxes = [head_box(image) for image in (moving, fixed)]
    frames = fit_sizes(moving.shape, fixed.shape)
    if None in boxes:
        return frames
    sides = [
        [(last - first) * side for (first, last), side in zip(box, image.shape, strict=True)]
        for box, image in zip(boxes, (moving, fixed), strict=True)
    ]
    scale = float(np.sqrt(np.prod(sides[0]) / np.prod(sides[1])))
    if not 1 / MOST <= scale / frames.scale <= MOST:
        return frames
    (y, x), (v, u) = (
        [(first + last) / 2 * side - 0.5 for (first, last), side in zip(box, image.shape, strict=True)]
        for box, image in zip(boxes, (moving, fixed), strict=True)
    )
    return Fit(scale, x - scale * u, y - scale * v)


def fit_sizes(moving: tuple[int, int], fixed: tuple[int, int]) -> Fit:
    """Find where an image lies in a frame that shows all of it: by height and width alone."""
    scale = max(m / f for m, f in zip(moving, fixed, strict=True))
    y, x = ((m - 1) / 2 - scale * (f - 1) / 2 for m, f in zip(moving, fixed, strict=True))
    return Fit(scale, x, y)
