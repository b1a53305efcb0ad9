"""The report of a folder of results, with the pictures of its pairs."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from data.pairs import PairFiles, read_pair
from evaluation.map_styles import MAPS, MapStyle, map_picture
from evaluation.report.page import write_report
from evaluation.report.pictures import ColorScale, PairImages
from inference.results.files import read_maps
from inference.results.folder import ResultFolder
from inference.results.layout import INDEX, ResultLayout
from utils.imaging.colormaps import palette
from utils.imaging.images import has_color, read_image
from utils.messages import counted


def report_folder(folder: ResultFolder, pairs: Sequence[PairFiles], notes: Mapping[str, object]) -> None:
    """Write report.html of a folder from its metrics.csv and the pictures of the pairs.

    Args:
        notes: how the images were made, by what the report calls it.

    Raises:
        FileError: a picture cannot be read, or the report not be written.
    """
    title = f"EDARFusion: {folder.modality} and MRI, {counted(len(pairs), 'pair')}"
    scales = {style.title: _scale(style) for style in MAPS.values()} if folder.maps else {}
    pictures = _Pictures(folder, pairs)
    write_report(folder.report_path, folder.read_table(), pictures, title, notes, scales, f"../{INDEX}")


class _Pictures(Sequence):
    """The pictures of the report, each read when it is looked at: hundreds of pairs need not fit into memory."""

    def __init__(self, folder: ResultLayout, pairs: Sequence[PairFiles]) -> None:
        self.folder, self.pairs = folder, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairImages:
        pair, folder = self.pairs[index], self.folder
        images, files = read_pair(pair, folder.modality), folder.files(pair.name)
        color = images.moving.ndim == 3
        results = {kind: read_image(files[kind], color=color) for kind in ("aligned", "fused")}
        extra = {"Plain overlay": read_image(files["blend"], color=color)} if folder.blend else {}
        # Drawn pixel by pixel, over the images.
        maps = read_maps(files["maps/values"], MAPS) if folder.maps else {}
        extra |= {MAPS[kind].title: map_picture(values, kind) for kind, values in maps.items()}
        in_scale = folder.colormap and has_color(results["fused"]) and not has_color(images.moving)
        scales = {"Fused": _tracer_scale(folder.colormap)} if in_scale else {}
        return PairImages(pair.name, **images._asdict(), **results, extra=extra, scales=scales)

    def __iter__(self) -> Iterator[PairImages]:
        return (self[index] for index in range(len(self)))


def _scale(style: MapStyle) -> ColorScale:
    """Describe what the colours of a map stand for, for the report."""
    colors = [to_hex(color) for color in colormaps[style.colormap](np.linspace(0, 1, 9))]
    return ColorScale(f"{style.vmin:g}", f"{style.vmax:g}", style.unit, colors)


def _tracer_scale(colormap: str) -> ColorScale:
    """Describe the colours in which a grey tracer is shown, for the report."""
    return ColorScale("0", "1", f"tracer, {colormap}", [to_hex(color) for color in palette(colormap)[::15]])
