"""The files of a pair: images, displacement fields, maps and figures are written here, and maps read again."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from data.pairs import PairFiles, read_pair
from evaluation.figures import figure_pair, figure_strip, save_figure, save_map
from evaluation.map_styles import MAPS
from inference.fused_pair import FusedPair
from inference.results.layout import ResultLayout
from utils.files import FileError, remove, write_bytes
from utils.imaging.flows import save_flow
from utils.imaging.images import has_color, luma, read_image, write_image


def save_pair(folder: ResultLayout, pair: PairFiles, result: FusedPair) -> dict[str, Path]:
    """Write the files of a pair.

    Args:
        folder: where to, and which kinds of files are wanted.

    Returns:
        The files by kind, as `ResultLayout.files` lists them, and `fitted`, the moving image in its new size.

    Raises:
        FileError: a file cannot be written.
    """
    name, files = pair.name, folder.files(pair.name)
    write_image(files["fused"], result.fused)
    write_image(files["aligned"], result.aligned)
    if result.fit:
        files["fitted"] = folder.fitted_path(name)
        write_image(files["fitted"], read_pair(pair, folder.modality).moving)
    if folder.greys:
        write_image(files["fused_grey"], luma(result.fused) if result.fused_grey is None else result.fused_grey)
    if folder.blend:
        write_image(files["blend"], result.blend)
    if folder.flow:
        _save_flows(pair, result, files)
    if folder.maps:
        for kind in MAPS:
            if kind in result.maps:
                save_map(files[f"maps/{kind}"], result.maps[kind], kind)
            else:
                remove(files[f"maps/{kind}"])  # of an earlier network, which made one
        values = io.BytesIO()
        np.savez_compressed(values, **result.maps)
        write_bytes(files["maps/values"], values.getvalue())
    if folder.figures:
        images = read_pair(pair, folder.modality)
        figure = figure_pair(
            images.fixed, images.moving, result.aligned, result.fused,
            label=images.label, flow=result.flow, maps=result.maps, title=f"{folder.modality} {name}",
            colormap=None if has_color(images.moving) else folder.colormap,
        )  # fmt: skip
        save_figure(files["figures"], figure)
        strip = figure_strip(images.fixed, images.moving, result.aligned, result.fused)
        save_figure(files["figures/strips"], strip)
    return files


def read_maps(path: Path, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """Read maps of a pair from its numbers, maps/values/NAME.npz.

    Args:
        path: the file.
        kinds: keys of `evaluation.map_styles.MAPS`. Those that the file lacks are left out.

    Returns:
        Kind -> float32 (H, W), in the unit of the map.

    Raises:
        FileError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as values:
            return {kind: values[kind].astype(np.float32) for kind in kinds if kind in values}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError.at(path, "the values of maps (NumPy archive)", str(error)) from error


def _save_flows(pair: PairFiles, result: FusedPair, files: Mapping[str, Path]) -> None:
    """Write the displacement field and its inverse, which apply to the images as they are in their files."""
    flow, inverse, fit = result.flow, result.inverse_flow, result.fit
    save_flow(files["flow"], fit.to_original(flow) if fit else flow)
    if inverse is None:
        remove(files["flow_inverse"])  # of an earlier system, which gave one
    elif fit:
        save_flow(files["flow_inverse"], fit.inverse_to_original(inverse, read_image(pair.moving).shape))
    else:
        save_flow(files["flow_inverse"], inverse)
