"""What the test command prints at its end: means, where the pictures are, and which pairs to look at."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from evaluation.metrics.displacement import DOUBTFUL
from evaluation.report.columns import METRICS
from inference.results.folder import ResultFolder
from utils.messages import counted, listed

SUMMARY = ("rmse", "ssim", "ncc", "epe", "tre", "tre_mm", "dice", "disagreement", "expected_error",
           "error_bound", "qabf", "qvif", "qcv", "bone_holes", "saturation_kept", "near_white", "folding",
           "seconds")  # fmt: skip
"""Columns of metrics.csv whose means are printed."""


def print_summary(
    tables: dict[str, pd.DataFrame], folders: dict[str, ResultFolder], *, barely_trained: bool = False
) -> None:
    """Print means by modality, before → after where both are known, and where the pictures are.

    Args:
        tables: modality -> metrics of its pairs; without any nothing is printed.
        folders: modality -> folder.
        barely_trained: the network, so that its disagreement says nothing about the images.
    """
    if not tables:
        return
    means = {modality: table.mean(numeric_only=True) for modality, table in tables.items()}
    summary = Table("mean", *(f"{name}, {counted(len(table), 'pair')}" for name, table in tables.items()))
    for column in SUMMARY:
        cells = []
        for mean in means.values():
            values = [mean.get(f"{column}_before"), mean.get(column)]
            cells.append(" → ".join(f"{value:.{METRICS[column].digits}f}" for value in values if pd.notna(value)))
        if any(cells):
            summary.add_row(named(column), *cells)
    summary.add_section()
    summary.add_row("scored against MRI and", *map(scored_against, tables.values()))
    Console().print(summary)
    for modality in tables:
        print(f"{modality}: pictures in {folders[modality].report_path}, metrics in {folders[modality].table_path}")
    if any("expected_error" in table and "error_bound" not in table for table in tables.values()):
        print("expected error: not calibrated on patients never seen for this checkpoint, so it comes without a bound")
    for modality, table in {} if barely_trained else tables.items():
        doubtful = table.reindex(columns=["name", "disagreement"]).query("disagreement > @DOUBTFUL")["name"]
        if len(doubtful):
            print(
                f"{modality}: look closely at {listed(list(doubtful))}: disagreement above {DOUBTFUL:g} px of 256; "
                "do the images belong together and lie alike?"
            )


def named(column: str) -> str:
    """Name a column of metrics.csv as the report and the documents do, with its arrow; for instance "Q^AB/F ↑"."""
    metric = METRICS[column]
    return f"{metric.text} {metric.arrow}".rstrip()


def scored_against(table: pd.DataFrame) -> str:
    """Say what the fusion metrics of a table refer to beside the fixed image."""
    labels = int((table["reference"] == "label").sum())
    if labels == len(table):
        return "the label"
    flattered = "the own aligned image (flatters)"
    return f"{flattered}; of {labels} the label" if labels else flattered
