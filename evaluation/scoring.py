"""Scores of image files: one pair, and folders of them.

The metrics themselves are in `evaluation.metrics`.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from evaluation.metrics import fidelity_metrics, fusion_metrics, registration_metrics
from utils.imaging.colormaps import palette
from utils.imaging.images import check_same_size, has_color, read_image
from utils.imaging.pairing import pair_files
from utils.messages import OTHER_RENDERING
from utils.processes import available_cores, pool_size


def read_grey(path: str | Path) -> np.ndarray:
    """Read an image file for scoring: float64 grey levels 0..255, (H, W), BT.601 luma of a colour image.

    8-bit grey files give whole numbers exactly; the luma of colour keeps its fractions.

    Raises:
        FileError: as :func:`utils.imaging.images.read_image`.
    """
    image = read_image(path).astype(np.float64) * 255
    whole = np.rint(image)
    # read_image rounds v / 255 to float32.
    return whole if np.abs(image - whole).max() < 1e-4 else image


def score_pair(
    pair: dict, seen: np.ndarray | None = None, colormap: str | None = None
) -> dict[str, float | str]:
    """Score the files of one pair.

    Args:
        pair: ``name`` and the paths ``fixed``, ``reference``, ``fused``, and, where registration is scored,
            ``label`` with ``aligned``, ``moving`` or both; a missing path may be None.
        seen: bool (H, W), of `utils.geometry.field_of_view`. Other pixels count in no metric of the aligned and of the
            fused image: the former leaves them out, the latter takes them for background in all images. None counts
            all pixels.
        colormap: colour scale that a grey reference is shown in, of `utils.imaging.colormaps`; None leaves it grey.

    Returns:
        ``name``, the :func:`fusion_metrics` and :func:`fidelity_metrics` where there is a fused image, the
        :func:`registration_metrics` of aligned against label, and those of moving against label with ``_before`` behind
        their names.

    Raises:
        FileError: a file cannot be used, or sizes differ.
    """
    row: dict[str, float | str] = {"name": pair["name"]}
    paths = {role: path for role, path in pair.items() if role != "name" and path is not None}
    images = {role: read_grey(path) for role, path in paths.items()}
    check_same_size(images, paths)
    if seen is not None and seen.all():
        seen = None
    if "fused" in images:
        fixed, reference, fused, aligned = (
            images[role] if seen is None else np.where(seen, images[role], 0)
            for role in ("fixed", "reference", "fused", "aligned" if "aligned" in images else "reference")
        )
        row |= fusion_metrics(fixed, reference, fused)
        row |= fidelity_metrics(fixed, aligned, fused, _colors(paths, seen, colormap))
    for role, suffix, counted in (("aligned", "", seen), ("moving", "_before", None)):
        if role in images:
            scores = registration_metrics(images[role], images["label"], counted)
            row |= {f"{metric}{suffix}": value for metric, value in scores.items()}
    return row


def _colors(
    paths: dict[str, Path], seen: np.ndarray | None, colormap: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Read reference and fused image, (H, W, 3), grey levels 0..255, black beyond `seen`; None without colours."""
    reference = read_image(paths["reference"], color=None)
    if reference.ndim == 2:
        if colormap is None:
            return None
        reference = palette(colormap)[np.rint(reference * 255).astype(int)]
    shown = 255.0 if seen is None else 255.0 * seen[..., None]
    return tuple(shown * image for image in (reference, read_image(paths["fused"], color=True)))


def score_folders(
    *, workers: int | None = None, description: str = "scoring", **folders: str | Path | None
) -> pd.DataFrame:
    """Score folders of images that are matched by file name.

    Args:
        workers: processes; as many as there are cores if left out, none beside this one for 1.
        description: what the progress bar on stderr says.
        folders: role -> folder, roles as in :func:`score_pair`.

    Returns:
        A row a pair in natural order of the names, columns as in :func:`score_pair`.

    Raises:
        FileError: a folder or file cannot be used, or names do not pair.
    """
    pairs = pair_files(**folders)
    _warn_of_other_renderings(pairs[0])
    workers = pool_size(min(workers or available_cores(), len(pairs)))
    bar = {"total": len(pairs), "unit": "pair", "desc": description}
    if workers == 1:
        return pd.DataFrame(tqdm(map(score_pair, pairs), **bar))
    # Not forked: the caller may have threads of torch or OpenMP running.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return pd.DataFrame(tqdm(pool.map(score_pair, pairs), **bar))


def _warn_of_other_renderings(pair: dict) -> None:
    """Say on stderr where aligned or moving image of a pair are in colour and the label is grey, or the reverse."""
    if not pair.get("label"):
        return
    roles = [role for role in ("label", "aligned", "moving") if pair.get(role)]
    label, *others = ("in colour" if has_color(read_image(pair[role], color=None)) else "in grey" for role in roles)
    for role, kind in zip(roles[1:], others, strict=True):
        if kind != label:
            difference = f"expected an image {label} like {pair['label']}, found one {kind}"
            print(f"{pair[role]}: {difference}; {OTHER_RENDERING}", file=sys.stderr)


def with_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Add a final row ``mean`` of the numeric columns to a table."""
    mean = table.mean(numeric_only=True).to_frame().T.assign(name="mean")
    return pd.concat([table, mean], ignore_index=True)[table.columns]
