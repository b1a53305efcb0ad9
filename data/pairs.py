"""Which pairs the test command is to align, and reading them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.table import FILES, MODALITIES, DataError, read_table
from utils.arguments import SAMPLE_ROOT
from utils.imaging.images import check_same_size, read_image
from utils.imaging.pairing import pair_files

COLOR_MODALITIES = ("PET", "SPECT")
"""Modalities whose images are shown in colour, so that results are RGB even where a file is grey."""


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


def sample_pairs(modality: str) -> dict[str, list[dict]]:
    """The pairs of the embedded sample, with true flows.

    Args:
        modality: one of `MODALITIES`, or all.

    Returns:
        Modality -> pairs as of `utils.imaging.pairing.pair_files`: name, fixed, moving, label; flow is the file of
        the true flow.

    Raises:
        FileError: the sample is not complete.
    """
    chosen = {}
    for name in MODALITIES if modality == "all" else (modality,):
        folder = SAMPLE_ROOT / name
        pairs = pair_files(**{role: folder / role for role in ("fixed", "moving", "label")})
        chosen[name] = [pair | {"flow": folder / "flow" / f"{pair['name']}.npy"} for pair in pairs]
    return chosen


def folder_pairs(
    modality: str,
    fixed: str | os.PathLike,
    moving: str | os.PathLike,
    label: str | os.PathLike | None,
    left_out: list[str] | None = None,
) -> dict[str, list[dict]]:
    """The pairs of folders, or of single files; the form is that of `sample_pairs`, with None as flow.

    Args:
        left_out: as of `utils.imaging.pairing.pair_files`.

    Raises:
        FileError: as `utils.imaging.pairing.pair_files`.
    """
    pairs = pair_files(fixed=fixed, moving=moving, label=label, left_out=left_out)
    return {modality: [pair | {"flow": None} for pair in pairs]}


def table_pairs(
    csv: str | os.PathLike,
    root: str | os.PathLike,
    modality: str,
    split: str | None,
    left_out: list[str] | None = None,
) -> dict[str, list[dict]]:
    """The pairs of a table; the form is that of `sample_pairs`, with None where there is no label or no flow.

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
    chosen: dict[str, list[dict]] = {}
    for row in table.to_dict("records"):
        paths = {role: Path(root, row[role]) if role in row else None for role in FILES}
        chosen.setdefault(row["modality"], []).append({"name": row["name"], **paths})
    return chosen


def read_pair(pair: Mapping, modality: str) -> SourceImages:
    """Read the images of a pair.

    The moving image is RGB for PET and SPECT, and for CT where the picture has colour; a grey picture in an RGB file
    stays grey.

    Raises:
        FileError: a file cannot be used, or sizes differ.
    """
    fixed = read_image(pair["fixed"])
    moving = read_image(pair["moving"], color=True if modality in COLOR_MODALITIES else None)
    label = None if pair["label"] is None else read_image(pair["label"], color=moving.ndim == 3)
    images = SourceImages(fixed, moving, label)
    check_same_size(images._asdict(), pair)
    return images


def is_blank(image: np.ndarray) -> bool:
    """Whether an image in [0, 1] shows nothing: all its values lie within 4 of 255 grey levels."""
    return bool(np.ptp(image) < 4 / 255)


