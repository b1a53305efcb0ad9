"""Compare what fused images of several systems show of the findings, beside the usual metrics, over all modalities.

    python -m tools.fidelity --data BENCHMARK --output DIR \\
        --system EDARFusion RESULTS --system BSAFusion PUBLISHED

BENCHMARK has the folders M-MRI/MRI, M-MRI/CT_label, M-MRI/PET_label_RGB and M-MRI/SPECT_label_RGB. A system's folder
has, for each modality M, a folder M (as the test command writes it) or M-MRI with aligned/ and fused/ or fused_rgb/.
Bone and contrast are measured against the system's own aligned image, colours and the other metrics against the truth.
Writes fidelity.csv, a row a pair, and fidelity.md, which it prints.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from data.table import MODALITIES
from evaluation.report.columns import metric_of
from evaluation.scoring import score_folders
from utils.arguments import OneLineParser, add_workers, print_anywhere
from utils.command import run_command
from utils.files import FileError, write_bytes
from utils.messages import markdown_table
from utils.tables import write_table

LABELS = {"CT": "CT_label", "PET": "PET_label_RGB", "SPECT": "SPECT_label_RGB"}
SHOWN = {
    "CT": ("bone_holes", "bone_holes, worst", "contrast_fixed", "contrast_moving"),
    "PET": ("near_white", "saturation_kept", "hue_error", "tracer_order", "contrast_fixed"),
}
SHOWN["SPECT"] = SHOWN["PET"]
USUAL_METRICS = ("qabf", "qvif", "qcv", "qcb", "qssim")


def folders_of(root: str, modality: str) -> dict[str, Path] | None:
    """Find the fused and aligned images of a system, in colour where there is a choice; None where it has none.

    Raises:
        FileError: the fused or the aligned images are missing.
    """
    for folder in (Path(root, modality), Path(root, f"{modality}-MRI")):
        if folder.is_dir():
            fused = folder / "fused_rgb"
            folders = {"fused": fused if fused.is_dir() else folder / "fused", "aligned": folder / "aligned"}
            for path in folders.values():
                if not path.is_dir():
                    raise FileError.at(path, "a folder of images", "none")
            return folders
    return None


def measured(data: str, systems: dict[str, str], workers: int | None = None) -> pd.DataFrame:
    """Score the pairs of all systems and modalities.

    Args:
        data: the benchmark's folder.
        systems: name -> folder.
        workers: processes, as of `evaluation.scoring.score_folders`.

    Returns:
        A row a pair: ``modality``, ``system``, ``name`` and the columns of `evaluation.scoring.score_pair`.

    Raises:
        FileError: a folder or file cannot be used, or names do not pair.
    """
    tables = []
    for modality, label in LABELS.items():
        truth = Path(data, f"{modality}-MRI")
        for system, root in systems.items():
            if folders := folders_of(root, modality):
                scores = score_folders(
                    workers=workers, description=f"{modality} {system}", fixed=truth / "MRI", reference=truth / label,
                    label=truth / label, **folders,
                )  # fmt: skip
                scores.insert(0, "system", system)
                scores.insert(0, "modality", modality)
                tables.append(scores)
    if not tables:
        raise FileError.at(data, f"a system with folders of {', '.join(MODALITIES)}", "none")
    return pd.concat(tables, ignore_index=True)


def report(table: pd.DataFrame) -> str:
    """Format a table a modality: means of the measures of fidelity, then of the usual metrics."""
    parts = []
    for modality, rows in table.groupby("modality", sort=False):
        lines = []
        for system, own in rows.groupby("system", sort=False):
            values = [
                own[name.removesuffix(", worst")].agg("max" if name.endswith("worst") else "mean")
                for name in (*SHOWN[modality], *USUAL_METRICS)
                if name.removesuffix(", worst") in own
            ]
            lines.append([system, str(len(own)), *(f"{x:.1f}" if abs(x) >= 100 else f"{x:.3f}" for x in values)])
        names = [name for name in (*SHOWN[modality], *USUAL_METRICS) if name.removesuffix(", worst") in rows]
        parts += [f"## {modality}", markdown_table(["system", "pairs", *map(_heading, names)], lines)]
    return "\n\n".join(parts) + "\n"


def _heading(name: str) -> str:
    """Name a column of the report, such as "Bone holes, worst ↓", by its column of metrics.csv."""
    column, comma, worst = name.partition(", ")
    metric = metric_of(column)
    return f"{metric.text}{comma}{worst} {metric.arrow}"


def run(options: argparse.Namespace) -> None:
    """Compare the systems of the options, write both files and print the report.

    Raises:
        FileError: as `measured`, or a file cannot be written.
    """
    table = measured(options.data, dict(options.systems), options.workers)
    text = report(table)
    write_table(options.output / "fidelity.csv", table, "%.6g")
    write_bytes(options.output / "fidelity.md", text.encode())
    print(text)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.fidelity``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.fidelity", description=__doc__)
    parser.add_argument("--data", metavar="DIR", required=True,
                        help="folder of the pairs and their truth, M-MRI for each modality M")
    parser.add_argument("--system", dest="systems", nargs=2, metavar=("NAME", "DIR"), action="append", required=True,
                        help="name of a method and the folder of its results; repeat for each method")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    add_workers(parser)
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
