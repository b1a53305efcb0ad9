"""Volumes dealt with slice by slice: each axial slice is a pair, and the results are put together again."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.pairs import PairFiles
from inference.result_folder import ResultFolder
from utils.files import FileError
from utils.geometry.warp import apply_flow
from utils.imaging.dicom import DICOM_SUFFIX
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image, write_image
from utils.imaging.resampling import coverage, distance_between, resample_volume
from utils.imaging.volumes import (
    NIFTI_SUFFIXES,
    Volume,
    looks_like_hu,
    read_volume,
    robust_window,
    window,
    write_volume,
)

BRAIN_WINDOW = (40.0, 80.0)
"""Center and width in Hounsfield units that show brain tissue in CT."""

ON_ONE_GRID = 0.5
"""Millimetres between volumes that still count as lying on one grid."""


DICOM_KINDS = {"CT": {"CT"}, "PET": {"PT", "NM"}, "SPECT": {"NM", "PT"}}
"""What DICOM calls the modalities of moving images; both kinds of emission imaging are found under either name."""


class VolumePair(NamedTuple):
    """Volumes on one grid.

    Attributes:
        name: of the fixed file or folder, without suffix.
        volumes: fixed, moving and, if there is one, label, in their own units.
        levels: the same roles, (S, H, W) in [0, 1].
        window: center and width, in the moving volume's units, of moving and label.
        covered: of moving and label that have been resampled, which share of the fixed volume they reach, 0 to 1.
    """

    name: str
    volumes: dict[str, Volume]
    levels: dict[str, np.ndarray]
    window: tuple[float, float]
    covered: dict[str, float]

    def window_text(self) -> str:
        """The window in words."""
        return "center {:.4g}, width {:.4g}".format(*self.window)

    def unplaced(self) -> list[str]:
        """Roles of the volumes whose files do not say how they lie."""
        return [role for role, volume in self.volumes.items() if not volume.placed]

    def off_grid(self) -> dict[str, float]:
        """How far, in mm, moving and label lie from the fixed volume by their affines, where it is over `ON_ONE_GRID`.

        Nothing is known of volumes that do not say how they lie.
        """
        placed = {role: volume for role, volume in self.volumes.items() if volume.placed}
        apart = {role: distance_between(x, placed["fixed"]) for role, x in placed.items() if "fixed" in placed}
        return {role: distance for role, distance in apart.items() if distance > ON_ONE_GRID}

    def of_other_space(self) -> list[str]:
        """Roles of volumes whose DICOM frame of reference is not that of the fixed volume, where both are known."""
        spaces = {role: volume.space for role, volume in self.volumes.items() if volume.space}
        return [role for role, space in spaces.items() if space != spaces.get("fixed", space)]

    def of_other_kind(self, modality: str) -> dict[str, str]:
        """Role -> DICOM modality of volumes that say to be something else than an MRI and `modality`."""
        wanted = {"fixed": {"MR"}, "moving": DICOM_KINDS[modality], "label": DICOM_KINDS[modality]}
        return {role: x.modality for role, x in self.volumes.items() if x.modality not in wanted[role] | {""}}

    def write_slices(self, folder: str | os.PathLike) -> list[PairFiles]:
        """Write the slices as images and return the pairs that they make.

        Raises:
            FileError: the images cannot be written.
        """
        pairs, aspect = [], self.volumes["fixed"].aspect
        for number in range(len(self.levels["fixed"])):
            name = f"{self.name}_{number:03}"
            paths = {role: Path(folder, role, f"{name}.png") for role in self.levels}
            for role, path in paths.items():
                write_image(path, self.levels[role][number])
            pairs.append(PairFiles(name, **paths, aspect=aspect))
        return pairs

    def write_results(self, folder: ResultFolder, pairs: list[PairFiles]) -> None:
        """Write aligned.nii.gz, in the moving volume's units, and fused.nii.gz, in [0, 1], with the fixed affine.

        Args:
            folder: holds the fused images and the flows of all slices.
            pairs: of `write_slices`.

        Raises:
            FileError: a slice's file cannot be read, or a volume not be written.
        """
        aligned, fused = [], []
        background = float(self.volumes["moving"].slices.min())
        for moving, pair in zip(self.volumes["moving"].slices, pairs, strict=True):
            files = folder.files(pair.name)
            aligned.append(apply_flow(moving, load_flow(files["flow"], moving.shape), background))
            fused.append(read_image(files["fused"]))
        for path, slices in zip(folder.volume_paths, (aligned, fused), strict=True):
            write_volume(path, np.stack(slices), self.volumes["fixed"])


def read_volumes(
    modality: str,
    fixed: str | os.PathLike,
    moving: str | os.PathLike,
    label: str | os.PathLike | None = None,
    center_width: tuple[float, float] | None = None,
    *,
    resample: bool = False,
) -> VolumePair:
    """Read volumes that lie on one grid, or are brought there, and scale them to [0, 1].

    Args:
        modality: of the moving volume, one of `data.table.MODALITIES`.
        fixed, moving, label: NIfTI files, DICOM files or folders of them.
        center_width: window of moving and label in their own units. By default `BRAIN_WINDOW` for Hounsfield units,
            which CT of unknown units is asked for; other values are scaled by the percentiles of the moving volume as
            it was read.
        resample: bring moving and label onto the grid of the fixed volume first, by their affines.

    Raises:
        FileError: a file cannot be used, or the grids differ, or with `resample` the volumes do not overlap or one does
            not say how it lies.
    """
    paths = {"fixed": fixed, "moving": moving} | ({} if label is None else {"label": label})
    volumes = {role: read_volume(path) for role, path in paths.items()}
    if center_width is None:
        moved = volumes["moving"]
        in_hu = moved.units == "HU" or (modality == "CT" and not moved.units and looks_like_hu(moved.slices))
        center_width = BRAIN_WINDOW if in_hu else robust_window(moved.slices)
    for role, volume in volumes.items() if resample else ():
        if not volume.placed:
            expected = "a header that says how the volume lies, which --resample goes by"
            raise FileError.at(paths[role], expected, "neither sform nor qform (both codes 0)")
    covered = {}
    for role in ("moving", "label")[: len(paths) - 1] if resample else ():
        covered[role] = coverage(volumes[role], volumes["fixed"])
        try:
            volumes[role] = resample_volume(volumes[role], volumes["fixed"])
        except ValueError as error:
            expected = f"a volume that overlaps {os.fspath(fixed)} in space"
            raise FileError.at(paths[role], expected, "one beside it") from error
    shape = volumes["fixed"].slices.shape
    for role, volume in volumes.items():
        if volume.slices.shape != shape:
            expected = f"the grid of {os.fspath(fixed)}, {_text(shape)} (--resample brings it there)"
            raise FileError.at(paths[role], expected, _text(volume.slices.shape))
    # One window for moving and label: their grey levels are compared.
    windows = {"fixed": robust_window(volumes["fixed"].slices), "moving": center_width, "label": center_width}
    levels = {role: window(volume.slices, *windows[role]) for role, volume in volumes.items()}
    name = Path(fixed).name
    for suffix in (*NIFTI_SUFFIXES, DICOM_SUFFIX):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return VolumePair(name, volumes, levels, center_width, covered)


def _text(shape: tuple[int, ...]) -> str:
    slices, height, width = shape
    return f"{slices} slices of {width} x {height} (width x height)"
