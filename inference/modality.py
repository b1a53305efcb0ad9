"""What the moving images are, where no option says so, and what results and paths say of it.

Nothing here imports torch: `inference.chosen_pairs` is done before it is loaded.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.table import MODALITIES
from utils.files import FileError
from utils.imaging.images import has_color, read_image
from utils.imaging.volumes import Volume, looks_like_hu
from utils.messages import log

LOOKED_AT = 5
"""Images of a folder that are looked at."""

DICOM_KINDS = {"CT": {"CT"}, "PET": {"PT", "NM"}, "SPECT": {"NM", "PT"}}
"""What DICOM calls the modalities of moving images; both kinds of emission imaging are found under either name."""


def guess_of_images(paths: Sequence[Path]) -> str:
    """Guess the modality of moving images by their colour, and say so: PET for images in colour, CT for grey ones.

    PET and SPECT are aligned alike. Images that cannot be read say nothing.
    """
    looked_at = paths[:LOOKED_AT]
    in_color = sum(map(_has_color, looked_at))
    modality, reason = ("PET", "the moving images are in colour") if in_color else ("CT", "the moving images are grey")
    if 0 < in_color < len(looked_at):
        reason = f"of {len(looked_at)} moving images looked at {in_color} are in colour: are all of one modality?"
    _say(modality, reason)
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
        reason = f"the header of the moving volume says {volume.modality}"
    elif volume.units == "HU" or (not volume.units and looks_like_hu(volume.slices)):
        modality, reason = "CT", "the values of the moving volume look like Hounsfield units"
    else:
        modality, reason = "PET", "the values of the moving volume are no Hounsfield units"
    _say(modality, reason)
    return modality


def _say(modality: str, reason: str) -> None:
    others = " or ".join(name for name in DICOM_KINDS if name != modality)
    log.info(f"--modality: not given, taken for {modality}, as {reason} (--modality {others} otherwise)")


def stated_modality(results: str | os.PathLike) -> str | None:
    """Read the modality of a folder of results, OUTPUT/MODALITY, in its settings.json; None if it does not tell."""
    try:
        settings = json.loads(Path(results, "settings.json").read_text())
    except (OSError, ValueError):
        return None
    stated = settings.get("modality") if isinstance(settings, dict) else None
    return stated if stated in MODALITIES else None


def named_modality(path: str | os.PathLike) -> str | None:
    """Find the one modality in the last name of a path, or in the one before, as a word of its own."""
    for name in reversed(Path(os.path.abspath(path)).parts[-2:]):
        words = re.split(r"[^a-z]+", name.lower())
        named = [modality for modality in MODALITIES if modality.lower() in words]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def modality_of_volume(volume: Volume, path: str | os.PathLike, results: str | None) -> str | None:
    """Find the modality of a volume by its DICOM tag, else by its path.

    Args:
        volume: read from `path`.
        path: of the volume.
        results: modality of the results that it goes with: of two that DICOM names alike, this one is taken.

    Returns:
        One of `data.table.MODALITIES`, or None where nothing tells, or where it is an MRI.
    """
    if not volume.modality:
        return named_modality(path)
    names = [name for name, kinds in DICOM_KINDS.items() if volume.modality in kinds]
    return results if results in names else next(iter(names), None)
