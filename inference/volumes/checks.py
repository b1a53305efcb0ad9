"""Volumes for the test command, and what should be known of them before they are taken."""

import os
from collections.abc import Iterator

import numpy as np

from data.table import DataError, lacking_in_name
from inference.options import Options
from inference.volumes.pair import BRAIN_WINDOW, VolumePair, read_volumes
from utils.imaging.flows import MOST_SHEAR, shear
from utils.imaging.images import MIN_SIDE
from utils.imaging.volumes import Volume, check_no_volumes, is_volume
from utils.messages import log

FEW_LEVELS = 16  # of a label map
COVERED = 0.8  # of the fixed volume: less is worth a word


def open_volumes(options: Options) -> VolumePair:
    """Read the volumes that the options name, check them, and say what about them may not be as it looks.

    Raises:
        FileError: they cannot be read or do not go together.
    """
    paths = options.fixed, options.moving, options.label
    check_no_volumes(path for path in paths if path and not is_volume(path))  # such as a folder of several
    settings = {"resample": options.resample, "prealign": options.prealign, "frame": options.frame}
    volumes = read_volumes(options.modality, *paths, options.window, **settings, marks=options.marks)
    # The others are on its grid by now: a moving volume that was coarser has been resampled.
    height, width = volumes.volumes["fixed"].slices.shape[1:]
    if min(height, width) < MIN_SIDE:
        state = f"{width} x {height} (width x height)"
        raise DataError.at(options.fixed, f"slices of at least {MIN_SIDE} x {MIN_SIDE} pixels", state)
    if expected := lacking_in_name(volumes.name):
        raise DataError.at(options.fixed, expected, repr(volumes.name))
    if options.save_flow and options.passes != 0 and options.flow_format != "itk":
        check_axes(volumes.volumes["fixed"], options.fixed)
    if options.window:
        check_window(volumes, *options.window)
    for oddity in _oddities(volumes, options):
        log.warning(oddity)
    return volumes


def _oddities(volumes: VolumePair, options: Options) -> Iterator[str]:
    """List what is no error in the volumes but may not be meant, one line each."""
    paths = {"fixed": options.fixed, "moving": options.moving, "label": options.label}
    if not options.window and options.modality == "CT" and volumes.window != BRAIN_WINDOW:
        units = volumes.volumes["moving"].units
        values = f"values in {units}" if units else "other values"
        state = f"{values}; shown with a window of {volumes.window_text()} (--window CENTER WIDTH)"
        yield f"{options.moving}: expected Hounsfield units with air in them, found {state}"
    for role in volumes.unplaced():
        state = "neither sform nor qform (both codes 0)"
        taken = "its axes are taken to run to the patient's left, front and head: check left and right"
        yield f"{paths[role]}: expected a header that says how the volume lies, found {state}; {taken}"
    for role, source in volumes.sources.items():
        if source.note:
            yield f"{paths[role]}: {source.note}"
    if holds_labels(volumes.sources["moving"]):
        taken = "its numbers are taken for intensities (--segmentations is for label maps)"
        yield f"{options.moving}: expected an image, found what looks like a label map; {taken}"
    if volumes.sources["fixed"].slices.shape != volumes.volumes["fixed"].slices.shape:
        taken = "cut anew into axial slices of square pixels; the resulting volumes lie on its own grid"
        yield f"{options.fixed}: expected axial slices, found thick sagittal or coronal ones; {taken}"
    if volumes.pose:
        yield f"{options.moving}: head found in space, {volumes.pose_text()}; --prealign none goes by the headers"
    for role, distance in volumes.off_grid().items():
        taken = "both are turned to one view and taken slice by slice (--resample goes by the place)"
        expected = f"the place in space of {options.fixed}"
        yield f"{paths[role]}: expected {expected}, found one up to {distance:.1f} mm off; {taken}"
    for role in volumes.of_other_space() if options.resample else ():
        taken = "--resample takes both for one place: do they lie over each other?"
        yield f"{paths[role]}: expected the DICOM frame of reference of {options.fixed}, found another; {taken}"
    for role, share in volumes.covered.items():
        if share < COVERED:
            state = f"one that covers {100 * share:.0f} % of the fixed volume; the rest has its lowest value"
            yield f"{paths[role]}: expected a volume that covers {options.fixed}, found {state}"
    for role, kind in volumes.of_other_kind(options.modality).items():
        state = f"a DICOM series of modality {kind}; are --fixed (MRI) and --moving the right way round?"
        yield f"{paths[role]}: expected the {role} volume, found {state}"


def holds_labels(volume: Volume) -> bool:
    """Return whether a volume has a few whole numbers as values, as label maps have, and images hardly ever."""
    some = np.unique(volume.slices.ravel()[:: max(1, volume.slices.size // 100_000)])
    return 1 < len(some) <= FEW_LEVELS and bool((some == np.rint(some)).all())


def check_axes(volume: Volume, path: str | os.PathLike) -> None:
    """Check that NIfTI can hold a displacement field on the grid of a volume.

    Raises:
        DataError: its axes are not at right angles.
    """
    axes = volume.slices_affine[:3, :3] / np.linalg.norm(volume.slices_affine[:3, :3], axis=0)
    if (angle := shear(axes)) > MOST_SHEAR:
        expected = "axes at right angles to save its displacement field as NIfTI (--flow-format itk takes others)"
        raise DataError.at(path, expected, f"a tilted gantry, {angle:.1f} degrees")


def check_window(volumes: VolumePair, center: float, width: float) -> None:
    """Check that a window, in the moving volume's own units, shows more of it than black or white.

    Raises:
        DataError: it does not.
    """
    low, high = (limit(volumes.volumes["moving"].slices) for limit in (np.min, np.max))
    if center + width / 2 <= low or center - width / 2 >= high:
        window = f"one from {center - width / 2:g} to {center + width / 2:g}"
        expected = f"a window within the moving volume's values, {low:g} to {high:g}"
        raise DataError(f"--window: expected {expected}, found {window}")
