"""What the moving images are, where no option says so."""

from collections.abc import Sequence
from pathlib import Path

from inference.volume_pair import DICOM_KINDS
from utils.files import FileError
from utils.imaging.images import has_color, read_image
from utils.imaging.volumes import Volume, looks_like_hu
from utils.messages import log

LOOKED_AT = 5
"""Images of a folder that are looked at."""


def guess_of_images(paths: Sequence[Path]) -> str:
    """Guess the modality of moving images by their colour, and say so: PET for images in colour, CT for grey ones.

    PET and SPECT are treated alike. Images that cannot be read say nothing.
    """
    in_color = any(map(_has_color, paths[:LOOKED_AT]))
    modality, reason = ("PET", "in colour") if in_color else ("CT", "grey")
    _say(modality, f"the moving images are {reason}")
    return modality


def _has_color(path: Path) -> bool:
    try:
        return has_color(read_image(path, color=None))
    except FileError:
        return False  # which is said where all pairs are checked


def guess_of_volume(volume: Volume) -> str:
    """Guess the modality of a moving volume by its header, or else by its values, and say so."""
    if volume.modality:
        modality = next((name for name, kinds in DICOM_KINDS.items() if volume.modality in kinds), "CT")
        if volume.modality == "NM":
            modality = "SPECT"
        reason = f"its header says {volume.modality}"
    elif volume.units == "HU" or (not volume.units and looks_like_hu(volume.slices)):
        modality, reason = "CT", "its values look like Hounsfield units"
    else:
        modality, reason = "PET", "its values are no Hounsfield units"
    _say(modality, f"of the moving volume {reason}")
    return modality


def _say(modality: str, reason: str) -> None:
    others = " or ".join(name for name in DICOM_KINDS if name != modality)
    log.info(f"--modality: not given, taken for {modality}, as {reason} (--modality {others} otherwise)")
