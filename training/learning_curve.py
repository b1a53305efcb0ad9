"""Learning curve of a training run as a figure."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.interpolate import make_interp_spline

from evaluation.figures import MUTED, new_figure

_MODALITY_COLOURS = ("#0b6e99", "#c2571a", "#5b8c2a", "#8a4fa0", "#a8862a")

def learning_curve_figure(history: pd.DataFrame) -> Figure:
    """Draw the validation endpoint error over training, one line per modality, against the error of zero flow.

    Args:
        history: a row an epoch with the columns `epoch` and `epe_MODALITY` (pixels), and, if known, `minutes`
            (training time so far) and `zero_MODALITY` (error of zero flow). NaN where nothing was validated.

    Returns:
        A figure to be given to `save_figure`.

    Raises:
        ValueError: no column `epoch`, or none named `epe_...`.
    """
    modalities = [column.removeprefix("epe_") for column in history.columns if column.startswith("epe_")]
    if "epoch" not in history.columns or not modalities:
        columns = ", ".join(map(str, history.columns))
        raise ValueError(f"history: expected the columns 'epoch' and 'epe_MODALITY', found {columns or 'none'}")
    figure = new_figure(7.2, 4.2)
    axes = figure.add_axes((0.085, 0.13, 0.76, 0.72))
    for index, modality in enumerate(modalities):
        colour = _MODALITY_COLOURS[index % len(_MODALITY_COLOURS)]
        seen = history[["epoch", f"epe_{modality}"]].dropna()
        if seen.empty:
            continue
        epochs, errors = seen["epoch"].to_numpy(float), seen[f"epe_{modality}"].to_numpy(float)
        marker = "o" if len(seen) <= 40 else ""
        axes.plot(epochs, errors, color=colour, linewidth=1.6, marker=marker, markersize=3, label=modality)
        best = errors.argmin()
        axes.plot(
            epochs[best], errors[best], "o", markersize=7, markerfacecolor="none", markeredgecolor=colour
        )
        zero = history.get(f"zero_{modality}", pd.Series(dtype=float)).dropna()
        if not zero.empty:
            axes.axhline(zero.iloc[-1], color=colour, linewidth=1, linestyle=(0, (4, 3)), label="_zero")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel("endpoint error on validation pairs, px", fontsize=9)
    axes.grid(axis="y", color="#e3e6e9", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.set_title("Learning curve: circle = best epoch, dashed = zero flow", fontsize=10, loc="left", pad=26)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    if "minutes" in history.columns:
        time = history[["epoch", "minutes"]].dropna().sort_values("epoch").to_numpy(float)
        if len(time) > 1 and np.all(np.diff(time, axis=0) > 0):
            above = axes.secondary_xaxis(
                "top",
                # Splines of degree 1: linear between the epochs and beyond, where the axis has margins.
                functions=(
                    make_interp_spline(time[:, 0], time[:, 1], k=1),
                    make_interp_spline(time[:, 1], time[:, 0], k=1),
                ),
            )
            above.tick_params(labelsize=7, colors=MUTED, length=2.5)
            above.set_xlabel("minutes of training", fontsize=8, color=MUTED, labelpad=2)
    return figure
