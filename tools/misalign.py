"""Make a benchmark of aligned pairs: misalign each moving image by a known deformation.

    python -m tools.misalign --root DATA --output BENCH --split val --rotation 10
    python EDARFusion_test_val.py --csv BENCH/pairs.csv

writes ``BENCH/MODALITY/{fixed,moving,label}/NAME.png``, the true displacement fields ``flow/NAME.npy`` and the table
``pairs.csv``. By default deformations are drawn as those of the field's benchmark and of a training run's validation:
the same folder and the same seed give the same pairs on every machine. The draws themselves are not those of a training
run, which numbers its pairs over all modalities.
"""

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from kornia.image import image_to_tensor, tensor_to_image
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.dataset import VAL_SEED, seeded
from data.deformation import BENCHMARK, DeformationRange, random_flow
from data.pairs import PairFiles, read_pair
from data.splits import add_group_pattern, find_table
from data.table import FILES, MODALITIES, SPLITS, DataError, modality_name, split_name, with_names
from utils.arguments import OneLineParser, natural, print_anywhere, side
from utils.command import run_command
from utils.files import check_inputs_stay
from utils.geometry.warp import apply_flow, compose, invert, resize_flow
from utils.imaging.flows import save_flow
from utils.imaging.images import read_image, write_image
from utils.maps import jacobian_determinant
from utils.messages import counted
from utils.tables import write_table

TRUE_WITHIN = 0.25
"""How far a deformation and its inverse in a row may leave any place from where it was, px of images of 256 px."""
MAX_ROTATION = 60
"""Degrees at which a turn moves its neighbours apart as far as they are apart, so that `invert` finds no way back."""


def true_flow(pair: str | os.PathLike, deformation: Tensor) -> Tensor:
    """Return the displacement field that undoes a deformation.

    Args:
        pair: whose it is, for the message.
        deformation: (1, 2, H / 4, W / 4), px of that grid.

    Returns:
        (1, 2, H / 4, W / 4), px of that grid, true to `TRUE_WITHIN`.

    Raises:
        DataError: there is no such field, as the deformation folds, or it is not found, as it turns too far.
    """
    result = "one that folds"
    if (jacobian_determinant(deformation) > 0).all():
        unit = sum(deformation.shape[2:]) / 512
        # Strong ones take longer; the others keep the inverse that training and validation have.
        for iterations in (8, 100):
            flow = invert(deformation, iterations)
            error = (compose(deformation, flow).norm(dim=1).max() / unit).item()
            if error <= TRUE_WITHIN:
                return flow
        result = f"one that leaves {error:.1f} px"
    expected = f"a deformation that can be undone to {TRUE_WITHIN} px (lower --rotation or --amplitude, higher --sigma)"
    raise DataError.at(pair, expected, result)


def files_of(folder: Path, name: str) -> dict[str, Path]:
    """Return the files to which `write_misaligned` writes a pair, by `data.table.FILES`."""
    return {role: folder / role / f"{name}{'.npy' if role == 'flow' else '.png'}" for role in FILES}


def write_misaligned(
    folder: Path, name: str, fixed: NDArray[np.float32], label: NDArray[np.float32], deformation: Tensor
) -> dict[str, Path]:
    """Write one pair: ``{fixed,moving,label}/NAME.png`` and ``flow/NAME.npy``.

    Args:
        folder: where to.
        name: of the pair.
        fixed: (H, W) in [0, 1].
        label: (H, W) or (H, W, 3) in [0, 1], the truly aligned moving image.
        deformation: (1, 2, H / 4, W / 4), px of that grid: the moving image is the label warped with it.

    Returns:
        The files by `data.table.FILES`.

    Raises:
        DataError: the deformation cannot be undone; nothing of the pair is written.
        FileError: a file cannot be written.
    """
    flow = true_flow(folder / name, deformation)
    files = files_of(folder, name)
    write_image(files["fixed"], fixed)
    write_image(files["label"], label)
    # The moving image is made from the label as stored, so that rounding is no part of the misalignment.
    stored = read_image(files["label"], color=label.ndim == 3)
    write_image(files["moving"], apply_flow(stored, resize_flow(deformation, label.shape[:2])[0].numpy()))
    save_flow(files["flow"], flow[0].numpy())
    return files


def misalign(
    table: pd.DataFrame,
    root: str | os.PathLike,
    output: Path,
    *,
    ranges: DeformationRange = BENCHMARK,
    size: tuple[int, int] | None = None,
    seed: int = VAL_SEED,
) -> pd.DataFrame:
    """Write a misaligned copy of each pair of a table, with the truth.

    Args:
        table: of `data.splits.find_table`: columns fixed, moving, modality and, where it has one, name.
        root: folder that its paths start from.
        output: folder to write to.
        ranges: what each deformation is drawn from.
        size: height and width to bring the images to first; None leaves them as they are.
        seed: of the draws; pair n of a modality has the same deformation whatever the others are.

    Returns:
        What ``pairs.csv`` in `output` says: columns fixed, moving, label, flow, modality.

    Raises:
        DataError: a deformation cannot be undone, so that there is no true flow.
        FileError: a file cannot be read or written, sizes differ within a pair, or an image would be written over.
    """
    named = with_names(table)
    records = named.to_dict("records")
    check_inputs_stay(
        (Path(root, row[role]) for row in records for role in ("fixed", "moving")),
        (file for row in records for file in files_of(output / row["modality"], row["name"]).values()),
    )
    rows = []
    for modality, pairs in named.groupby("modality", sort=False):
        for number, row in enumerate(tqdm(pairs.to_dict("records"), desc=modality, unit="pair")):
            paths = {role: Path(root, row[role]) for role in ("fixed", "moving")}
            images = read_pair(PairFiles(row["name"], **paths), modality)
            fixed, label = (_resized(image, size) for image in (images.fixed, images.moving))
            deformation = random_flow(fixed.shape, ranges, seeded(seed, number))
            files = write_misaligned(output / modality, row["name"], fixed, label, deformation)
            paths = {role: path.relative_to(output).as_posix() for role, path in files.items()}
            rows.append({**paths, "modality": modality})
    written = pd.DataFrame(rows)
    write_table(output / "pairs.csv", written)
    return written


def _resized(image: NDArray[np.float32], size: tuple[int, int] | None) -> NDArray[np.float32]:
    if size is None:
        return image
    return tensor_to_image(F.interpolate(image_to_tensor(image, keepdim=False), size, mode="bilinear", antialias=True))


def run(options: argparse.Namespace) -> None:
    """Misalign the pairs that the options name.

    Raises:
        FileError: as `data.splits.find_table` and `misalign`.
    """
    ranges = replace(BENCHMARK, amplitude=(options.amplitude,) * 2, sigma=(options.sigma,) * 2,
                     translation=options.translation, rotation=(options.rotation,) * 2)
    table = find_table(
        options.root, options.modality, csv=options.csv, split=options.split, group_pattern=options.group_pattern
    )
    check_inputs_stay(filter(None, [options.csv]), [options.output / "pairs.csv"])
    written = misalign(table, options.root, options.output, ranges=ranges,
                       size=options.size and tuple(options.size), seed=options.seed)
    print(f"Wrote {counted(len(written), 'pair')} to {options.output / 'pairs.csv'}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.misalign``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.misalign", description=__doc__)
    parser.add_argument("--root", metavar="DIR", required=True,
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    parser.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), default="all",
                        help="modality of the pairs (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help="table of pairs with their split (python -m tools.make_csv)")
    add_group_pattern(parser)
    parser.add_argument("--split", type=split_name, choices=SPLITS, default="val",
                        help="split of the pairs to take (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=VAL_SEED, metavar="N",
                        help="seed of the deformations (default: %(default)s)")
    deformation = parser.add_argument_group("deformation, px of images of 256 px (default: the field's benchmark)")
    deformation.add_argument("--amplitude", type=float, metavar="PX", default=BENCHMARK.amplitude[0],
                             help="standard deviation of a component of the smooth field (default: %(default)s)")
    deformation.add_argument("--sigma", type=float, metavar="PX", default=BENCHMARK.sigma[0],
                             help="its smoothness, the blur of the noise it is made of (default: %(default)s)")
    deformation.add_argument("--translation", type=float, metavar="PX", default=BENCHMARK.translation,
                             help="largest shift along each axis (default: %(default)s)")
    deformation.add_argument("--rotation", type=float, metavar="DEG", default=0.0,
                             help=f"rotation of every pair, below {MAX_ROTATION} degrees either way (default: 0)")
    deformation.add_argument("--size", type=side, nargs=2, metavar=("H", "W"),
                             help="bring the images to this height and width first, px (default: as they are)")
    options = parser.parse_args(arguments)
    for name, low in (("amplitude", 0), ("sigma", 4), ("translation", 0)):
        if not low <= getattr(options, name) < math.inf:
            parser.error(f"--{name}: expected a number from {low}, found {getattr(options, name):g}")
    if not abs(options.rotation) < MAX_ROTATION:
        parser.error(f"--rotation: expected less than {MAX_ROTATION} degrees, found {options.rotation:g}")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
