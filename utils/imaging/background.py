"""A constant that stands for no measurement, such as 65535 or -1e30 beyond the field of view, where no tag names it."""

import numpy as np
from numpy.typing import NDArray

LEAST_SHARE = 0.01
"""Share of the voxels that such a constant fills at least. Hot spots and metal are rarer, and lie inside."""

LEAST_CORNERS = 4
"""Number of the volume's eight corners that it fills at least."""

LEAST_LEVELS = 64
"""Number of other values, in a sample, below which a volume is a label map, whose labels may be any number."""

_SAMPLE = 100_000


def without_constant(array: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """Replace a constant that fills the border and lies far from all other values by the lowest of these.

    Far means further from the nearest other value than these lie apart among themselves. So the largest value of a
    scanner's range, which others come near to, is left alone. So is 0, the usual background.

    Args:
        array: (X, Y, Z), finite.

    Returns:
        The array, a new one where anything was replaced, and a note for the user, "" for nothing.
    """
    corners = array[np.ix_(*((0, -1) for _ in range(3)))].ravel()
    for value in (float(array.min()), float(array.max())):
        if np.count_nonzero(corners == value) < LEAST_CORNERS or value == 0:
            continue
        constant = array == value
        others = array[~constant]
        if constant.mean() < LEAST_SHARE or not others.size:
            continue
        low, high = float(others.min()), float(others.max())
        far = max(low - value, value - high) > high - low
        if far and len(np.unique(others[:: max(1, len(others) // _SAMPLE)])) >= LEAST_LEVELS:
            note = (
                f"expected values from {low:g} to {high:g} as in most of it, found {value:g} in {constant.mean():.1%} "
                "of the voxels, at the border; they count as background"
            )
            return np.where(constant, others.min(), array), note
    return array, ""
