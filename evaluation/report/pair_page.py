"""The views of one pair on the local page (app.py), as HTML with the pictures in it."""

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps

from evaluation.map_styles import MAPS
from evaluation.metrics.displacement import DOUBTFUL
from evaluation.pictures import blend_towards, red_green_overlay
from evaluation.report.columns import format_value, metric_of, shown_columns
from evaluation.report.pictures import Encoding, encode_image

COLORMAPS = ("grey", "hot", "inferno", "viridis", "turbo")
"""For grey pictures; colour pictures keep their own."""

_SHOWN = Encoding(90, 1024)
"""How pictures are embedded; what is downloaded has full size and no loss."""

_SURENESS_MAPS = ("expected_error", "reliability")
"""The map that says where an alignment is sure: the first of these that there is."""


def overlay_view(fixed: np.ndarray, moving: np.ndarray, aligned: np.ndarray) -> str:
    """Show the overlay before and after alignment, one over the other, with a slider that the keyboard moves as well.

    Args:
        fixed, moving, aligned: images (H, W) or (H, W, 3) in [0, 1], of one size.
    """
    before, after = (encode_image(red_green_overlay(fixed, image), _SHOWN) for image in (moving, aligned))
    return Markup(
        '<div class="ef-slider"><img src="{after}" alt="Overlay after alignment">'
        '<img class="before" src="{before}" alt="Overlay before alignment"><div class="line"></div></div>'
        '<input type="range" min="0" max="100" value="50" aria-label="Overlay: share that shows the pair before"'
        " oninput=\"this.previousElementSibling.style.setProperty('--at', this.value + '%')\">"
        "<p>Left of the line: before. Right of it: after.</p>"
    ).format(before=before, after=after)


def fused_view(
    fixed: np.ndarray,
    fused: np.ndarray,
    aligned: np.ndarray,
    *,
    blend: float = 0.0,
    colormap: str = COLORMAPS[0],
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """Show the fused image, moved towards one of its sources, windowed and coloured, beside the sources.

    Args:
        fixed, fused, aligned: images (H, W) or (H, W, 3) in [0, 1], of one size.
        blend: of `evaluation.pictures.blend_towards`.
        colormap: one of `COLORMAPS`, for a picture without colour.
        low, high: values that are shown black and white.
    """
    picture = blend_towards(fixed, fused, aligned, blend)
    # A window of no width shows what is below it black and what is above it white.
    picture = np.clip((picture - low) / max(high - low, 1e-3), 0, 1)
    if picture.ndim == 2 and colormap != COLORMAPS[0]:
        picture = colormaps[colormap](picture)[..., :3]
    titles = {"Fused" if not blend else f"Fused, blend {blend:+.2f}": picture, "Fixed": fixed, "Aligned": aligned}
    return _row({title: encode_image(image, _SHOWN) for title, image in titles.items()})


def sureness_view(row: pd.Series, files: Mapping[str, Path]) -> str:
    """Show how sure the alignment is, in a sentence and as a map.

    Args:
        row: of metrics.csv.
        files: of `inference.results.folder.ResultFolder.files`.
    """
    value = row.get("disagreement", np.nan)
    if pd.isna(value):
        sentence, kind = "Nothing was estimated that could disagree: there is no measure of how sure it is.", ""
    elif value > DOUBTFUL:
        sentence = (f"<b>Look closely.</b> The estimates disagree by {value:.2f} px of a head in 256 px. Above "
                    f"{DOUBTFUL:g} px pairs often do not belong together, or lie too far apart.")  # fmt: skip
        kind = " doubtful"
    else:
        sentence = f"The estimates agree to {value:.2f} px of a head in 256 px; up to {DOUBTFUL:g} px is usual."
        kind = ""
    map_kind = next((name for name in _SURENESS_MAPS if name in _saved_maps(files)), None)
    picture = "" if map_kind is None else _row({MAPS[map_kind].meaning: _embedded(files[f"maps/{map_kind}"])})
    return Markup('<div class="ef-sure{}"><p>{}</p>{}{}</div>').format(kind, Markup(sentence), _error(row), picture)


def _error(row: pd.Series) -> Markup:
    """Say how large an error is to be expected, if the network tells."""
    expected, bound = (row.get(column, np.nan) for column in ("expected_error", "error_bound"))
    if pd.isna(expected):
        return Markup("")
    rest = "the map of this network is not calibrated, so there is no bound"
    if pd.notna(bound):
        rest = f"9 of 10 places are expected to lie below {bound:.1f} px"
    return Markup("<p>An error of {} px is to be expected in the mean; {}.</p>").format(f"{expected:.1f}", rest)


def maps_view(files: Mapping[str, Path]) -> str:
    """Show every saved map with its colour bar and its meaning."""
    return _row({MAPS[kind].meaning: _embedded(files[f"maps/{kind}"]) for kind in _saved_maps(files)})


def metrics_view(rows: pd.DataFrame) -> str:
    """List the measures of one pair with their meaning.

    Args:
        rows: one row of metrics.csv.
    """
    lines = []
    for column in shown_columns(rows):
        metric = metric_of(column)
        value = format_value(float(rows[column].iloc[0]), metric.digits)
        cells = Markup('<tr><th scope="row">{} {}</th><td>{}</td><td>{}</td></tr>')
        lines.append(cells.format(metric.markup, metric.arrow, value, metric.description))
    head = '<tr><th scope="col">Measure</th><th scope="col">Value</th><th scope="col">What it is</th></tr>'
    return Markup('<table class="ef-table"><thead>{}</thead><tbody>{}</tbody></table>').format(
        Markup(head), Markup("").join(lines)
    )


def _saved_maps(files: Mapping[str, Path]) -> list[str]:
    """List the saved maps: some come with certain checkpoints only."""
    return [kind for kind in MAPS if f"maps/{kind}" in files and files[f"maps/{kind}"].is_file()]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _row(pictures: Mapping[str, str]) -> Markup:
    figure = Markup('<figure><img src="{uri}" alt="{title}"><figcaption>{title}</figcaption></figure>')
    return Markup('<div class="ef-row">{}</div>').format(
        Markup("").join(figure.format(uri=uri, title=title) for title, uri in pictures.items())
    )
