"""Show a pair to the registration at the scale of the training.

The network was trained on images of 256 px that a head nearly fills, with square pixels. If the head is small in its
image, or the image size is far from 256 px times a power of two, the part around the head is cut out and resized.
Otherwise matching windows and displacements would differ from those of the training.
"""

import math
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from models.edarfusion import TRAINED_SIDE
from utils.geometry.head_box import SMALL, head_box, head_length
from utils.geometry.warp import resize_flow
from utils.imaging.images import MIN_SIDE

SPECK = 0.25
"""Smallest `head_length` of a head. Smaller pieces of tissue are specks."""

SMALL_ALONE = 0.6
"""Length below which the head of a single image of usual size is enlarged. It may show the top of a head; 97 % of the
atlas are above."""

USUAL, USUAL_LONGEST = 0.84, 0.95
"""Mean length in the atlas, and the longest among several slices of one origin."""

KNOWN_SIZE = 1.15
"""Largest factor between an image's mean side and a power of two times `TRAINED_SIDE` of an image of usual size."""

SQUARE = 1.03
"""Largest factor between the sides of a square pixel."""

SIDE_STEP = 8
"""Divisor of the sides that are shown, px."""


class View(NamedTuple):
    """A rectangle of an image and the size at which it is shown.

    Attributes:
        top, left, height, width: px of the image.
        size: height and width shown, px.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def show(self, image: Tensor) -> Tensor:
        """Cut out and resize an image: (B, C, H, W) -> (B, C, *size)."""
        part = image[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return F.interpolate(part, self.size, mode="bilinear", antialias=True)

    def enlarge(self, flow: Tensor, frame: tuple[int, int]) -> Tensor:
        """Extend a displacement field of the view to the whole image, repeating its border.

        Args:
            flow: (B, 2, *size), px of the view.
            frame: height and width of the image.

        Returns:
            (B, 2, *frame), px of the image.
        """
        height, width = frame
        beside = (self.left, width - self.left - self.width, self.top, height - self.top - self.height)
        return F.pad(resize_flow(flow, (self.height, self.width)), beside, mode="replicate")

    def enlarge_lengths(self, map_: Tensor, frame: tuple[int, int]) -> Tensor:
        """Extend a map of lengths (B, 1, *size), px of the view, to (B, 1, *frame), px of the image."""
        return self.enlarge(map_.repeat(1, 2, 1, 1), frame).mean(dim=1, keepdim=True)


def choose_view(fixed: np.ndarray, aspect: float = 1.0, longest: float | None = None) -> View | None:
    """Choose how to show a pair, by its fixed image. None shows it unchanged.

    Args:
        fixed: float32 (H, W) in [0, 1], an MRI that shows nothing but the head.
        aspect: height of a pixel over its width.
        longest: the largest `head_length` among several images of one origin. They are shown at one scale, because the
            top of a head is small in any image. None for a single image.
    """
    frame, box = fixed.shape, head_box(fixed)
    pixel = math.sqrt(aspect), 1 / math.sqrt(aspect)  # sides of a pixel, relative to a square one of the same area
    across = float(np.multiply(frame, pixel).mean())
    octaves = math.log2(across / TRAINED_SIDE)
    known = abs(octaves - round(octaves)) < math.log2(KNOWN_SIZE) and abs(math.log2(aspect)) < math.log2(SQUARE)
    length, usual = (head_length(fixed, aspect), USUAL) if longest is None else (longest, USUAL_LONGEST)
    part = frame
    if SPECK < length < (SMALL_ALONE if known and longest is None else SMALL):
        part = tuple(min(n, round(across * length / usual / p)) for n, p in zip(frame, pixel, strict=True))
    elif known:
        return None
    middle = (0.5, 0.5) if box is None else [(first + last) / 2 for first, last in box]
    start = (min(max(round(m * n - k / 2), 0), n - k) for m, n, k in zip(middle, frame, part, strict=True))
    sides = np.multiply(part, pixel)
    # Few sizes, because `inference.openvino_model` compiles a graph for each.
    scale = max(TRAINED_SIDE / sides.mean(), MIN_SIDE / sides.min())
    size = tuple(SIDE_STEP * round(scale * side / SIDE_STEP) for side in sides)
    return View(*start, *part, size)
