"""Which pairs the test command is to align, and reading them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.table import FILES, MODALITIES, DataError, read_table
from utils.arguments import SAMPLE_ROOT
from utils.imaging.images import check_same_size, read_image
from utils.imaging.pairing import pair_files

COLOR_MODALITIES = ("PET", "SPECT")
"""Modalities whose images are shown in colour, so that results are RGB even where a file is grey."""


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, and what is known of how its images are to be shown.

    Attributes:
        name: of the pair; its results are called so.
        fixed, moving: the images.
        label: the truly aligned moving image, if there is one.
        flow: the true displacement field, if there is one.
        aspect: height of a pixel over its width.
        longest: the longest head among images of one origin, of `inference.view.choose_view`; None for a pair that
            stands alone.
    """

    name: str
    fixed: Path
    moving: Path
    label: Path | None = None
    flow: Path | None = None
    aspect: float = 1.0
    longest: float | None = None

    @property
    def paths(self) -> dict[str, Path]:
        """Role -> file, of the files that there are."""
        files = {role: getattr(self, role) for role in FILES}
        return {role: path for role, path in files.items() if path is not None}


class SourceImages(NamedTuple):
    """The images of one pair, float32 in [0, 1], of one height and width.

    Attributes:
        fixed: (H, W).
        moving: (H, W), or (H, W, 3) where the results are to be in colour.
        label: the truly aligned moving image, (H, W) or (H, W, 3), if there is one.
    """

    fixed: np.ndarray
    moving: np.ndarray
    label: np.ndarray | None


def sample_pairs(modality: str) -> dict[str, list[PairFiles]]:
    """List the pairs of the embedded sample, with true flows.

    Args:
        modality: one of `MODALITIES`, or all.

    Returns:
        Modality -> pairs.

    Raises:
        FileError: the sample is not complete.
    """
    chosen = {}
    for name in MODALITIES if modality == "all" else (modality,):
        folder = SAMPLE_ROOT / name
        pairs = pair_files(**{role: folder / role for role in ("fixed", "moving", "label")})
        chosen[name] = [PairFiles(**pair, flow=folder / "flow" / f"{pair['name']}.npy") for pair in pairs]
    return chosen


def folder_pairs(
    modality: str,
    fixed: str | os.PathLike,
    moving: str | os.PathLike,
    label: str | os.PathLike | None,
    left_out: list[str] | None = None,
) -> dict[str, list[PairFiles]]:
    """List the pairs of folders, or of single files, as `sample_pairs` does.

    Args:
        left_out: as of `utils.imaging.pairing.pair_files`.

    Raises:
        FileError: as `utils.imaging.pairing.pair_files`.
    """
    pairs = pair_files(fixed=fixed, moving=moving, label=label, left_out=left_out)
    return {modality: [PairFiles(**pair) for pair in pairs]}


def table_pairs(
    csv: str | os.PathLike,
    root: str | os.PathLike,
    modality: str,
    split: str | None,
    left_out: list[str] | None = None,
) -> dict[str, list[PairFiles]]:
    """List the pairs of a table, as `sample_pairs` does.

    Args:
        csv: table with the columns fixed, moving and, if wanted, name, label, flow, modality, split.
        root: folder that its paths start from.
        modality: one of `MODALITIES`, or all for every one that the table has. A table without a column modality is
            taken to be of this one.
        split: which rows; None for all.
        left_out: as of `data.table.read_table`.

    Raises:
        DataError: as `data.table.read_table`, if nothing tells the modality, or for flows without labels.
    """
    table = read_table(csv, root, split=split, modality=modality, left_out=left_out)
    if "flow" in table and "label" not in table:
        raise DataError.at(csv, "a column label with the column flow", f"columns {', '.join(table.columns)}")
    if "modality" not in table:
        raise DataError.at(csv, f"a column modality, or --modality {'|'.join(MODALITIES)}", "neither")
    chosen: dict[str, list[PairFiles]] = {}
    for row in table.to_dict("records"):
        paths = {role: Path(root, row[role]) for role in FILES if role in row}
        chosen.setdefault(row["modality"], []).append(PairFiles(row["name"], **paths))
    return chosen


def read_pair(pair: PairFiles, modality: str) -> SourceImages:
    """Read the images of a pair.

    The moving image is RGB for PET and SPECT, and for CT where the picture has colour; a grey picture in an RGB file
    stays grey.

    Raises:
        FileError: a file cannot be used, or sizes differ.
    """
    fixed = read_image(pair.fixed)
    moving = read_image(pair.moving, color=True if modality in COLOR_MODALITIES else None)
    label = None if pair.label is None else read_image(pair.label, color=moving.ndim == 3)
    images = SourceImages(fixed, moving, label)
    check_same_size(images._asdict(), pair.paths)
    return images


def is_blank(image: np.ndarray) -> bool:
    """Whether an image in [0, 1] shows nothing: all its values lie within 4 of 255 grey levels."""
    return bool(np.ptp(image) < 4 / 255)
