"""What users have marked on the two images of a pair: landmarks and label maps, which score a registration."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.pairs import PairFiles
from evaluation.metrics.overlap import dice_of_labels
from utils.files import FileError
from utils.geometry.fit import Fit
from utils.imaging.images import ImageError, read_image
from utils.imaging.label_maps import carry_labels, read_label_map
from utils.landmarks import carry_points, read_landmark_pair

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The same points in the fixed and in the moving image: (N, 2) as (x, y) in px of each image's file."""

Maps = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Label maps of the fixed and the moving image, each of its size."""


def read_points(pair: PairFiles, size: tuple[int, int]) -> Points | None:
    """Read the landmarks of a pair; None where it has none.

    Args:
        size: height and width of the fixed image.

    Raises:
        FileError: as of `utils.landmarks.read_landmark_pair`.
    """
    if pair.fixed_landmarks is None:
        return None
    sizes = size, read_image(pair.moving).shape
    return read_landmark_pair((pair.fixed_landmarks, pair.moving_landmarks), sizes=sizes)


def read_maps(pair: PairFiles, size: tuple[int, int]) -> Maps | None:
    """Read the label maps of a pair; None where it has none.

    Raises:
        FileError: one cannot be used, or has not the size of its image.
    """
    if pair.fixed_segmentation is None:
        return None
    fixed, moving = pair.fixed_segmentation, pair.moving_segmentation
    maps = read_label_map(fixed), read_label_map(moving)
    _check_size(maps[0], fixed, size, pair.fixed)
    _check_size(maps[1], moving, read_image(pair.moving).shape, pair.moving)
    if not any(x.any() for x in maps):
        raise FileError.at(fixed, "labels above 0 in it or in the moving image's", "none")
    return maps


def read_mask(pair: PairFiles, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Read the mask (H, W) of a pair, True where nothing is to be matched; None where it has none.

    Raises:
        FileError: it cannot be read, or has not the size of the fixed image.
    """
    if pair.mask is None:
        return None
    # Not as an image: compression with losses leaves values above 0 around what was drawn.
    mask = read_label_map(pair.mask) > 0
    _check_size(mask, pair.mask, size, pair.fixed)
    return mask


def score_marks(pair: PairFiles, flow: NDArray[np.float32], fit: Fit | None) -> dict[str, float]:
    """Score a displacement field by the marks of a pair.

    Args:
        flow: (2, H, W), px of the frame of the fixed image.
        fit: of the moving image.

    Returns:
        `tre` and `tre_before` where there are landmarks, the mean distance in px of the fixed image; `dice`,
        `dice_before` and `dice_LABEL` where there are label maps.

    Raises:
        FileError: a file cannot be used.
    """
    size, scores = flow.shape[1:], {}
    points = read_points(pair, size)
    if points:
        fixed, moving = points
        moving = fit.points_to_frame(moving) if fit else moving
        scores |= {"tre": _distance(carry_points(fixed, flow), moving), "tre_before": _distance(fixed, moving)}
    maps = read_maps(pair, size)
    if maps:
        still = np.zeros_like(flow)
        flows = {name: fit.to_original(x) if fit else x for name, x in (("dice", flow), ("dice_before", still))}
        carried = {name: dice_of_labels(carry_labels(maps[1], x), maps[0]) for name, x in flows.items()}
        scores |= dice_columns(carried["dice"], carried["dice_before"])
    return scores


def dice_columns(after: Mapping[int, float], before: Mapping[int, float]) -> dict[str, float]:
    """Name Dice coefficients by label as columns of metrics.csv, with their means."""
    means = {name: float(np.mean(list(x.values()))) for name, x in (("dice", after), ("dice_before", before))}
    return means | {f"dice_{label}": value for label, value in after.items()}


def _distance(carried: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(carried - truth, axis=1).mean())


def _check_size(array: NDArray, path: Path, size: tuple[int, int], like: Path) -> None:
    if array.shape != size:
        expected = f"the size of {os.fspath(like)}, {size[1]} x {size[0]} (width x height)"
        raise ImageError.at(path, expected, f"{array.shape[1]} x {array.shape[0]}")
