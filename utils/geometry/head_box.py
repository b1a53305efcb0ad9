"""Bounding box and size of the head in an MRI."""

import math

import cv2
import numpy as np
from scipy import ndimage

TISSUE, BRIGHT_SHARE = 0.08, 0.21
"""Mean intensity above which a block of pixels counts as tissue. The second value is for dark images, as a share of the
99th percentile of the blocks. That percentile is at least 0.39 in the atlas."""

SMALL = 0.8
"""`head_length` below which a head is small and is shown enlarged."""

BACKGROUND_FACTOR = 3.0
"""Factor by which tissue in a dark image exceeds the darkest places. Without such a difference the image is noise."""

_GRID, _COARSE = 64, 16  # blocks along each side of the image
_GAP = 7  # widest gap, in blocks, within one head: the skull is dark around the brain


def head_box(image: np.ndarray) -> list[tuple[float, float]] | None:
    """Find the first and last row and column of the largest piece of tissue.

    Args:
        image: float32 (H, W) in [0, 1].

    Returns:
        Rows, then columns, as shares of height and width; None without tissue.
    """
    blocks = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    least = BRIGHT_SHARE * np.percentile(blocks, 99)
    if least < TISSUE:
        # Larger blocks: in small images noise varies as much as tissue.
        coarse = cv2.resize(image, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
        background = BACKGROUND_FACTOR * np.percentile(coarse, 5)
        if coarse.max() <= background:
            return None
        least = max(least, background)
    tissue = blocks > min(TISSUE, least)
    near = np.pad(tissue, _GAP)
    pieces, count = ndimage.label(ndimage.binary_closing(near, np.ones((_GAP, _GAP)))[_GAP:-_GAP, _GAP:-_GAP])
    if not count:
        return None
    box = ndimage.find_objects(pieces)[np.bincount(pieces.ravel())[1:].argmax()]
    return [(side.start / _GRID, side.stop / _GRID) for side in box]


def head_length(image: np.ndarray, aspect: float = 1.0) -> float:
    """Return the longer side of the head over the mean side of the image, or 0 without tissue.

    Args:
        image: float32 (H, W) in [0, 1].
        aspect: height of a pixel over its width.
    """
    box = head_box(image)
    if box is None:
        return 0.0
    sides = np.multiply(image.shape, (math.sqrt(aspect), 1 / math.sqrt(aspect)))
    return float(max(side * (last - first) for side, (first, last) in zip(sides, box, strict=True)) / sides.mean())
