"""Make the fixed pairs on which any systems can be ranked (`tools.rank`), with the exact truth and checksums.

    python -m tools.benchmark_pairs --root DATA --output BENCH        # the atlas
    python -m tools.benchmark_pairs --unaligned DIR --output FILE.csv # BSAFusion's

The first checks that the images below DATA are the expected ones, and misaligns them by the deformations that come with
the project. These are stored, so they are the same with every version of PyTorch. The pairs are written as by
`tools.misalign`. ``pairs.csv`` also names the patient (group) and the fold of each pair. Rank a system on a fold with
weights that were trained without its patients.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.dataset import VAL_SEED, seeded
from data.deformation import BENCHMARK, random_flow
from data.folds import read_folds
from data.pairs import COLOR_MODALITIES, PairFiles, read_pair
from data.table import MODALITIES, DataError
from tools.misalign import files_of, write_misaligned
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.files import FileError, check_inputs_stay
from utils.imaging.pairing import pair_files
from utils.messages import counted
from utils.tables import write_table

DRAW = Path(__file__).parents[1] / "data" / "benchmark"
"""pairs.csv with the names, patients, folds and checksums, and deformations.npz."""

PAIRS = 20
"""Of each modality, as evenly as can be over its patients and over the slices of each."""

STEPS = 256
"""Deformations are stored as whole numbers of 1 / STEPS px of their grid, a quarter of the resolution: 1 / 64 px."""


def checksum(array: NDArray) -> str:
    """Return the SHA-256 of an array's values and shape, whatever file they came from."""
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _bytes_of(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)


def _read(root: Path, modality: str, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the fixed and the aligned moving image of a pair below the root."""
    folder = root / f"{modality}-MRI"
    images = read_pair(PairFiles(name, folder / "MRI" / f"{name}.png", folder / modality / f"{name}.png"), modality)
    return images.fixed, images.moving


def draw(root: Path, output: Path = DRAW) -> pd.DataFrame:
    """Choose the pairs and their deformations; done once, the result is part of the project.

    Args:
        root: folder of the atlas's pairs.
        output: folder for pairs.csv and deformations.npz.

    Raises:
        FileError: an image cannot be read.
    """
    folds, rows, deformations = read_folds(), [], {}
    for modality, pairs in folds.groupby("modality", sort=False):
        # Patients in turn, each with its slices in an order that spreads over the head from the first one on.
        queues = [_spread(list(part["name"])) for _, part in pairs.groupby("group")]
        turns = [name for turn in range(PAIRS) for queue in queues for name in queue[turn : turn + 1]]
        chosen = pairs[pairs["name"].isin(turns[:PAIRS])]
        for number, row in enumerate(chosen.to_dict("records")):
            fixed, label = _read(root, modality, row["name"])
            flow = random_flow(fixed.shape, BENCHMARK, seeded(VAL_SEED, number))
            stored = np.rint(flow[0].numpy() * STEPS).astype(np.int16)
            deformations[f"{modality}/{row['name']}"] = stored
            sums = {"fixed_sha256": _bytes_of(fixed), "label_sha256": _bytes_of(label), "deformation_sha256": stored}
            rows.append({key: row[key] for key in ("modality", "name", "group", "fold")}
                        | {key: checksum(array) for key, array in sums.items()})  # fmt: skip
    table = pd.DataFrame(rows)
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "pairs.csv", table)
    np.savez_compressed(output / "deformations.npz", **deformations)
    return table


def _spread(items: list) -> list:
    """Order items so that any first few of them are spread over the list (van der Corput sequence)."""
    def place(number: int) -> float:
        return sum(int(digit) / 2 ** (i + 1) for i, digit in enumerate(reversed(f"{number:b}")))

    places = [place(number) for number in range(1, 4 * len(items) + 1)]
    return list(dict.fromkeys(items[int(x * len(items))] for x in places))


def write_benchmark(root: Path, output: Path, source: Path = DRAW) -> pd.DataFrame:
    """Write the pairs of the draw.

    Args:
        root: folder of the atlas's pairs.
        output: folder to write to.
        source: folder of the draw.

    Returns:
        What ``pairs.csv`` in `output` says: columns name, fixed, moving, label, flow, modality, group, fold.

    Raises:
        DataError: an image or a deformation is not that of the draw.
        FileError: a file cannot be read or written.
    """
    table = pd.read_csv(source / "pairs.csv", dtype=str)
    rows = []
    with np.load(source / "deformations.npz") as deformations:
        for row in tqdm(table.to_dict("records"), desc="pairs", unit="pair"):
            modality, name = row["modality"], row["name"]
            fixed, label = _read(root, modality, name)
            stored = deformations[f"{modality}/{name}"]
            contents = {"fixed": _bytes_of(fixed), "label": _bytes_of(label), "deformation": stored}
            for role, array in contents.items():
                if checksum(array) != row[f"{role}_sha256"]:
                    path = root / f"{modality}-MRI" / {"fixed": "MRI", "label": modality}.get(role, "") / f"{name}.png"
                    expected = f"the {role} of the draw, SHA-256 of its values {row[f'{role}_sha256'][:12]}..."
                    raise DataError.at(path, expected, f"{checksum(array)[:12]}...")
            files = files_of(output / modality, name)
            inputs = (root / f"{modality}-MRI" / kind / f"{name}.png" for kind in ("MRI", modality))
            check_inputs_stay(inputs, files.values())
            deformation = torch.from_numpy(stored.astype(np.float32) / STEPS)[None]
            write_misaligned(output / modality, name, fixed, label, deformation)
            paths = {role: path.relative_to(output).as_posix() for role, path in files.items()}
            rows.append({"name": name, **paths, **{key: row[key] for key in ("modality", "group", "fold")}})
    written = pd.DataFrame(rows)
    write_table(output / "pairs.csv", written)
    return written


def unaligned_table(root: Path) -> pd.DataFrame:
    """List the public pairs of the unaligned benchmark that came with BSAFusion (Li et al., AAAI 2025).

    Args:
        root: folder with CT-MRI, PET-MRI and SPECT-MRI, each with MRI, MODALITY, MODALITY_label and, in colour,
            MODALITY_label_RGB and MODALITY_Y.

    Returns:
        Columns name, fixed, moving, label, modality, grey_moving, grey_label; paths below the root. The grey files
        are in the benchmark authors' own grey levels, which the published RMSE of PET and SPECT refers to.

    Raises:
        FileError: a folder is missing, or names do not match.
    """
    rows = []
    for modality in MODALITIES:
        folder = root / f"{modality}-MRI"
        if not folder.is_dir():
            continue
        color = modality in COLOR_MODALITIES
        folders = {"fixed": "MRI", "moving": modality, "label": f"{modality}_label{'_RGB' * color}"}
        folders |= {"grey_moving": f"{modality}{'_Y' * color}", "grey_label": f"{modality}_label"}
        for pair in pair_files(**{role: folder / name for role, name in folders.items()}):
            paths = {role: pair[role].relative_to(root).as_posix() for role in folders}
            rows.append({"name": pair["name"], **paths, "modality": modality})
    if not rows:
        names = ', '.join(f'{name}-MRI' for name in MODALITIES)
        raise FileError.at(root, f"one or more of the folders {names}", "none")
    return pd.DataFrame(rows)


def run(options: argparse.Namespace) -> None:
    """Write the pairs or the table that the options name.

    Raises:
        FileError: as `write_benchmark` and `unaligned_table`.
    """
    if options.unaligned:
        table = unaligned_table(options.unaligned)
        write_table(options.output, table)
        print(f"Wrote {counted(len(table), 'pair')} to {options.output}; give --root {options.unaligned} with it")
    else:
        table = write_benchmark(options.root, options.output)
        print(f"Wrote {counted(len(table), 'pair')} to {options.output / 'pairs.csv'}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.benchmark_pairs``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.benchmark_pairs", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", metavar="DIR", type=Path,
                        help="folder of the Harvard atlas's aligned pairs: CT-MRI, PET-MRI and SPECT-MRI")
    source.add_argument("--unaligned", metavar="DIR", type=Path,
                        help="folder of BSAFusion's unaligned benchmark, to list instead")
    parser.add_argument("--output", metavar="PATH", type=Path, required=True,
                        help="folder to write the pairs to; with --unaligned the table to write")
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
