"""How a pair is shown to the registration: the part of the frame where the head is, at the scale of the training.

The network has learned on frames of 256 px that a head nearly fills, with square pixels. Where a head stands small in a
wide frame, or a frame's size is far from every power of two of 256 px, matching windows and displacements would be of
another size than those it knows.
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
"""Length below which what was found is no head."""

SMALL_ALONE = 0.6
"""The same for a single image in a frame as in training: it may show the top of a head. Of the atlas 97 % are above."""

USUAL, USUAL_LONGEST = 0.84, 0.95
"""Mean length in the atlas, and the longest of some slices of one origin."""

KNOWN_SIZE = 1.15
"""Factor between a frame's mean side and a power of two times `TRAINED_SIDE` up to which it is shown as it is."""

SQUARE = 1.03
"""Factor between a pixel's sides up to which it counts as square."""

SIDE_STEP = 8
"""Sides shown are multiples of it, px."""


class View(NamedTuple):
    """A rectangle of the frame and the size at which it is shown.

    Attributes:
        top, left, height, width: px of the frame.
        size: height and width shown, px.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def show(self, image: Tensor) -> Tensor:
        """(B, C, H, W) of the frame -> (B, C, *size)."""
        part = image[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return F.interpolate(part, self.size, mode="bilinear", antialias=True)

    def enlarge(self, flow: Tensor, frame: tuple[int, int]) -> Tensor:
        """The displacement field of the whole frame: what was found in the view, beyond it as at its border.

        Args:
            flow: (B, 2, *size), px of the view.
            frame: height and width of the frame.

        Returns:
            (B, 2, *frame), px of the frame.
        """
        height, width = frame
        beside = (self.left, width - self.left - self.width, self.top, height - self.top - self.height)
        return F.pad(resize_flow(flow, (self.height, self.width)), beside, mode="replicate")

    def enlarge_lengths(self, map_: Tensor, frame: tuple[int, int]) -> Tensor:
        """As `enlarge`, of lengths: (B, 1, *size), px of the view -> (B, 1, *frame), px of the frame."""
        return self.enlarge(map_.repeat(1, 2, 1, 1), frame).mean(dim=1, keepdim=True)


def choose_view(fixed: np.ndarray, aspect: float = 1.0, longest: float | None = None) -> View | None:
    """How a pair is to be shown, by its fixed image; None where the network takes the frame as it is.

    Args:
        fixed: float32 (H, W) in [0, 1], an MRI, in which the head is all that is to be seen.
        aspect: height of a pixel over its width.
        longest: the largest `head_length` among several images of one origin, which are then shown at one scale: the
            top of a head is small in any frame. None where this image stands alone.
    """
    frame, box = fixed.shape, head_box(fixed)
    pixel = math.sqrt(aspect), 1 / math.sqrt(aspect)  # a pixel's sides, in units of a square one of its area
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
    # In steps, as `inference.openvino_model` compiles a graph for each size.
    scale = max(TRAINED_SIDE / sides.mean(), MIN_SIDE / sides.min())
    size = tuple(SIDE_STEP * round(scale * side / SIDE_STEP) for side in sides)
    return View(*start, *part, size)
