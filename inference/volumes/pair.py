"""Volumes dealt with slice by slice: each axial slice is a pair, and the results are put together again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from data.pairs import PairFiles
from inference.modality import DICOM_KINDS
from inference.results.files import read_maps
from inference.results.folder import ResultFolder
from inference.volumes.field import VolumeField
from inference.volumes.marks import VolumeMarks, read_marks, slice_by_slice
from inference.volumes.pose import Pose, PoseError, estimate_pose, heads_apart, write_field, write_transform
from utils.files import FileError, remove
from utils.imaging.dicom import DICOM_SUFFIX
from utils.imaging.images import read_image, write_image
from utils.imaging.resampling import coverage, distance_between, resample_labels, resample_volume
from utils.imaging.volumes import (
    VOLUME_SUFFIXES,
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

LONGEST_PIXEL = 1.5
"""Ratio of a pixel's sides above which slices are made anew, with square pixels."""

LEAST_DEPTH = 40.0
"""Extent along the body, mm, from which on a pose is looked for: less could lie anywhere in a head."""


class VolumePair(NamedTuple):
    """Volumes on one grid.

    Attributes:
        name: of the fixed file or folder, without suffix.
        volumes: fixed, moving and, if there is one, label, in their own units.
        levels: the same roles, (S, H, W) in [0, 1].
        sources: fixed and moving as they were read. Where the moving volume was taken slice by slice, it lies where the
            fixed one lies.
        pose: how the moving head lies, where that was looked for.
        marks: landmarks, label maps and the mask.
        mask: bool (S, H, W), on the grid of the levels, True where nothing is to be matched; None without one.
        window: center and width, in the moving volume's units, of moving and label.
        covered: of moving and label that have been resampled, which share of the fixed volume they reach, 0 to 1.
    """

    name: str
    volumes: dict[str, Volume]
    levels: dict[str, np.ndarray]
    window: tuple[float, float]
    covered: dict[str, float]
    sources: dict[str, Volume]
    pose: Pose | None = None
    marks: VolumeMarks = VolumeMarks()
    mask: np.ndarray | None = None

    def window_text(self) -> str:
        """Describe the window."""
        return "center {:.4g}, width {:.4g}".format(*self.window)

    def pose_text(self) -> str:
        """Describe the pose found for the moving head."""
        if self.pose is None:
            return "by the headers" if self.covered else "slice by slice, as the files lie"
        distance = f"{self.pose.moved:.1f} mm from where the headers put it"
        return f"{self.pose.kind}, {distance} (from {self.pose.start}; pose.tfm)"

    def unplaced(self) -> list[str]:
        """List the roles of volumes whose files do not say how they lie."""
        return [role for role, volume in self.volumes.items() if not volume.placed]

    def off_grid(self) -> dict[str, float]:
        """Measure how far (mm) moving and label lie from the fixed volume by their affines, where above `ON_ONE_GRID`.

        Nothing is known of volumes that do not say how they lie.
        """
        placed = {role: volume for role, volume in self.volumes.items() if volume.placed}
        apart = {role: distance_between(x, placed["fixed"]) for role, x in placed.items() if "fixed" in placed}
        return {role: distance for role, distance in apart.items() if distance > ON_ONE_GRID}

    def of_other_space(self) -> list[str]:
        """List the roles of volumes whose DICOM frame of reference is known and not that of the fixed volume."""
        spaces = {role: volume.space for role, volume in self.volumes.items() if volume.space}
        return [role for role, space in spaces.items() if space != spaces.get("fixed", space)]

    def of_other_kind(self, modality: str) -> dict[str, str]:
        """Return role -> DICOM modality of volumes that say to be something else than an MRI and `modality`."""
        kinds = {"fixed": {"MR"}, "moving": DICOM_KINDS[modality], "label": DICOM_KINDS[modality]}
        return {role: x.modality for role, x in self.volumes.items() if x.modality not in kinds[role] | {""}}

    def write_slices(self, folder: str | os.PathLike) -> list[PairFiles]:
        """Write the slices as images and return the pairs that they make.

        Raises:
            FileError: the images cannot be written.
        """
        pairs, aspect = [], self.volumes["fixed"].aspect
        levels = self.levels if self.mask is None else self.levels | {"mask": self.mask.astype(np.float32)}
        for number in range(len(self.levels["fixed"])):
            name = f"{self.name}_{number:03}"
            paths = {role: Path(folder, role, f"{name}.png") for role in levels}
            for role, path in paths.items():
                write_image(path, levels[role][number])
            pairs.append(PairFiles(name, **paths, aspect=aspect))
        return pairs

    def mark_scores(self, field: VolumeField | None) -> dict[str, float]:
        """Score the registration of the whole volume by landmarks and label maps: columns of metrics.csv.

        Args:
            field: of the volume; None where nothing was moved after the pose.
        """
        grid, steps = self.volumes["fixed"], [sitk.Transform(3, sitk.sitkIdentity)]
        if "moving" not in self.covered:
            steps = [slice_by_slice(grid, self.volumes["moving"])]
        before = steps[0]
        steps += [step for step in (self.pose and self.pose.transform, field and field.transform(grid)) if step]
        return self.marks.score(self.sources["fixed"], before, sitk.CompositeTransform(steps))

    def write_results(self, folder: ResultFolder, pairs: list[PairFiles], field: VolumeField | None) -> None:
        """Write aligned.nii.gz, in the moving volume's units, and fused.nii.gz, in [0, 1], on the fixed file's grid.

        The aligned volume is sampled once, from the moving file's own values, through pose and displacement together.
        Of these, pose.tfm is written wherever there is one, the displacement field and its inverse where flows are.

        Tracers are fused in grey in fused.nii.gz, and fused_rgb.nii.gz shows them in their colour scale. Maps become
        volumes where they are saved.

        Args:
            folder: holds the fused images of all slices.
            pairs: of `write_slices`.
            field: of the volume; None where nothing was moved after the pose.

        Raises:
            FileError: a slice's file cannot be read, or a volume not be written.
        """
        grid, target = self.volumes["fixed"], self.sources["fixed"]
        pose, displacement = self.pose and self.pose.transform, field and field.transform(grid)
        written = [resample_volume(self.sources["moving"], target, pose, displacement).slices]
        files = [folder.files(pair.name) for pair in pairs]
        fused = [np.stack([read_image(x["fused_grey" if folder.greys else "fused"]) for x in files])]
        if folder.has_colors:
            fused.append(np.stack([read_image(x["fused"], color=True) for x in files]))
        written += map(self._on_fixed_grid, fused)
        for path, slices in zip(folder.volume_paths, written, strict=True):
            write_volume(path, slices, target)
        if folder.maps:
            self._write_maps(folder, pairs)
        if self.pose:
            write_transform(folder.pose_path, self.pose.transform)
        if field and folder.field:
            for path, one_way in zip(folder.field_paths, (field, field.inverse()), strict=True):
                write_field(path, one_way.transform(grid))

    def _write_maps(self, folder: ResultFolder, pairs: list[PairFiles]) -> None:
        """Write each map of the slices as a volume on the fixed file's grid; memory holds one of them at a time."""
        files = [folder.files(pair.name)["maps/values"] for pair in pairs]
        for kind, path in folder.map_paths.items():
            maps = [read_maps(file, [kind]).get(kind) for file in files]
            known = next((map_ for map_ in maps if map_ is not None), None)
            if known is None:
                remove(path)  # of an earlier network, which made one
                continue
            # A blank slice has no expected error.
            slices = np.stack([np.zeros_like(known) if map_ is None else map_ for map_ in maps])
            write_volume(path, self._on_fixed_grid(slices), self.sources["fixed"])

    def _on_fixed_grid(self, slices: np.ndarray) -> np.ndarray:
        """Bring slices (S, H, W) or (S, H, W, 3) from the grid of the pairs to that of the fixed file."""
        grid, target = self.volumes["fixed"], self.sources["fixed"]
        if grid is target:
            return slices
        channels = np.moveaxis(slices, -1, 0) if slices.ndim == 4 else [slices]
        channels = [resample_volume(grid._replace(slices=channel), target).slices for channel in channels]
        return np.stack(channels, axis=-1) if slices.ndim == 4 else channels[0]


def read_volumes(
    modality: str,
    fixed: str | os.PathLike,
    moving: str | os.PathLike,
    label: str | os.PathLike | None = None,
    center_width: tuple[float, float] | None = None,
    *,
    resample: bool = False,
    prealign: str | None = None,
    frame: int | None = None,
    marks: Mapping[str, str | os.PathLike] | None = None,
) -> VolumePair:
    """Read volumes that lie on one grid, or are brought there, and scale them to [0, 1].

    Args:
        modality: of the moving volume, one of `data.table.MODALITIES`.
        fixed, moving, label: NIfTI, FreeSurfer or DICOM files or folders of DICOM files.
        center_width: window of moving and label in their own units. By default `BRAIN_WINDOW` for Hounsfield units,
            which CT of unknown units is asked for; other values are scaled by the percentiles of the moving volume as
            it was read.
        resample: bring moving and label onto the grid of the fixed volume by their affines, even where the grids have
            one shape. Grids of other shapes are always brought there, and so are those of one DICOM frame of reference.
        prealign: "rigid" or "affine" to find the pose of the moving head first, "none" to go by the headers. None
            finds a rigid pose where the headers cannot be right: `headers_disagree`.
        frame: of moving and label, as of `read_volume`.
        marks: files of landmarks, label maps and the mask, by `data.pairs.MARKS`.

    Raises:
        FileError: a file cannot be used, no pose is found, or volumes that are to be resampled do not overlap or do not
            say how they lie.
    """
    paths = {"fixed": fixed, "moving": moving} | ({} if label is None else {"label": label})
    volumes = {role: read_volume(path, None if role == "fixed" else frame) for role, path in paths.items()}
    if center_width is None:
        moved = volumes["moving"]
        in_hu = moved.units == "HU" or (modality == "CT" and not moved.units and looks_like_hu(moved.slices))
        center_width = BRAIN_WINDOW if in_hu else robust_window(moved.slices)
    read = read_marks(marks or {}, volumes["fixed"], volumes["moving"])
    kind = prealign or ("rigid" if not resample and headers_disagree(volumes["fixed"], volumes["moving"]) else "none")
    pose = None if kind == "none" else _find_pose(volumes, paths, kind)
    sources = {role: volumes[role] for role in ("fixed", "moving")}
    covered = _onto_one_grid(volumes, paths, pose, resample)
    if "moving" not in covered:
        # Slice by slice: what a point of the fixed space shows is in the same voxel.
        sources["moving"] = volumes["moving"]._replace(affine=volumes["fixed"].affine, forms=volumes["fixed"].forms)
    # One window for moving and label: their grey levels are compared.
    windows = {"fixed": robust_window(volumes["fixed"].slices), "moving": center_width, "label": center_width}
    levels = {role: window(volume.slices, *windows[role]) for role, volume in volumes.items()}
    mask = None if read.mask is None else resample_labels(read.mask, volumes["fixed"]).slices > 0
    return VolumePair(_plain_name(fixed), volumes, levels, center_width, covered, sources, pose, read, mask)


def _plain_name(path: str | os.PathLike) -> str:
    """Name of a file or folder without its suffix."""
    name = Path(path).name
    for suffix in (*VOLUME_SUFFIXES, DICOM_SUFFIX):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _onto_one_grid(
    volumes: dict[str, Volume], paths: dict[str, str | os.PathLike], pose: Pose | None, resample: bool
) -> dict[str, float]:
    """Cut the fixed volume into axial slices and bring the others onto its grid where they are not to stay.

    Args:
        volumes, paths: by role; the volumes are replaced.

    Returns:
        Of those that were resampled, the share of the fixed volume that they reach, 0 to 1.

    Raises:
        FileError: one does not say how it lies, or lies beside the fixed volume.
    """
    volumes["fixed"] = in_axial_slices(volumes["fixed"])
    covered, shape = {}, volumes["fixed"].slices.shape
    for role in [role for role in volumes if role != "fixed"]:
        transform = pose.transform if pose and role == "moving" else None
        if not (resample or transform is not None or _places_count(volumes["fixed"], volumes[role])):
            continue
        for needed in ("fixed", role) if transform is None else ():
            if not volumes[needed].placed:
                expected = f"a header that says how the volume lies, as grids differ ({_text(shape)} and"
                expected += f" {_text(volumes[role].slices.shape)}) or --resample is given (--prealign rigid finds it)"
                raise FileError.at(paths[needed], expected, "neither sform nor qform (both codes 0)")
        covered[role] = coverage(volumes[role], volumes["fixed"], transform)
        try:
            volumes[role] = resample_volume(volumes[role], volumes["fixed"], transform)
        except ValueError as error:
            expected = f"a volume that overlaps {os.fspath(paths['fixed'])} in space (--prealign rigid looks for it)"
            raise FileError.at(paths[role], expected, "one beside it") from error
    return covered


def _places_count(fixed: Volume, other: Volume) -> bool:
    """Return whether a volume must be brought to the fixed one's grid.

    Its shape is another, or one scanner put both into one DICOM frame of reference and their voxels lie apart.
    """
    if fixed.slices.shape != other.slices.shape:
        return True
    return bool(fixed.space) and fixed.space == other.space and distance_between(other, fixed) > ON_ONE_GRID


def headers_disagree(fixed: Volume, moving: Volume) -> bool:
    """Return whether the headers must be wrong about how two volumes lie: other frames of reference, or heads apart.

    Volumes of one DICOM frame of reference were taken in one position. Nothing is known of volumes that do not say how
    they lie, or that show too little of a head.
    """
    if fixed.space and moving.space:
        return fixed.space != moving.space and _deep_enough(fixed) and _deep_enough(moving)
    if not (fixed.placed and moving.placed and _deep_enough(fixed) and _deep_enough(moving)):
        return False
    if fixed.slices.shape == moving.slices.shape and distance_between(moving, fixed) <= ON_ONE_GRID:
        return False  # resampled by another program already
    try:
        return heads_apart(fixed, moving)
    except PoseError:
        return False


def in_axial_slices(volume: Volume) -> Volume:
    """Cut thick sagittal or coronal slices anew into axial ones of square pixels; other volumes stay as they are."""
    sides = np.linalg.norm(volume.slices_affine[:3, :3], axis=0)  # columns, rows, slices
    if len(volume.slices) == 1 or max(volume.aspect, 1 / volume.aspect) <= LONGEST_PIXEL:
        return volume
    counts = np.array(volume.slices.shape[::-1])
    finer = sides.copy()
    finer[:2] = sides[:2].min()
    more = np.maximum(np.round(counts * sides / finer), 1).astype(int)
    affine = volume.slices_affine @ np.diag([*(finer / sides), 1])
    # Both grids have the same outer faces.
    affine[:3, 3] = volume.slices_affine[:3] @ [*((counts - (more - 1) * finer / sides - 1) / 2), 1]
    # Columns run to the left, rows to the back: as an array in LPS order, whose axes are those of the slices.
    grid = Volume(np.zeros(more[::-1], np.float32), affine, volume.modality, volume.units, volume.space)
    return resample_volume(volume, grid)


def _deep_enough(volume: Volume) -> bool:
    return len(volume.slices) * np.linalg.norm(volume.slices_affine[:3, 2]) >= LEAST_DEPTH


def _find_pose(volumes: dict[str, Volume], paths: dict[str, str | os.PathLike], kind: str) -> Pose:
    for role in ("fixed", "moving"):
        if not _deep_enough(volumes[role]):
            depth = len(volumes[role].slices) * np.linalg.norm(volumes[role].slices_affine[:3, 2])
            expected = f"at least {LEAST_DEPTH:g} mm of a head to find its pose (--prealign none goes by the headers)"
            raise FileError.at(paths[role], expected, f"{depth:.0f} mm")
    try:
        return estimate_pose(volumes["fixed"], volumes["moving"], kind)
    except PoseError as error:
        expected = f"the head of {os.fspath(paths['fixed'])} (--prealign none goes by the headers)"
        raise FileError.at(paths["moving"], expected, str(error)) from error


def _text(shape: tuple[int, ...]) -> str:
    slices, height, width = shape
    return f"{slices} slices of {width} x {height} (width x height)"
