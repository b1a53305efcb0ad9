"""The results of one modality on disk: where each file lies, the table of metrics, what is finished, the report."""

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from data.pairs import COLOR_MODALITIES, PairFiles, read_pair
from evaluation.figures import MAPS, MapStyle, figure_pair, figure_strip, map_picture, save_figure, save_map
from evaluation.report.page import write_report
from evaluation.report.pictures import PairImages, Scale
from evaluation.scoring import with_mean
from utils.arguments import FLOW_FORMATS
from utils.files import FileError, remove, remove_unfinished, write_bytes
from utils.geometry.fit import Fit
from utils.imaging.colormaps import palette
from utils.imaging.flows import FLOW_SUFFIXES, save_flow
from utils.imaging.images import has_color, luma, read_image, write_image
from utils.messages import counted

FUSION_METRICS = ("qabf", "qcv", "qvif", "qs", "qssim", "qcb", "qy", "mi", "en", "sd", "sf", "ag")
REGISTRATION_METRICS = ("rmse", "ssim", "ncc", "rmse_before", "ssim_before", "ncc_before")
COLUMNS = ("name", "seconds", *FUSION_METRICS, "reference", *REGISTRATION_METRICS, "folding")
"""Columns of metrics.csv."""
LABEL_DICE = re.compile(r"dice_\d+")
"""Columns of the Dice coefficients of single labels."""
INDEX = "report.html"
"""Name of the page above the folders of the modalities, with the means of all of them."""
DIGITS = "%.10g"  # of numbers in metrics.csv
COLOR_FIDELITY = ("saturation_kept", "near_white", "hue_error", "tracer_order", "contrast_fixed", "contrast_moving")
FIDELITY_METRICS = {
    "CT": ("bone_holes", "contrast_fixed", "contrast_moving"),
    **dict.fromkeys(COLOR_MODALITIES, COLOR_FIDELITY),
}
"""Columns of `evaluation.metrics.fidelity_metrics` that say something of a modality."""
MARK_METRICS = ("tre", "tre_before", "tre_mm", "tre_mm_before", "dice", "dice_before")
"""Columns of `inference.marks`; a column dice_LABEL for each label follows them."""
FURTHER_COLUMNS = ("disagreement", "expected_error", "epe", "epe_before", *MARK_METRICS, "bone_holes", *COLOR_FIDELITY)
"""Columns of tables that have something to say there: how far averaged estimates disagree, px of heads in 256 px; the
mean endpoint error that is to be expected in the head, px; where true flows are known, endpoint error of the flow and
of zero flow, px; what becomes of bone, colours and contrast."""
NOT_ALWAYS = {"maps/expected_error", "flow_inverse"}
"""Files that not every system makes of every pair."""
FIELDS = ("displacement", "displacement_inverse")
"""Names of the displacement field of a volume, and of its inverse."""


class FusedPair(NamedTuple):
    """What the network makes of one pair.

    Attributes:
        fused, aligned: (H, W), or (H, W, 3) in colour; float32 in [0, 1].
        flow: float32 (2, H, W), px; aligned(p) = moving(p + flow(p)), channel 0 is x.
        inverse_flow: the way back, where it is wanted: moving(q) shows what fixed(q + inverse_flow(q)) shows.
        maps: (H, W) arrays by their name in `evaluation.figures.MAPS`.
        seconds: time to align and fuse, without reading and writing.
        disagreement: of the averaged estimates, as in `models.edarfusion.Output`; None for a single one.
        expected_error: mean in the head of the map of that name, px; None where there is none.
        fit: how the moving image was brought to this size, if it had another.
        blend: the plain overlay, as `fused`, where one was asked for.
        fused_grey: (H, W), a grey tracer fused without the colour scale that `fused` shows it in, where asked for.
    """

    fused: np.ndarray
    aligned: np.ndarray
    flow: np.ndarray
    maps: dict[str, np.ndarray]
    seconds: float
    disagreement: float | None = None
    expected_error: float | None = None
    fit: Fit | None = None
    blend: np.ndarray | None = None
    inverse_flow: np.ndarray | None = None
    fused_grey: np.ndarray | None = None


class ResultFolder:
    """The folder OUTPUT/MODALITY.

    Args:
        path: the folder.
        modality: what the pairs in it are.
        settings: what the results depend on beside the pairs, as JSON: the checkpoint and how it is used.
        flow, maps, figures, blend: what is saved beside the fused and aligned images.
        flow_format: of `utils.arguments.FLOW_FORMATS`. Of slices of volumes npy alone is written, as they lie nowhere.
        volumes: whether the pairs are slices of volumes.
        colormap: colour scale of grey tracers, for the figures' colour bars; None where there is none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        modality: str,
        settings: Mapping | None = None,
        *,
        flow: bool = False,
        flow_format: str = FLOW_FORMATS[0],
        volumes: bool = False,
        maps: bool = False,
        figures: bool = False,
        blend: bool = False,
        colormap: str | None = None,
    ) -> None:
        self.path, self.modality, self.settings = Path(path), modality, settings or {}
        self.table_path, self.report_path = self.path / "metrics.csv", self.path / "report.html"
        self.settings_path, self.inputs_path = self.path / "settings.json", self.path / "inputs.json"
        self.has_colors = modality in COLOR_MODALITIES
        self.greys = volumes and self.has_colors
        """Whether grey tracers are also fused in grey: values of a volume are to show the tracer by their size."""
        kinds = ["aligned", "fused", *["fused_rgb"] * self.has_colors]
        self.volume_paths = [self.path / f"{kind}.nii.gz" for kind in kinds]
        self.map_paths = {kind: self.path / "maps" / f"{kind}.nii.gz" for kind in MAPS}
        self.pose_path = self.path / "pose.tfm"
        self.flow_suffix = FLOW_SUFFIXES[flow_format]
        # Volumes in npy are those of their slices alone: other programs need the field in space.
        suffix = ".mha" if self.flow_suffix == ".mha" else ".nii.gz"
        self.field_paths = [self.path / f"{kind}{suffix}" for kind in FIELDS]
        fields = [self.path / f"{kind}{suffix}" for kind in FIELDS for suffix in (".nii.gz", ".mha")]
        self.space_paths = [*self.volume_paths, *self.map_paths.values(), self.pose_path, *fields]
        self.outdated: list[Path] = []
        """Of an earlier run, maybe of other pairs; removed before the first new row is written."""
        self._settings_written = False
        self.field, self.flow = flow, flow and (self.flow_suffix == ".npy" or not volumes)
        self.maps, self.figures, self.blend, self.colormap = maps, figures, blend, colormap

    def files(self, name: str, *, all_kinds: bool = False) -> dict[str, Path]:
        """List the files of a pair: fused, aligned and, if wanted, fused_grey, blend, flow, flow_inverse, maps/MAP,
        maps/values, figures, figures/strips.

        Args:
            all_kinds: also those that are not wanted.
        """
        wishes = self.flow, self.maps, self.figures, self.blend, self.greys
        flow, maps, figures, blend, greys = (wanted or all_kinds for wanted in wishes)
        kinds = ["fused", "aligned", *["fused_grey"] * greys, *["blend"] * blend]
        kinds += [f"maps/{kind}" for kind in MAPS if maps]
        kinds += ["figures", "figures/strips"] * figures
        files = {kind: self.path / kind / f"{name}.png" for kind in kinds}
        files |= {"maps/values": self.path / "maps" / "values" / f"{name}.npz"} if maps else {}
        if flow:
            files |= {kind: self.path / kind / f"{name}{self.flow_suffix}" for kind in ("flow", "flow_inverse")}
        return files

    def fitted_path(self, name: str) -> Path:
        """Return the file of a moving image that had another size, brought to the size of the fixed one."""
        return self.path / "fitted" / f"{name}.png"

    def all_files(self, pairs: Iterable[PairFiles]) -> Iterator[Path]:
        """List every file that the results of these pairs, or of the volumes they are slices of, are written to."""
        yield from (self.table_path, self.report_path, self.settings_path, self.inputs_path)
        yield from self.space_paths
        for pair in pairs:
            yield from (*self.files(pair.name).values(), self.fitted_path(pair.name))

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            FileError: it cannot be made or nothing can be written in it.
        """
        probe = self.path / ".probe"
        try:
            write_bytes(probe, b"")
        except FileError as error:
            cause = error.__cause__
            raise type(error).at(self.path, "a folder to write to", cause.strerror or str(cause)) from error
        remove(probe)

    def strangers(
        self, pairs: Iterable[PairFiles], *, kept: Collection[str] = (), volumes: bool = False
    ) -> list[str]:
        """List what an earlier run left in the folder and this run will not write over.

        Args:
            pairs: of this run.
            kept: names of those whose results are taken over as they are.
            volumes: whether volumes are written beside the images; else those that are there are older.

        Returns:
            Names of fused images that are none of these pairs', then files of kinds that are not asked for now.
        """
        pairs = list(pairs)
        names = {path.stem for path in self.path.glob("fused/*.png")} - {pair.name for pair in pairs}
        others = [] if volumes else list(self.volume_paths)
        others += [] if volumes and self.maps else self.map_paths.values()
        older = [path for path in others if path.exists()]
        for pair in pairs:
            if pair.name not in kept:
                wanted, known = (self.files(pair.name, all_kinds=kinds) for kinds in (False, True))
                older += [path for kind, path in known.items() if kind not in wanted and path.exists()]
                older += [path for path in self._other_flows(pair.name) if path.exists()]
        return [*sorted(names), *(path.relative_to(self.path).as_posix() for path in older)]

    def _other_flows(self, name: str) -> Iterator[Path]:
        """List the files of a pair's displacement fields in other formats."""
        for suffix in dict.fromkeys(FLOW_SUFFIXES.values()):
            if suffix != self.flow_suffix:
                yield from (self.path / kind / f"{name}{suffix}" for kind in ("flow", "flow_inverse"))

    def save(self, pair: PairFiles, result: FusedPair) -> dict[str, Path]:
        """Write the files of a pair and return them.

        Raises:
            FileError: a file cannot be written.
        """
        name, files = pair.name, self.files(pair.name)
        write_image(files["fused"], result.fused)
        write_image(files["aligned"], result.aligned)
        if result.fit:
            files["fitted"] = self.fitted_path(name)
            write_image(files["fitted"], read_pair(pair, self.modality).moving)
        if self.greys:
            write_image(files["fused_grey"], luma(result.fused) if result.fused_grey is None else result.fused_grey)
        if self.blend:
            write_image(files["blend"], result.blend)
        if self.flow:
            self._save_flows(pair, result, files)
        if self.maps:
            for kind in MAPS:
                if kind in result.maps:
                    save_map(files[f"maps/{kind}"], result.maps[kind], kind)
                else:
                    remove(files[f"maps/{kind}"])  # of an earlier network, which made one
            values = io.BytesIO()
            np.savez_compressed(values, **result.maps)
            write_bytes(files["maps/values"], values.getvalue())
        if self.figures:
            images = read_pair(pair, self.modality)
            figure = figure_pair(
                images.fixed, images.moving, result.aligned, result.fused,
                label=images.label, flow=result.flow, maps=result.maps, title=f"{self.modality} {name}",
                colormap=None if has_color(images.moving) else self.colormap,
            )  # fmt: skip
            save_figure(files["figures"], figure)
            strip = figure_strip(images.fixed, images.moving, result.aligned, result.fused)
            save_figure(files["figures/strips"], strip)
        return files

    def _save_flows(self, pair: PairFiles, result: FusedPair, files: Mapping[str, Path]) -> None:
        """Write the displacement field and its inverse, which apply to the images as they are in their files."""
        flow, inverse, fit = result.flow, result.inverse_flow, result.fit
        save_flow(files["flow"], fit.to_original(flow) if fit else flow)
        if inverse is None:
            remove(files["flow_inverse"])  # of an earlier system, which gave one
        elif fit:
            save_flow(files["flow_inverse"], fit.inverse_to_original(inverse, read_image(pair.moving).shape))
        else:
            save_flow(files["flow_inverse"], inverse)

    def read_rows(self) -> dict[str, dict]:
        """Read the rows of metrics.csv by name of the pair, without the mean; none where there is no table.

        Each has what `write_rows` takes, `inputs` as well if that is known. Parts that several processes left when they
        broke off are newer than metrics.csv and stand in its place.

        Raises:
            FileError: a table that is not one of ours, or was made with other settings.
        """
        rows = {}
        for path in sorted(self.path.glob(".metrics-*.csv")) or [self.table_path]:
            rows |= _read_rows(path) if path.exists() else {}
        for path in sorted(self.path.glob(".inputs-*.json")) or [self.inputs_path]:
            inputs = _read_inputs(path)
            for name in rows.keys() & inputs.keys():
                rows[name]["inputs"] = inputs[name]
        if rows:
            self._check_settings()
        return rows

    def _check_settings(self) -> None:
        """Check that one table does not mix the results of two checkpoints."""
        try:
            earlier = dict(json.loads(self.settings_path.read_text()))
        except FileNotFoundError:
            return  # of a version that did not write them
        except (OSError, ValueError, TypeError) as error:
            raise FileError.at(self.settings_path, "the settings of an earlier run", str(error)) from error
        other = [name for name in self.settings if earlier.get(name) != self.settings[name]]
        if other:
            expected, found = (", ".join(f"{n} {x.get(n)}" for n in other) for x in (self.settings, earlier))
            raise FileError.at(self.settings_path, f"results with {expected} to resume", f"some with {found}")

    def has_files(self, name: str) -> bool:
        """Return whether all files wanted of a pair are there."""
        return all(path.is_file() for kind, path in self.files(name).items() if kind not in NOT_ALWAYS)

    def rows_to_keep(self, pairs: Iterable[PairFiles], resume: bool, volumes: bool) -> dict[str, dict]:
        """Return the rows, by name, that an earlier run made of these pairs as they are now.

        Unless these are all that it made, its report and volumes become `outdated`.

        Args:
            resume: without it there are none.
            volumes: whether the pairs are slices of volumes.

        Raises:
            FileError: the earlier table cannot be read, or was made with other settings.
        """
        earlier = self.read_rows() if resume else {}
        with_row = [pair for pair in pairs if pair.name in earlier]
        # Those made of the same images, label and true flow.
        same = [pair.name for pair in with_row if earlier[pair.name].get("inputs") == fingerprint(pair)]
        if not earlier or len(same) < len(earlier):
            # What may be of other pairs would lie beside the new rows if the run were interrupted.
            self.outdated = [self.report_path, *(self.space_paths if volumes else ())]
        return {name: earlier[name] for name in same if self.has_files(name)}

    def write_rows(self, rows: Iterable[Mapping], part: int | None = None) -> None:
        """Write metrics.csv with a final row `mean`, whole or not at all, and inputs.json.

        Args:
            rows: a mapping a pair, keys among `COLUMNS`, `FURTHER_COLUMNS` and dice_LABEL, what is missing stays empty;
                and `inputs`, the `inference.result_folder.fingerprint` of its files.
            part: number of the process, where several share the pairs: each writes files of its own, hidden ones that
                `read_rows` finds, until one of them writes the whole and removes the parts.

        Raises:
            FileError: the file cannot be written, or what is outdated not be removed.
        """
        # As the table will show them, so that the mean is the same where some of them were read from it.
        rows = [{key: float(DIGITS % x) if isinstance(x, float) else x for key, x in row.items()} for row in rows]
        further = [column for column in FURTHER_COLUMNS if any(column in row for row in rows)]
        further += sorted({column for row in rows for column in row if LABEL_DICE.fullmatch(column)}, key=_label_of)
        table = with_mean(pd.DataFrame(rows, columns=[*COLUMNS, *further]))
        path = self.table_path if part is None else self.path / f".metrics-{part}.csv"
        inputs_path = self.inputs_path if part is None else self.path / f".inputs-{part}.json"
        if not self._settings_written:
            for old in self.outdated:
                remove(old)
            write_bytes(self.settings_path, json.dumps({"modality": self.modality, **self.settings}, indent=2).encode())
            self._settings_written = True
        write_bytes(path, table.to_csv(index=False, lineterminator="\n", float_format=DIGITS).encode())
        # Last: a row whose inputs are not known yet is made again, one that is older than they are would be kept.
        inputs = {row["name"]: row["inputs"] for row in rows if "inputs" in row}
        write_bytes(inputs_path, json.dumps(inputs, indent=2).encode())

    def remove_parts(self) -> None:
        """Remove what processes wrote for themselves, and what they were killed in writing."""
        remove_unfinished(self.path)
        for path in (*self.path.glob(".metrics-*.csv"), *self.path.glob(".inputs-*.json")):
            remove(path)

    def read_table(self) -> pd.DataFrame:
        """Read metrics.csv, with its last row `mean`.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return _read_csv(self.table_path)
        except (OSError, ValueError) as error:
            # pandas' own errors are ValueErrors.
            raise FileError.at(self.table_path, "a table of metrics", str(error)) from error

    def write_report(self, pairs: Sequence[PairFiles], notes: Mapping[str, object]) -> None:
        """Write report.html from metrics.csv and the pictures of the pairs.

        Raises:
            FileError: a picture cannot be read, or the report not be written.
        """
        table = self.read_table()
        title = f"EDARFusion: {self.modality} and MRI, {counted(len(pairs), 'pair')}"
        scales = {style.title: _scale(style) for style in MAPS.values()} if self.maps else {}
        write_report(self.report_path, table, _Pictures(self, pairs), title, notes, scales, f"../{INDEX}")


class _Pictures(Sequence):
    """The pictures of the report, each read when it is looked at: hundreds of pairs need not fit into memory."""

    def __init__(self, folder: ResultFolder, pairs: Sequence[PairFiles]) -> None:
        self.folder, self.pairs = folder, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairImages:
        pair, folder = self.pairs[index], self.folder
        images, files = read_pair(pair, folder.modality), folder.files(pair.name)
        color = images.moving.ndim == 3
        results = {kind: read_image(files[kind], color=color) for kind in ("aligned", "fused")}
        extra = {"Plain overlay": read_image(files["blend"], color=color)} if folder.blend else {}
        extra |= _map_pictures(files["maps/values"]) if folder.maps else {}
        in_scale = folder.colormap and has_color(results["fused"]) and not has_color(images.moving)
        scales = {"Fused": _tracer_scale(folder.colormap)} if in_scale else {}
        return PairImages(pair.name, **images._asdict(), **results, extra=extra, scales=scales)

    def __iter__(self) -> Iterator[PairImages]:
        return (self[index] for index in range(len(self)))


def _map_pictures(path: Path) -> dict[str, np.ndarray]:
    """Draw the maps of this file, pixel by pixel over the images: title -> RGB (H, W, 3).

    Raises:
        FileError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as values:
            return {MAPS[kind].title: map_picture(values[kind], kind) for kind in MAPS if kind in values}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError.at(path, "the values of maps (NumPy archive)", str(error)) from error


def _scale(style: MapStyle) -> Scale:
    """Describe what the colours of a map stand for, for the report."""
    colors = [to_hex(color) for color in colormaps[style.colormap](np.linspace(0, 1, 9))]
    return Scale(f"{style.vmin:g}", f"{style.vmax:g}", style.unit, colors)


def _tracer_scale(colormap: str) -> Scale:
    """Describe the colours in which a grey tracer is shown, for the report."""
    return Scale("0", "1", f"tracer, {colormap}", [to_hex(color) for color in palette(colormap)[::15]])


_TEXTS = {"name": str, "reference": str}


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a table in which only an empty cell of other columns than texts is no number: a pair may be called NA."""
    columns = pd.read_csv(path, nrows=0).columns
    numbers = {column: [""] for column in columns if column not in _TEXTS}
    return pd.read_csv(path, dtype=_TEXTS, keep_default_na=False, na_values=numbers)


def _label_of(column: str) -> int:
    return int(column.rpartition("_")[2])


def reference_of(pair: PairFiles) -> str:
    """Return the role of the image that a fused one is scored against, beside the fixed image: label or aligned."""
    return "aligned" if pair.label is None else "label"


def _read_rows(path: Path) -> dict[str, dict]:
    try:
        table = _read_csv(path)
    except (OSError, ValueError) as error:
        # pandas' own errors are ValueErrors.
        raise FileError.at(path, "a table of metrics to resume from", str(error)) from error
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise FileError.at(path, f"the columns {', '.join(COLUMNS)}", f"no {', '.join(missing)}")
    rows = table.to_dict("records")
    if rows and rows[-1]["name"] == "mean":
        rows.pop()
    return {row["name"]: row for row in rows}


def _read_inputs(path: Path) -> dict[str, str]:
    """Name of the pair -> fingerprint; nothing where there is no file, or none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def fingerprint(pair: PairFiles) -> str:
    """Compute what tells a pair from others of the same name: the content of its files, and its scale.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        FileError: a file cannot be read.
    """
    digest = hashlib.sha256(str([pair.aspect, pair.longest]).encode())
    for role, path in pair.paths.items():
        try:
            with path.open("rb") as file:
                digest.update(role.encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise FileError.at(path, "a file that can be read", error.strerror or str(error)) from error
    return digest.hexdigest()[:16]
