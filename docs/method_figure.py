"""Draw docs/method.png: the network as data flows through it, with the maps of one pair of the sample.

    python EDARFusion_test_val.py --output results --save-flow --save-maps
    python docs/method_figure.py results/CT simulated_090

Run it from the repository's folder, again after weights change.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.map_styles import MAPS
from evaluation.pictures import flow_to_color

INK, LINE = "#1d2733", "#5c6670"
STAGES = {"reliability": "#dbe8f6", "flow": "#e3f0df", "fusion": "#fbe8d3", "plain": "#eef0f2"}
SIDE = 12.5  # of a thumbnail, in units of the drawing, which is 128 x 58


def load_pair(results: Path, name: str) -> dict[str, np.ndarray]:
    """Read the images, the flow and the maps of a pair as arrays that matplotlib can show."""
    sample = Path("data", "sample", results.name)
    files = {"fixed": sample / "fixed", "moving": sample / "moving", "aligned": results / "aligned"}
    files["fused"] = results / "fused"
    shown = {role: np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for role, folder in files.items()}
    with np.load(results / "maps" / "values" / f"{name}.npz") as values:
        for kind in ("entropy_difference", "gate", "reliability", "consistency"):
            style = MAPS[kind]
            share = (values[kind] - style.vmin) / (style.vmax - style.vmin)
            shown[kind] = colormaps[style.colormap](np.clip(share, 0, 1))[..., :3]
    shown["flow"] = flow_to_color(np.load(results / "flow" / f"{name}.npy"))
    return shown


def thumbnail(axes: Axes, image: np.ndarray, x: float, y: float, title: str) -> None:
    """Draw an image centred at (x, y) with its title below."""
    half = SIDE / 2
    axes.imshow(image, extent=(x - half, x + half, y - half, y + half), interpolation="lanczos", zorder=2)
    axes.plot([x - half, x + half, x + half, x - half, x - half], [y - half, y - half, y + half, y + half, y - half],
              color=LINE, linewidth=0.6, zorder=3)
    axes.text(x, y - half - 0.9, title, ha="center", va="top", fontsize=8.5, color=INK, linespacing=1.15)


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, stage: str) -> None:
    """Draw a part of the network."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=1.2",
                                  facecolor=STAGES[stage], edgecolor=LINE, linewidth=0.8, zorder=2))
    lines = text.count("\n") + 1
    place = {"ha": "center", "va": "center", "color": INK, "zorder": 3}
    axes.text(x, y + 1.15 * lines + 0.3, title, fontsize=9.5, weight="bold", **place)
    axes.text(x, y - 1.6, text, fontsize=8, linespacing=1.2, **place)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through the points with a head at the last one."""
    if len(points) > 2:
        x, y = zip(*points[:-1], strict=True)
        axes.plot(x, y, color=LINE, linewidth=1.1, zorder=1, solid_joinstyle="round")
    axes.add_patch(FancyArrowPatch(points[-2], points[-1], arrowstyle="-|>", mutation_scale=9, color=LINE,
                                   linewidth=1.1, shrinkA=0, shrinkB=0, zorder=1))


def draw(shown: dict[str, np.ndarray]) -> Figure:
    """Lay out the whole figure."""
    figure = Figure(figsize=(11.6, 5.3), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 128), ylim=(0, 58.5))
    axes.set_axis_off()
    top, bottom, middle = 41.0, 14.0, 28.5

    thumbnail(axes, shown["fixed"], 8, top, "fixed: MRI")
    thumbnail(axes, shown["moving"], 8, bottom, "moving: CT, PET\nor SPECT")
    box(axes, 25, top, 14, 9, "Encoders", "one for each\nimage", "plain")
    box(axes, 25, bottom, 14, 9, "Local entropy", "H of fixed\nand moving", "plain")
    box(axes, 43.5, top, 15, 9, "FRG-PreReg", "adapts features,\npredicts R", "reliability")
    thumbnail(axes, shown["entropy_difference"], 43.5, bottom, "entropy difference")
    thumbnail(axes, shown["reliability"], 61, top, "reliability R")
    thumbnail(axes, shown["gate"], 61, bottom, "gate W")
    box(axes, 78.5, middle, 15, 15, "EDA-FlowReg", "matching\nweighted by R,\nincrements\ngated by W", "flow")
    thumbnail(axes, shown["flow"], 95, top, "displacement field")
    thumbnail(axes, shown["aligned"], 95, bottom, "aligned")
    box(axes, 107.7, middle, 11.8, 15, "Fusion", "C from edges,\nR and W;\njoins edges\nwhere C is high", "fusion")
    thumbnail(axes, shown["consistency"], 120.5, top, "consistency C")
    thumbnail(axes, shown["fused"], 120.5, bottom, "fused")

    half = SIDE / 2
    for y, other in ((top, bottom), (bottom, top)):
        arrow(axes, (8 + half, y), (18, y))
        turn = 15.6 if y == top else 16.6
        arrow(axes, (turn, y), (turn, other - np.sign(other - y) * 2.2), (18, other - np.sign(other - y) * 2.2))
    arrow(axes, (32, top), (36, top))
    arrow(axes, (32, bottom), (43.5 - half, bottom))
    arrow(axes, (25, bottom + 4.5), (25, top - 4.5))
    arrow(axes, (51, top), (61 - half, top))
    arrow(axes, (43.5 + half, bottom), (61 - half, bottom))
    arrow(axes, (61 + half, top), (78.5, top), (78.5, middle + 7.5))
    arrow(axes, (61 + half, bottom), (78.5, bottom), (78.5, middle - 7.5))
    arrow(axes, (43.5, top - 4.5), (43.5, middle), (71, middle))
    axes.text(57, middle + 0.7, "features", ha="center", va="bottom", fontsize=8, color=LINE)
    arrow(axes, (86, middle), (87.3, middle), (87.3, top), (95 - half, top))
    arrow(axes, (95, top - half - 3.2), (95, bottom + half))
    axes.text(95.8, middle - 2.0, "warp", ha="left", va="center", fontsize=8, color=LINE)
    arrow(axes, (8, bottom - half - 4.6), (8, 1.6), (87.3, 1.6), (87.3, bottom), (95 - half, bottom))
    axes.text(48, 2.1, "moving", ha="center", va="bottom", fontsize=8, color=LINE)
    arrow(axes, (8, top + half), (8, 56.2), (107.7, 56.2), (107.7, middle + 7.5))
    axes.text(48, 55.7, "fixed", ha="center", va="top", fontsize=8, color=LINE)
    arrow(axes, (95 + half, bottom), (107.7, bottom), (107.7, middle - 7.5))
    arrow(axes, (113.6, middle), (120.5, middle), (120.5, top - half - 2.9))
    arrow(axes, (113.6, middle - 3), (120.5, middle - 3), (120.5, bottom + half))
    return figure


if __name__ == "__main__":
    draw(load_pair(Path(sys.argv[1]), sys.argv[2])).savefig("docs/method.png", dpi=170)
