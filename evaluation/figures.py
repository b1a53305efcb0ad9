"""Figures that explain an alignment and a fusion: overlays, displacement pictures, maps.

Everything takes numpy arrays. Images are float in [0, 1], (H, W) grey or (H, W, 3) RGB; a flow is (2, H, W)
in pixels, channel 0 = x (columns), channel 1 = y (rows), with aligned(p) = moving(p + flow(p)). Figures are
matplotlib `Figure` objects drawn by the Agg canvas, never through pyplot, so no window, backend or global
state is touched and they may be made in worker processes.
"""

import io
import os
import warnings
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from evaluation.map_styles import MAPS, check_map, map_colors
from evaluation.pictures import (
    check_flow,
    check_image,
    check_same_size,
    checkerboard,
    deformation_grid,
    flow_to_color,
    red_green_overlay,
)
from utils.files import write_bytes
from utils.imaging.colormaps import palette

MUTED = "#5c6670"
_DPI = 100
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Yu Gothic",
             "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS")  # fmt: skip
"""Fonts for names of pairs, as far as they are there: matplotlib's own one has no Chinese, Japanese or Korean."""
_TICKS = {"length": 2.5, "width": 0.6, "labelsize": 7, "colors": MUTED, "pad": 2}


def _images(**images: np.ndarray) -> dict[str, np.ndarray]:
    """Check the images of one pair and clip them to [0, 1]."""
    images = {name: np.clip(check_image(image, name), 0.0, 1.0) for name, image in images.items()}
    check_same_size(**images)
    return images


def save_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Write a figure as PNG; the file appears whole or not at all, and missing folders are made."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        # A sign that no font has is shown as a box, which says as much.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(png, format="png")
    write_bytes(path, png.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of so many inches, drawn without a window."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches from the top left corner; a layout engine would draw everything twice."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (left / total_width, 1.0 - (top + height) / total_height, width / total_width, height / total_height)
    )


def _draw_picture(axes: Axes, image: np.ndarray, size: tuple[int, int], **settings) -> None:
    """Draw on the pixel grid of the pair: an image of another resolution is stretched over `size` (H, W)."""
    height, width = size
    axes.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto", **settings)
    axes.tick_params(**_TICKS)
    axes.spines[:].set_visible(False)
    axes.locator_params(nbins=4)


def _draw_map(axes: Axes, bar: Axes, array: np.ndarray, name: str, size: tuple[int, int]) -> None:
    style = MAPS[name]
    norm, colormap = map_colors(name)
    _draw_picture(axes, array, size, cmap=colormap, norm=norm, interpolation="nearest")
    # Where no value leaves the range, arrows on the bar would promise something that is not in the picture.
    finite = array[np.isfinite(array)]
    below, above = bool((finite < style.vmin).any()), bool((finite > style.vmax).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    axes.figure.colorbar(
        ScalarMappable(norm, colormap),
        cax=bar,
        extend=extend[below, above],
        ticks=np.linspace(style.vmin, style.vmax, 5),
    )
    bar.tick_params(**_TICKS)
    bar.set_ylabel(style.unit, fontsize=7.5, color=MUTED, labelpad=3)
    for spine in bar.spines.values():
        spine.set_linewidth(0.4)


def _describe(array: np.ndarray) -> str:
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        return "no finite value"
    return f"min {finite.min():.2f}   mean {finite.mean():.2f}   max {finite.max():.2f}"


def _panel_title(axes: Axes, title: str, detail: str = "") -> None:
    axes.set_title(title, fontsize=9.5, loc="left", pad=15 if detail else 5, color="#15191d")
    if detail:
        axes.annotate(
            detail,
            (0, 1),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )


def save_map(path: str | os.PathLike, array: np.ndarray, name: str) -> None:
    """Write one map as a PNG figure with its colour bar, pixel scale, and smallest, mean and largest value.

    Args:
        path: the PNG file; missing folders are made.
        array: (H, W) values in the unit of the map; non-finite values are drawn grey.
        name: a key of `MAPS`; it fixes title, unit, value range and colours.

    Raises:
        ValueError: `name` is unknown, or the array is not (H, W).
    """
    array = check_map(array, name, str(path))
    height, width = array.shape
    # The longer side has 3.2 inches; strips stay wide enough for title and ticks.
    scale = 3.2 / max(height, width)
    panel_height, panel_width = max(height * scale, 1.0), max(width * scale, 1.0)
    figure = new_figure(max(panel_width, 2.4) + 1.15, panel_height + 0.8)
    axes = _place(figure, 0.4, 0.5, panel_width, panel_height)
    bar = _place(figure, 0.4 + panel_width + 0.1, 0.5, 0.11, panel_height)
    _draw_map(axes, bar, array, name, (height, width))
    _panel_title(axes, MAPS[name].title, _describe(array))
    save_figure(path, figure)


def _draw_wheel(axes: Axes, max_magnitude: float) -> None:
    """Draw the key to `flow_to_color`: colour by direction, white in the middle, `max_magnitude` at the rim."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    disc = np.where(np.hypot(x, y) <= 1.0, 1.0, np.nan)
    axes.imshow(np.dstack([flow_to_color(np.stack([x, y]), 1.0), np.nan_to_num(disc)]), extent=(-1, 1, 1, -1))
    axes.set_axis_off()
    axes.set_title(f"{max_magnitude:.1f} px\nat the rim", fontsize=7, color=MUTED, pad=3)


_ROWS = (
    ("fixed", "moving", "aligned", "label", "fused", "grid"),
    ("checker_before", "checker_after", "overlay_before", "overlay_after", "flow", "jacobian"),
    ("entropy_fixed", "entropy_moving", "entropy_difference", "gate", "reliability", "consistency"),
    ("expected_error",),
)


def figure_strip(fixed: np.ndarray, moving: np.ndarray, aligned: np.ndarray, fused: np.ndarray) -> Figure:
    """Draw a pair in one row, as papers show it: fixed, moving, both laid over each other before and after, fused.

    Args:
        fixed, moving, aligned, fused: images in [0, 1], (H, W) or (H, W, 3), one size.

    Returns:
        A figure to be given to `save_figure`.

    Raises:
        ValueError: wrong shapes or different sizes; the message names them.
    """
    fixed, moving, aligned, fused = _images(fixed=fixed, moving=moving, aligned=aligned, fused=fused).values()
    views = {
        "Fixed": fixed,
        "Moving": moving,
        "Overlay before": red_green_overlay(fixed, moving),
        "Overlay after": red_green_overlay(fixed, aligned),
        "Fused": fused,
    }
    height, width = fixed.shape[:2]
    scale = 2.4 / max(height, width)
    panel_height, panel_width, gap, head = height * scale, max(width * scale, 1.3), 0.06, 0.3
    figure = new_figure(len(views) * (panel_width + gap) - gap, panel_height + head)
    for number, (title, image) in enumerate(views.items()):
        axes = _place(figure, number * (panel_width + gap), head, panel_width, panel_height)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(title, fontsize=12, pad=4)
    return figure


def figure_pair(
    fixed: np.ndarray,
    moving: np.ndarray,
    aligned: np.ndarray,
    fused: np.ndarray,
    *,
    label: np.ndarray | None = None,
    flow: np.ndarray | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
    title: str = "",
    colormap: str | None = None,
) -> Figure:
    """Draw everything known of one pair in one figure of three rows.

    Images with the deformation grid; checkerboards, red-green overlays before and after, flow, Jacobian;
    entropy, gate, reliability and consistency. What is not given leaves its place empty, a row of nothing is
    left out.

    Args:
        fixed, moving, aligned, fused, label: images in [0, 1], (H, W) or (H, W, 3), one size.
        flow: (2, H, W), pixels.
        maps: arrays (h, w) by their name in `MAPS`; a map of lower resolution is stretched over the pair.
        title: headline, for instance the pair's name.
        colormap: colour scale (`utils.imaging.colormaps`) in which the fused image shows a grey tracer; None for none.

    Returns:
        A figure to be given to `save_figure`.

    Raises:
        ValueError: wrong shapes, different sizes or an unknown map; the message names it.
    """
    images = {"fixed": fixed, "moving": moving, "aligned": aligned, "fused": fused}
    images = _images(**images if label is None else images | {"label": label})
    if flow is not None:
        flow = check_flow(flow)
        check_same_size(fixed=images["fixed"], flow=flow[0])
    maps = {name: check_map(array, name, "maps") for name, array in (maps or {}).items()}
    views = _views(images)
    present = {*views, *maps} | ({"grid", "flow"} if flow is not None else set())
    rows = [row for row in _ROWS if present.intersection(row)]
    sheet = _Sheet(images["fixed"].shape[:2], len(rows), title)
    for row_index, row in enumerate(rows):
        for column_index, name in enumerate(row):
            place = (row_index, column_index)
            if name in maps:
                sheet.add_map(place, maps[name], name)
            elif name in views:
                sheet.add_view(place, *views[name], colormap if name == "fused" else None)
            elif name == "grid" and flow is not None:
                sheet.add_grid(place, flow, images["moving"])
            elif name == "flow" and flow is not None:
                sheet.add_flow(place, flow)
    return sheet.figure


def _views(images: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str, str]]:
    """Make the pictures of a pair that are no maps: name -> picture, title, and what its colours mean."""
    views = {name: (image, name.capitalize(), "") for name, image in images.items()}
    for when, other in (("before", "moving"), ("after", "aligned")):
        views[f"checker_{when}"] = (checkerboard(images["fixed"], images[other]), f"Checkerboard, {when}", "")
        overlay = red_green_overlay(images["fixed"], images[other])
        views[f"overlay_{when}"] = (overlay, f"Overlay, {when}", f"red: fixed, green: {other}")
    if "label" in images:
        views["label"] = (images["label"], "Label (true alignment)", "")
    return views


class _Sheet:
    """A figure of panels in rows of six, each with room for a title and a bar.

    Args:
        size: height and width of the pair, px.
        rows: of panels.
        title: headline.
    """

    def __init__(self, size: tuple[int, int], rows: int, title: str) -> None:
        self.size = size
        scale = 2.2 / max(size)
        self.height, self.width = (max(side * scale, 0.8) for side in size)
        self.head = 0.42 if title else 0.08
        self.figure = new_figure(6 * (self.width + 0.95) + 0.2, rows * (self.height + 0.72) + self.head)
        if title:
            installed = set(get_font_names())
            self.figure.text(
                0.35 / self.figure.get_figwidth(), 1 - 0.26 / self.figure.get_figheight(), title, fontsize=14,
                weight="bold", family=[family for family in _FAMILIES if family in installed],
            )  # fmt: skip

    def add_map(self, place: tuple[int, int], array: np.ndarray, name: str) -> None:
        """Draw one of `MAPS` at a place (row, column)."""
        axes, left, top = self._panel(place)
        _draw_map(axes, self._bar(left, top), array, name, self.size)
        _panel_title(axes, MAPS[name].title, _describe(array))

    def add_view(
        self, place: tuple[int, int], image: np.ndarray, title: str, detail: str, colormap: str | None = None
    ) -> None:
        """Draw a picture, a grey one with its bar, a coloured one with that of its colour scale, if one is known."""
        axes, left, top = self._panel(place)
        _draw_picture(axes, image, self.size, cmap="gray", vmin=0, vmax=1)
        _panel_title(axes, title, detail)
        scale = "gray" if image.ndim == 2 else colormap and ListedColormap(palette(colormap))
        if scale:
            bar = self._bar(left, top)
            self.figure.colorbar(ScalarMappable(Normalize(0, 1), scale), cax=bar, ticks=(0, 0.5, 1))
            bar.tick_params(**_TICKS)
            if image.ndim == 3:
                bar.set_ylabel(f"tracer, {colormap}", fontsize=7.5, color=MUTED, labelpad=3)

    def add_grid(self, place: tuple[int, int], flow: np.ndarray, moving: np.ndarray) -> None:
        """Draw the grid of the fixed image where it falls in the moving one."""
        axes, *_ = self._panel(place)
        _draw_picture(axes, moving, self.size, cmap="gray", vmin=0, vmax=1, alpha=0.6)
        lines = deformation_grid(flow, max(4, min(self.size) // 20))
        axes.add_collection(LineCollection(lines, colors="#4cc9ff", linewidths=0.6), autolim=False)
        axes.set_facecolor("black")
        _panel_title(axes, "Deformation grid", "fixed grid, where it falls in moving")

    def add_flow(self, place: tuple[int, int], flow: np.ndarray) -> None:
        """Draw a flow in colours, with their wheel."""
        axes, left, top = self._panel(place)
        magnitude = np.hypot(*flow)
        largest = float(np.nanmax(magnitude, initial=0.0)) or 1.0
        _draw_picture(axes, flow_to_color(flow, largest), self.size)
        _panel_title(axes, "Flow", f"{_describe(magnitude)} px")
        _draw_wheel(_place(self.figure, left + self.width + 0.05, top + 0.3, 0.5, 0.5), largest)

    def _panel(self, place: tuple[int, int]) -> tuple[Axes, float, float]:
        """Add axes at a place, and return them with their left and top, inches."""
        left = 0.35 + place[1] * (self.width + 0.95)
        top = self.head + 0.42 + place[0] * (self.height + 0.72)
        return _place(self.figure, left, top, self.width, self.height), left, top

    def _bar(self, left: float, top: float) -> Axes:
        return _place(self.figure, left + self.width + 0.08, top, 0.09, self.height)
