"""What users have marked on two volumes: a mask, landmarks and label maps."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from evaluation.metrics.overlap import dice_of_labels
from inference.marks import dice_columns
from utils.files import FileError
from utils.imaging.images import ImageError
from utils.imaging.resampling import affine_transform, distance_between, linear_part, resample_labels
from utils.imaging.volumes import Volume, read_volume
from utils.landmarks import read_landmark_pair

SAME_GRID = 0.5
"""Largest distance, mm, between equal voxels of a volume and of what is marked on it."""

_FLIP = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS


class VolumeMarks(NamedTuple):
    """Landmarks and label maps of two volumes.

    Attributes:
        points: the same points in the fixed and the moving space, (N, 3) each, RAS mm; None without any.
        maps: label maps of the fixed and the moving volume; None without any.
        mask: on the grid of the fixed file, above 0 where nothing is to be matched; None without one.
    """

    points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    maps: tuple[Volume, Volume] | None = None
    mask: Volume | None = None

    def score(self, fixed: Volume, before: sitk.Transform, after: sitk.Transform) -> dict[str, float]:
        """Score a registration.

        Args:
            fixed: the volume as it was read.
            before, after: point of the fixed space -> point of the moving space, LPS mm, without the registration and
                with it.

        Returns:
            `tre_mm` and `tre_mm_before`, the mean distance of landmarks in mm, and `tre` and `tre_before`, the same in
            voxels of the fixed volume; `dice`, `dice_before` and `dice_LABEL`. What is not marked is missing.
        """
        scores = {}
        if self.points:
            for suffix, transform in (("", after), ("_before", before)):
                scores |= _distances(*self.points, transform, fixed.slices_affine, suffix)
        if self.maps:
            like, carried = self.maps
            dice = (dice_of_labels(_carried(carried, like, x), like.slices) for x in (after, before))
            scores |= dice_columns(*dice)
        return scores


def read_marks(paths: Mapping[str, str | os.PathLike], fixed: Volume, moving: Volume) -> VolumeMarks:
    """Read what is marked on two volumes.

    Args:
        paths: by `data.pairs.MARKS`.
        fixed, moving: the volumes as they were read.

    Raises:
        FileError: a file cannot be used, or does not go with its volume.
    """
    points, maps, mask = None, None, None
    if "fixed_landmarks" in paths:
        points = _read_points((paths["fixed_landmarks"], paths["moving_landmarks"]), fixed, moving)
    if "fixed_segmentation" in paths:
        both = ("fixed", fixed), ("moving", moving)
        maps = tuple(_read_on_grid(paths[f"{role}_segmentation"], volume) for role, volume in both)
        if not any(map_.slices.any() for map_ in maps):
            raise FileError.at(paths["fixed_segmentation"], "labels above 0 in it or in the moving one", "none")
    if "mask" in paths:
        mask = _read_on_grid(paths["mask"], fixed)
        if (mask.slices > 0).all():
            raise FileError.at(paths["mask"], "a mask that leaves something to match", "one that is above 0 everywhere")
    return VolumeMarks(points, maps, mask)


def _read_points(
    paths: tuple[str | os.PathLike, str | os.PathLike], fixed: Volume, moving: Volume
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read points x, y, z in RAS mm, or i, j, k in voxels of the files' own arrays."""
    try:
        return read_landmark_pair(paths, ("x", "y", "z"))
    except FileError as error:
        try:
            indices = read_landmark_pair(paths, ("i", "j", "k"))
        except FileError:
            raise error from None
    return tuple(x @ v.affine[:3, :3].T + v.affine[:3, 3] for x, v in zip(indices, (fixed, moving), strict=True))


def _read_on_grid(path: str | os.PathLike, like: Volume) -> Volume:
    """Read whole numbers on the grid of a volume."""
    volume = read_volume(path)
    if volume.slices.shape != like.slices.shape:
        expected, state = ("{} slices of {} x {}".format(*np.take(x.slices.shape, (0, 2, 1))) for x in (like, volume))
        raise ImageError.at(path, f"the grid of its volume, {expected}", state)
    if volume.placed and like.placed and (distance := distance_between(volume, like)) > SAME_GRID:
        raise ImageError.at(path, "the place in space of its volume", f"one up to {distance:.1f} mm off")
    if (volume.slices != np.rint(volume.slices)).any() or volume.slices.min() < 0:
        raise ImageError.at(path, "whole numbers from 0 (labels)", "others")
    return volume._replace(affine=like.affine, forms=like.forms)


def _distances(
    fixed: NDArray, moving: NDArray, transform: sitk.Transform, affine: NDArray, suffix: str
) -> dict[str, float]:
    """Average the distance of points carried to the moving space from where they belong, mm and voxels."""
    carried = np.array([transform.TransformPoint((point * _FLIP).tolist()) for point in fixed]) * _FLIP
    missed = carried - moving
    # In voxels it counts along the axes of the fixed volume.
    turn = np.linalg.inv(linear_part(transform, fixed.mean(axis=0))[:3, :3] @ affine[:3, :3])
    lengths = {"tre": np.linalg.norm(missed @ turn.T, axis=1), "tre_mm": np.linalg.norm(missed, axis=1)}
    return {name + suffix: float(values.mean()) for name, values in lengths.items()}


def _carried(labels: Volume, like: Volume, transform: sitk.Transform) -> NDArray[np.float32]:
    try:
        return resample_labels(labels, like, transform).slices
    except ValueError:
        return np.zeros_like(like.slices)  # the headers put one beside the other


def slice_by_slice(fixed: Volume, moving: Volume) -> sitk.Transform:
    """Make the transform that takes a voxel of one volume to the same voxel of another one of its shape, LPS mm."""
    return affine_transform(moving.slices_affine @ np.linalg.inv(fixed.slices_affine))
