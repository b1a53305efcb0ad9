"""Turn slices into a volume: one image per place, at even distances."""

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.imaging.images import ImageError
from utils.messages import counted

UNEVEN = 0.1
"""Largest deviation of the step from one slice to the next, as a share of the mean step, that counts as even."""

NO_STEP = 0.01
"""Step, as a share of the usual one, up to which two slices lie in one place."""

LARGEST_GAP = 20.0
"""Distance between slices, mm, beyond which nothing is interpolated: too much anatomy would be invented."""


class Places(NamedTuple):
    """Where the slices of a volume lie.

    Attributes:
        step: (3,), mm: from one slice of the volume to the next.
        at: (S,), increasing: for each slice of the volume, where it lies among those that were taken, such as 2.5 for
            halfway between the third and the fourth; None where they are taken as they are.
        note: what the user should know of it, "" for nothing.
    """

    step: NDArray[np.float64]
    at: NDArray[np.float64] | None = None
    note: str = ""

    def apply(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate slices as taken (T, ...) to slices of the volume (S, ...), linearly."""
        if self.at is None:
            return slices
        below = np.minimum(self.at.astype(int), len(slices) - 2)
        share = (self.at - below).astype(np.float32).reshape(-1, *(1,) * (slices.ndim - 1))
        return (1 - share) * slices[below] + share * slices[below + 1]


def places_of(path: str | os.PathLike, positions: NDArray[np.float64], names: list[str]) -> Places:
    """Find even places for slices, which may lie at uneven distances along one line.

    Args:
        path: of the series, for messages.
        positions: (T, 3), mm, in order, at least two; the line may be oblique to the slices (a tilted gantry).
        names: (T,), of the slices' files.

    Raises:
        ImageError: several slices lie in one place, or beside the line of the others, or more than `LARGEST_GAP` apart.
    """
    steps = np.diff(positions, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    _check_one_a_place(path, lengths, names)
    mean = steps.mean(axis=0)
    size = float(np.linalg.norm(mean))
    deviation = np.linalg.norm(steps - mean, axis=1)
    if deviation.max() <= UNEVEN * size:
        return Places(mean)
    line = mean / size
    along = (positions - positions[0]) @ line
    beside = np.linalg.norm(positions - positions[0] - along[:, None] * line, axis=1)
    if beside.max() > UNEVEN * size:
        state = f"{names[int(beside.argmax())]} {beside.max():.3f} mm beside it"
        raise ImageError.at(path, "slices along one straight line", state)
    widest, narrowest = int(lengths.argmax()), int(lengths.argmin())
    gap = f"{lengths[widest]:.3f} mm from {names[widest]} to {names[widest + 1]}"
    if lengths[widest] > LARGEST_GAP:
        raise ImageError.at(path, f"slices no more than {LARGEST_GAP:g} mm apart", gap)
    step = float(np.median(lengths))
    even = np.arange(int(along[-1] / step + 1e-6) + 1) * step
    note = (
        f"expected evenly spaced slices, found {lengths[narrowest]:.3f} mm from {names[narrowest]} to "
        f"{names[narrowest + 1]} and {gap}; interpolated to one every {step:.3f} mm"
    )
    return Places(line * step, np.interp(even, along, np.arange(len(along))), note)


def choose_frames(path: str | os.PathLike, count: int, number: int | None) -> tuple[range, str]:
    """Choose the images of one place to use, and a note for the user.

    Args:
        path: for messages.
        count: how many there are.
        number: one of them, from 1; None for the mean of all.

    Returns:
        Their numbers, from 0, and a note, "" for nothing.

    Raises:
        ImageError: there is no such image.
    """
    if number is None:
        note = f"expected one volume, found {count} frames in time; their mean is taken (--frame N takes one)"
        return range(count), note if count > 1 else ""
    if not 1 <= number <= count:
        raise ImageError.at(path, f"frame {number} (--frame)", f"{counted(count, 'frame')}")
    return range(number - 1, number), ""


def same_place(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the places, from 0, at which slices lie: (T,).

    Args:
        positions: (T, 3), mm, in order along the slices' normal.
    """
    lengths = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return np.insert(np.cumsum(lengths > _no_step(lengths)), 0, 0)


def _no_step(lengths: NDArray[np.float64]) -> float:
    steps = lengths[lengths > 1e-6]
    return NO_STEP * float(np.median(steps)) if steps.size else 0.0


def _check_one_a_place(path: str | os.PathLike, lengths: NDArray[np.float64], names: list[str]) -> None:
    none = lengths <= _no_step(lengths)
    if not none.any():
        return
    first = np.flatnonzero(none & ~np.insert(none[:-1], 0, False))  # where a run of such steps begins
    several = dict.fromkeys(names[first[0] : first[0] + 2])
    state = f"{counted(len(first), 'place')} with several, such as {' and '.join(several)}"
    raise ImageError.at(path, "one slice a place (one time, one acquisition)", state)
