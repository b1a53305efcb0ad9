"""List the pairs that the test script aligns, and read their images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.table import FILES, MODALITIES, DataError, read_table
from utils.arguments import SAMPLE_ROOT
from utils.geometry.fit import Fit, fit_frame, fit_sizes
from utils.imaging.flows import load_flow, read_flow
from utils.imaging.images import check_same_size, luma, read_image
from utils.imaging.pairing import pair_files

MARKS = ("fixed_landmarks", "moving_landmarks", "fixed_segmentation", "moving_segmentation", "mask")
"""Files of what the user has marked on the images of a pair."""

COLOR_MODALITIES = ("PET", "SPECT")
"""Modalities that are shown in colour. Their results are RGB even if a file is grey."""


OTHER_HEAD = 1.6
"""Factor between two heads' extents, in images of one size, from which on a CT is brought to the scale of the MRI. Of
174 pairs of the atlas none reaches it. The largest factor is 1.43, at the top of a head."""


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, and how to show its images to the registration.

    Attributes:
        name: name of the pair and of its results.
        fixed, moving: files of the images.
        label: the truly aligned moving image, if there is one.
        flow: the true displacement field, if there is one.
        fixed_landmarks, moving_landmarks: tables of the same points in both images, if there are any.
        fixed_segmentation, moving_segmentation: label maps of both images, if there are any.
        mask: image of the size of the fixed one, above 0 where nothing is to be matched, if there is one.
        aspect: height of a pixel over its width.
        longest: length of the longest head among images of one origin (see `inference.view.choose_view`); None for a
            single pair.
        fit: bring a moving image of another size, or a CT with a head of another size, to the frame of the fixed one,
            instead of refusing it.
    """

    name: str
    fixed: Path
    moving: Path
    label: Path | None = None
    flow: Path | None = None
    fixed_landmarks: Path | None = None
    moving_landmarks: Path | None = None
    fixed_segmentation: Path | None = None
    moving_segmentation: Path | None = None
    mask: Path | None = None
    aspect: float = 1.0
    longest: float | None = None
    fit: bool = False

    @property
    def paths(self) -> dict[str, Path]:
        """Return role -> file for the files that exist."""
        files = {role: getattr(self, role) for role in (*FILES, *MARKS)}
        return {role: path for role, path in files.items() if path is not None}


class SourceImages(NamedTuple):
    """The images of one pair, float32 in [0, 1], of one height and width.

    Attributes:
        fixed: (H, W).
        moving: (H, W), or (H, W, 3) if the results are in colour.
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
    **marks: str | os.PathLike | None,
) -> dict[str, list[PairFiles]]:
    """List the pairs of folders, or of single files, as `sample_pairs` does.

    Args:
        marks: folders or files of `MARKS`.
        left_out: as in `utils.imaging.pairing.pair_files`.

    Raises:
        FileError: as in `utils.imaging.pairing.pair_files`.
    """
    pairs = pair_files(fixed=fixed, moving=moving, label=label, left_out=left_out, **marks)
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
        csv: table with the columns fixed, moving [, name, label, flow, modality, split].
        root: folder that the paths of the table start from.
        modality: one of `MODALITIES`, or all for every modality of the table. A table without the column is taken to
            be of this modality.
        split: rows to take; None takes all.
        left_out: as in `data.table.read_table`.

    Raises:
        DataError: as in `data.table.read_table`; the modality is unknown; or there are flows without labels.
    """
    table = read_table(csv, root, split=split, modality=modality, left_out=left_out)
    if "flow" in table and "label" not in table:
        raise DataError.at(csv, "a column label with the column flow", f"columns {', '.join(table.columns)}")
    chosen: dict[str, list[PairFiles]] = {}
    for row in table.to_dict("records"):
        paths = {role: Path(root, row[role]) for role in FILES if role in row}
        chosen.setdefault(row.get("modality", "all"), []).append(PairFiles(row["name"], **paths))
    return chosen


def read_pair(pair: PairFiles, modality: str) -> SourceImages:
    """Read the images of a pair, in the frame of the fixed one.

    The moving image is RGB for PET and SPECT, and for a CT image that has colour. A grey image in an RGB file
    stays grey.

    Raises:
        FileError: a file cannot be used, or sizes differ and the pair is not to be fitted.
    """
    return read_fitted(pair, modality)[0]


def read_fitted(pair: PairFiles, modality: str) -> tuple[SourceImages, Fit | None]:
    """Read the images of a pair as `read_pair` does, and return where the moving image lay before.

    A label has the size of the fixed image and lies on it, or that of the moving one and goes the same way.

    Returns:
        The images, and how the moving one was fitted; None where it stays as it is.
    """
    fixed = read_image(pair.fixed)
    moving = read_image(pair.moving, color=True if modality in COLOR_MODALITIES else None)
    label = None if pair.label is None else read_image(pair.label, color=moving.ndim == 3)
    fit = _fit(fixed, moving, modality) if pair.fit else None
    if fit:
        if label is not None and label.shape[:2] != fixed.shape and label.shape == moving.shape:
            label = fit.apply(label, fixed.shape)
        moving = fit.apply(moving, fixed.shape)
    images = SourceImages(fixed, moving, label)
    check_same_size(images._asdict(), pair.paths)
    return images, fit


def _fit(fixed: np.ndarray, moving: np.ndarray, modality: str) -> Fit | None:
    """Find how to bring a moving image to the fixed one's frame; None where it can stay as it is."""
    same_size = moving.shape[:2] == fixed.shape
    if modality in COLOR_MODALITIES:
        # Where a tracer shows only a part of the head, its extent says nothing of the scale.
        return None if same_size else fit_sizes(moving.shape[:2], fixed.shape)
    fit = fit_frame(luma(moving) if moving.ndim == 3 else moving, fixed)
    return None if same_size and 1 / OTHER_HEAD < fit.scale < OTHER_HEAD else fit


def read_true_flow(pair: PairFiles, size: tuple[int, int], fit: Fit | None) -> np.ndarray | None:
    """Read the true displacement field of a pair, for its images as `read_fitted` returns them.

    The file holds it for the images as they lie in their files. Of a moving image that is fitted, it is on the grid of
    the fixed image and leads into the moving one, or it is on the grid of the moving image, as a label may be.

    Args:
        size: height and width of the fixed image.
        fit: of the moving image.

    Returns:
        (2, *size), px; None where the pair has none.

    Raises:
        FileError: as of `utils.imaging.flows.load_flow`.
    """
    if pair.flow is None:
        return None
    if fit is None:
        return load_flow(pair.flow, size)
    own_size = read_image(pair.moving).shape
    flow = load_flow(pair.flow, size, own_size)
    return fit.to_frame(flow) if flow.shape[1:] == size else fit.apply_to_flow(flow, size)


def check_true_flow(pair: PairFiles, size: tuple[int, int], fit: Fit | None) -> None:
    """Check that the true displacement field of a pair, if it has one, can be read as `read_true_flow` does.

    Raises:
        FileError: it cannot.
    """
    if pair.flow is not None:
        read_flow(pair.flow, *([size] if fit is None else [size, read_image(pair.moving).shape]))


def is_blank(image: np.ndarray) -> bool:
    """Return whether an image (H, W) or (H, W, 3) in [0, 1] is blank: all values lie within 4 of 255 grey levels."""
    return bool(np.ptp(image) < 4 / 255)
