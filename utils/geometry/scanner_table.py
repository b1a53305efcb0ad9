"""Find what only the scanner's table shows in a CT: the shell of a head rest or couch beside the head.

A piece of table is thin and long, hangs together with no head, and reaches away from both heads. Whatever fails one of
these is taken for anatomy and stays: skin that dark fat parts from the skull lies close to the head, shoulders are
thick, ears are near.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.geometry.head_box import TISSUE

THICKEST = 0.04
"""Radius of the largest circle that fits into a piece of table, as a share of the head's length: a shell of 15 mm."""

LONGEST = 3.0
"""Extent of a piece of table over its thickness, at least."""

GAP = 0.1
"""Widest gap within a table, as a share of the head's length."""

LEAST_FAR = 0.1
"""Distance from both heads that some point of a piece of table has, as a share of the head's length: about 20 mm."""

LEAST_BESIDE = 0.9
"""Share of a piece of table that lies outside both heads."""

_BLUR = 2  # px around a piece, where its blur reaches


def scanner_table(
    moving: NDArray[np.float32], fixed: NDArray[np.float32], length: float | None = None
) -> NDArray[np.bool_]:
    """Mark the scanner's table in a CT that is aligned to an MRI.

    Args:
        moving, fixed: (H, W) in [0, 1].
        length: of the longest head among images of one origin, px; None for that of the fixed image alone.

    Returns:
        bool (H, W); False everywhere where no length is given and the fixed image shows no head.
    """
    table = np.zeros(moving.shape, bool)
    tissue = (moving > TISSUE).astype(np.uint8)
    fixed_head = _head(fixed, 0)
    if length is None:
        length = float(np.ptp(np.nonzero(fixed_head), axis=1).max() + 1) if fixed_head.any() else 0.0
    thickest = THICKEST * length
    if not thickest:
        return table
    heads = np.maximum(_head(fixed, thickest), _head(moving, thickest))
    beside = np.full(moving.shape, np.inf)
    if heads.any():
        beside = cv2.distanceTransform(1 - heads, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    depth = _depth(tissue)
    for box, piece in _pieces(tissue):
        away = beside[box][piece]
        apart = away.max() > LEAST_FAR * length and (away > 0).mean() >= LEAST_BESIDE
        table[box] |= piece & (apart and depth[box][piece].max() < thickest)
    # Coarse pixels show a shell as a row of specks.
    gap = np.ones((2 * round(GAP * length / 2) + 1,) * 2, np.uint8)
    for box, row in _pieces(cv2.dilate(table.astype(np.uint8), gap)):
        row &= table[box]
        extent = max(np.ptp(side) + 1 for side in np.nonzero(row))
        table[box][row] = extent >= LONGEST * 2 * depth[box][row].max()
    if not table.any():
        return table
    near = cv2.dilate(table.astype(np.uint8), np.ones((2 * _BLUR + 1,) * 2, np.uint8)) > 0
    return (near & (tissue == 0) | table) & (heads == 0)


def _pieces(mask: NDArray[np.uint8]) -> Iterator[tuple[tuple[slice, slice], NDArray[np.bool_]]]:
    """List the connected pieces of a mask: the box around each, and the piece in it."""
    count, pieces, boxes, _ = cv2.connectedComponentsWithStats(mask)
    for number in range(1, count):
        x, y, width, height, _ = boxes[number]
        box = np.s_[y : y + height, x : x + width]
        yield box, pieces[box] == number


def _depth(tissue: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the distance of each pixel of tissue from what is none, px; beyond the image there is none."""
    return cv2.distanceTransform(np.pad(tissue, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _head(image: NDArray[np.float32], thickest: float) -> NDArray[np.uint8]:
    """Fill the convex hull of the thickest piece of tissue, if it is thicker than that: (H, W), 0 or 1."""
    tissue = (image > TISSUE).astype(np.uint8)
    depth = _depth(tissue)
    if depth.max() <= thickest:
        return np.zeros_like(tissue)
    pieces = cv2.connectedComponents(tissue)[1]
    head = pieces == pieces.flat[depth.argmax()]
    outline = cv2.convexHull(np.argwhere(head)[:, ::-1].astype(np.int32))
    return cv2.fillConvexPoly(np.zeros_like(tissue), outline, 1)
