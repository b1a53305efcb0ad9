"""Volumes for the test command: whether it was given any, and what should be known of them before they are taken.

Nothing here imports torch: the processes that score start the faster for it.
"""

import argparse

import numpy as np

from data.table import DataError
from inference.volume_pair import BRAIN_WINDOW, VolumePair, read_volumes
from utils.imaging.images import MIN_SIDE
from utils.imaging.volumes import check_no_volumes, holds_images, is_volume
from utils.messages import say

COVERED = 0.8  # of the fixed volume: less is worth a word


def has_volumes(options: argparse.Namespace) -> bool:
    """Whether fixed and moving are to be read as volumes: what no image and no volume is goes with the other side."""
    if not options.fixed:
        return False
    return is_volume(options.fixed) or (is_volume(options.moving) and not holds_images(options.fixed))


def open_volumes(options: argparse.Namespace) -> VolumePair:
    """Read the volumes that the options name, check them, and say what about them may not be as it looks.

    Raises:
        FileError: they cannot be read or do not go together.
    """
    paths = options.fixed, options.moving, options.label
    check_no_volumes(path for path in paths if path and not is_volume(path))  # such as a folder of several
    volumes = read_volumes(options.modality, *paths, options.window, resample=options.resample)
    # The others are on its grid by now: a moving volume that was coarser has been resampled.
    height, width = volumes.volumes["fixed"].slices.shape[1:]
    if min(height, width) < MIN_SIDE:
        found = f"{width} x {height} (width x height)"
        raise DataError.at(options.fixed, f"slices of at least {MIN_SIDE} x {MIN_SIDE} pixels", found)
    if options.window:
        check_window(volumes, *options.window)
    elif options.modality == "CT" and volumes.window != BRAIN_WINDOW:
        units = volumes.volumes["moving"].units
        found = f"values in {units}" if units else "other values"
        say(f"{options.moving}: expected Hounsfield units with air in them, found {found}; shown with a window of "
            f"{volumes.window_text()} (--window CENTER WIDTH)")
    for role in volumes.unplaced():
        say(f"{getattr(options, role)}: expected a header that says how the volume lies, found neither sform nor qform "
            "(both codes 0); its axes are taken to run to the patient's left, front and head: check left and right")
    for role, distance in volumes.off_grid().items():
        say(f"{getattr(options, role)}: expected the place in space of {options.fixed}, found one up to {distance:.1f} "
            "mm off; both are turned to one view and taken slice by slice (--resample goes by the place)")
    for role in volumes.of_other_space() if options.resample else ():
        say(f"{getattr(options, role)}: expected the DICOM frame of reference of {options.fixed}, found another; "
            "--resample takes both for one place: do they lie over each other?")
    for role, share in volumes.covered.items():
        if share < COVERED:
            say(f"{getattr(options, role)}: expected a volume that covers {options.fixed}, found one that covers "
                f"{100 * share:.0f} % of the fixed volume; the rest has its lowest value")
    for role, found in volumes.of_other_kind(options.modality).items():
        say(f"{getattr(options, role)}: expected the {role} volume, found a DICOM series of modality {found}; are "
            "--fixed (MRI) and --moving the right way round?")
    return volumes


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
