"""Draw docs/findings.png: findings in ten public pairs as two fusions show them, one above the other.

    python docs/findings_figure.py BEFORE AFTER

BEFORE and AFTER are results of the test command on the public benchmark, with folders CT, PET and SPECT. Run it from
the repository's folder, again after weights change.
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

FINDINGS = [
    ("CT", "000", "calcification", 87, 176),
    ("CT", "012", "haematoma", 157, 200),
    ("CT", "016", "skull base", 120, 96),
    ("CT", "010", "skull", 128, 60),
    ("CT", "002", "skull", 128, 60),
    ("PET", "024", "hot cerebellum", 120, 156),
    ("PET", "048", "hot cortex", 128, 128),
    ("PET", "015", "hot cortex", 128, 128),
    ("SPECT", "048", "hottest spot", 125, 193),
    ("SPECT", "066", "cortex", 128, 128),
]
"""Modality, pair, finding, and its place (column and row)."""

HALF = 40
"""Half of the side of a detail, px."""


def main(before: str, after: str) -> None:
    """Write docs/findings.png."""
    figure = Figure(figsize=(10, 8.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 5)
    for number, (modality, name, finding, column, row) in enumerate(FINDINGS):
        line, place = divmod(number, 5)
        for offset, (label, results) in enumerate({"before": before, "after": after}.items()):
            image = Image.open(Path(results, modality, "fused", f"{name}.png")).convert("RGB")
            left, top = (min(max(x - HALF, 0), image.size[axis] - 2 * HALF) for axis, x in enumerate((column, row)))
            panel = axes[2 * line + offset, place]
            panel.imshow(image.crop((left, top, left + 2 * HALF, top + 2 * HALF)), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if not offset:
                panel.set_title(f"{modality} {name}: {finding}", fontsize=9)
            if not place:
                panel.set_ylabel(label, fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(Path("docs", "findings.png"), dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
