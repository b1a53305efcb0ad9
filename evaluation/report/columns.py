"""The columns of metrics.csv: what they are called on a page, which values are better, how they are written."""

import math
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from evaluation.metrics.displacement import DOUBTFUL


class Metric(NamedTuple):
    """How a column of the table is shown."""

    base: str
    superscript: str = ""
    subscript: str = ""
    better: int = 0  # +1: higher is better, -1: lower is better, 0: neither
    digits: int = 3
    description: str = ""
    group: str = "Fusion"  # headline of the column

    @property
    def text(self) -> str:
        """The name in plain text."""
        above = f"^{self.superscript}" if self.superscript else ""
        return self.base + above + (f"_{self.subscript}" if self.subscript else "")

    @property
    def markup(self) -> Markup:
        """The name with its sub- and superscript."""
        above = Markup("<sup>{}</sup>").format(self.superscript) if self.superscript else ""
        below = Markup("<sub>{}</sub>").format(self.subscript) if self.subscript else ""
        return Markup("{}{}{}").format(self.base, above, below)

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return {1: "higher is better", -1: "lower is better", 0: ""}[self.better]

    @property
    def arrow(self) -> str:
        """Which values are better, as a sign."""
        return {1: "↑", -1: "↓", 0: ""}[self.better]


REGISTRATION = "Registration"

METRICS: dict[str, Metric] = {
    "rmse": Metric(
        "RMSE", better=-1, digits=2, description="root mean square error to the label, grey levels", group=REGISTRATION
    ),
    "ssim": Metric("SSIM", better=1, description="structural similarity to the label", group=REGISTRATION),
    "ncc": Metric("NCC", better=1, description="normalised cross-correlation with the label", group=REGISTRATION),
    "epe": Metric(
        "EPE", better=-1, digits=2, description="endpoint error of the flow in tissue, pixels", group=REGISTRATION
    ),
    "disagreement": Metric(
        "Disagreement",
        better=-1,
        digits=2,
        description=f"of averaged estimates, pixels of 256: above {DOUBTFUL:g} look closely",
        group=REGISTRATION,
    ),
    "expected_error": Metric(
        "Expected error",
        better=-1,
        digits=2,
        description="of the flow in the head, pixels, as the network predicts it; without a bound not calibrated",
        group=REGISTRATION,
    ),
    "error_bound": Metric(
        "Error bound",
        better=-1,
        digits=2,
        description="below which the error of 9 of 10 places in the head is expected to lie, pixels",
        group=REGISTRATION,
    ),
    "tre": Metric("TRE", better=-1, digits=2, description="distance of landmarks, pixels", group=REGISTRATION),
    "tre_mm": Metric("TRE", "mm", better=-1, digits=2, description="distance of landmarks, mm", group=REGISTRATION),
    "dice": Metric("Dice", better=1, description="overlap of label maps, mean over labels", group=REGISTRATION),
    "folding": Metric(
        "Folding", better=-1, digits=4, description="share of pixels whose Jacobian is not positive", group=REGISTRATION
    ),
    "qabf": Metric("Q", "AB/F", better=1, description="edges that the fusion keeps (Xydeas and Petrovic)"),
    "qcv": Metric("Q", "", "CV", -1, 1, "perceived difference to the sources (Chen and Varshney)"),
    "qvif": Metric("VIFF", better=1, description="visual information fidelity for fusion (Han et al.)"),
    "qs": Metric("Q", "", "S", 1, 3, "structural quality index (Piella and Heijmans)"),
    "qssim": Metric("Q", "", "SSIM", 1, 3, "structural similarity to both sources"),
    "qcb": Metric("Q", "", "CB", 1, 3, "human perception model (Chen and Blum)"),
    "qy": Metric("Q", "", "Y", 1, 3, "structural similarity where the sources agree (Yang et al.)"),
    "mi": Metric("MI", better=1, description="mutual information with both sources"),
    "en": Metric("EN", better=1, description="entropy of the fused image, bits"),
    "sd": Metric("SD", better=1, digits=2, description="standard deviation of the fused image"),
    "sf": Metric("SF", better=1, digits=2, description="spatial frequency of the fused image"),
    "ag": Metric("AG", better=1, digits=2, description="average gradient of the fused image"),
    "bone_holes": Metric("Bone holes", better=-1, description="share of solid bone that is drawn dark"),
    "contrast_fixed": Metric(
        "Contrast of fixed", better=1, digits=2, description="local contrast of the fixed image that shows, 1: all"
    ),
    "contrast_moving": Metric(
        "Contrast of moving", better=1, digits=2, description="the same of the moving image, in luma: colour is extra"
    ),
    "saturation_kept": Metric(
        "Saturation kept", better=1, digits=2, description="share of strong colours' saturation that is kept"
    ),
    "near_white": Metric("Near white", better=-1, description="share of strong colours that came out near white"),
    "hue_error": Metric("Hue error", better=-1, digits=1, description="of strong colours, degrees"),
    "tracer_order": Metric(
        "Tracer order", better=1, digits=2, description="rank correlation of tracer and what its colour is taken for"
    ),
    "seconds": Metric("Seconds", better=-1, description="time for the pair", group="Run"),
}
"""Columns of metrics.csv by name, in the order of the page. Columns not listed here follow, without arrow."""

BEFORE_SUFFIX = "_before"


def key_of(column: str) -> str:
    """Return the metric of a column, before alignment or after."""
    return column.removesuffix(BEFORE_SUFFIX)


def metric_of(column: str) -> Metric:
    """Return how a column is shown; a column that is not in `METRICS` goes by its name."""
    return METRICS.get(key_of(column), Metric(key_of(column), digits=4, group="Further"))


def shown_columns(rows: pd.DataFrame) -> list[str]:
    """List numeric columns that hold a value, each `..._before` in front of its own, registration first."""
    numeric = {column for column in rows.select_dtypes("number").columns if rows[column].notna().any()}
    known = [column for key in METRICS for column in (key + BEFORE_SUFFIX, key) if column in numeric]
    return known + [column for column in rows.columns if column in numeric.difference(known)]


def format_value(value: float, digits: int) -> str:
    """Format a value for the page, or a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def before_and_after(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the values before and after of the pairs that have both; columns `before` and `after`."""
    both = rows[[key + BEFORE_SUFFIX, key]].dropna()
    return both.set_axis(["before", "after"], axis=1)


def improved(paired: pd.DataFrame, better: int) -> pd.Series:
    """Return which pairs of `before_and_after` got better; `better` as of `Metric`."""
    return (paired["after"] - paired["before"]) * better > 0
