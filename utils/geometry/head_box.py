"""Where the head stands in the frame of an MRI."""

import math

import cv2
import numpy as np
from scipy import ndimage

TISSUE, SHARE = 0.08, 0.21
"""Mean intensity above which a block of pixels counts as tissue; of a dark image, as a share of the 99th percentile of
its blocks, which is at least 0.39 in the atlas."""

SMALL = 0.8
"""`head_length` below which a head is small, and is shown enlarged; longer ones make no difference."""

BACKGROUND = 3.0
"""In a dark image tissue is also that many times as bright as the darkest places, and nothing is where none is: what
scatters less is noise."""

_GRID, _COARSE = 64, 16  # blocks along each side of the frame
_GAP = 7  # blocks up to which tissue beside tissue belongs to one head: the skull shows dark around the brain


def head_box(image: np.ndarray) -> list[tuple[float, float]] | None:
    """First and last row, then first and last column, of the largest piece of tissue; None where there is none.

    Args:
        image: float32 (H, W) in [0, 1].

    Returns:
        Shares of height and width.
    """
    blocks = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    least = SHARE * np.percentile(blocks, 99)
    if least < TISSUE:
        # Over larger blocks, as noise in small images would scatter as much as tissue.
        coarse = cv2.resize(image, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
        background = BACKGROUND * np.percentile(coarse, 5)
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
    """The longer side of the head over the mean side of the frame; 0 where there is no tissue.

    Args:
        image: float32 (H, W) in [0, 1].
        aspect: height of a pixel over its width.
    """
    box = head_box(image)
    if box is None:
        return 0.0
    sides = np.multiply(image.shape, (math.sqrt(aspect), 1 / math.sqrt(aspect)))
    return float(max(side * (last - first) for side, (first, last) in zip(sides, box, strict=True)) / sides.mean())
