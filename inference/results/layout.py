"""Where each file of a folder of results lies. Nothing here reads or writes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.pairs import COLOR_MODALITIES, PairFiles
from evaluation.map_styles import MAPS
from utils.arguments import FLOW_FORMATS
from utils.imaging.flows import FLOW_SUFFIXES

INDEX = "report.html"
"""Name of the page above the folders of the modalities, with the means of all of them."""
NOT_ALWAYS = {"maps/expected_error", "flow_inverse"}
"""Files that not every system makes of every pair."""
VOLUME_FIELDS = ("displacement", "displacement_inverse")
"""Names of the displacement field of a volume, and of its inverse."""


class ResultLayout:
    """Where each file of the folder OUTPUT/MODALITY lies.

    Args:
        path: the folder.
        modality: what the pairs in it are.
        flow, maps, figures, blend: what is saved beside the fused and aligned images.
        flow_format: of `utils.arguments.FLOW_FORMATS`. Slices of volumes get npy alone: a slice has no place in space.
        volumes: whether the pairs are slices of volumes.
        colormap: colour scale of grey tracers, for the figures' colour bars; None where there is none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        modality: str,
        *,
        flow: bool = False,
        flow_format: str = FLOW_FORMATS[0],
        volumes: bool = False,
        maps: bool = False,
        figures: bool = False,
        blend: bool = False,
        colormap: str | None = None,
    ) -> None:
        self.path, self.modality = Path(path), modality
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
        self.field_paths = [self.path / f"{kind}{suffix}" for kind in VOLUME_FIELDS]
        fields = [self.path / f"{kind}{suffix}" for kind in VOLUME_FIELDS for suffix in (".nii.gz", ".mha")]
        self.space_paths = [*self.volume_paths, *self.map_paths.values(), self.pose_path, *fields]
        self.field, self.flow = flow, flow and (self.flow_suffix == ".npy" or not volumes)
        self.maps, self.figures, self.blend, self.colormap = maps, figures, blend, colormap

    def files(self, name: str, *, all_kinds: bool = False) -> dict[str, Path]:
        """List the files of a pair: fused, aligned and, if asked for, fused_grey, blend, flow, flow_inverse,
        maps/MAP, maps/values, figures, figures/strips.

        Args:
            all_kinds: also those that are not asked for.
        """
        asked_for = self.flow, self.maps, self.figures, self.blend, self.greys
        flow, maps, figures, blend, greys = (kind or all_kinds for kind in asked_for)
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

    def other_flows(self, name: str) -> Iterator[Path]:
        """List the files of a pair's displacement fields in other formats."""
        for suffix in dict.fromkeys(FLOW_SUFFIXES.values()):
            if suffix != self.flow_suffix:
                yield from (self.path / kind / f"{name}{suffix}" for kind in ("flow", "flow_inverse"))
