"""The results of one modality on disk: what an earlier run left there, what is finished, the tables."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pandas as pd

from data.pairs import PairFiles
from inference.results.layout import NOT_ALWAYS, ResultLayout
from inference.results.record import check_settings, fingerprint, read_inputs
from inference.results.table import read_rows, read_scores, rounded, table_text
from utils.files import FileError, remove, remove_unfinished, write_bytes


class ResultFolder(ResultLayout):
    """The folder OUTPUT/MODALITY with what it holds.

    Args:
        path, modality: as for `ResultLayout`.
        settings: what the results depend on beside the pairs, as JSON: the checkpoint and how it is used.
        kinds: further arguments of `ResultLayout`, by name.
    """

    def __init__(
        self, path: str | os.PathLike, modality: str, settings: Mapping | None = None, **kinds: bool | str | None
    ) -> None:
        super().__init__(path, modality, **kinds)
        self.settings = settings or {}
        self.outdated: list[Path] = []
        """Of an earlier run, maybe of other pairs; removed before the first new row is written."""
        self._settings_written = False

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
        others = self.map_paths.values() if volumes else self.space_paths
        if volumes and self.maps:
            others = ()
        older = [path for path in others if path.exists()]
        for pair in pairs:
            if pair.name not in kept:
                made, known = (self.files(pair.name, all_kinds=kinds) for kinds in (False, True))
                older += [path for kind, path in known.items() if kind not in made and path.exists()]
                older += [path for path in self.other_flows(pair.name) if path.exists()]
        return [*sorted(names), *(path.relative_to(self.path).as_posix() for path in older)]

    def read_rows(self) -> dict[str, dict]:
        """Read the rows of metrics.csv by name of the pair, without the mean; none where there is no table.

        Each has what `write_rows` takes, `inputs` as well if that is known. Parts that several processes left when they
        broke off are newer than metrics.csv and stand in its place.

        Raises:
            FileError: a table that is not one of ours, or was made with other settings.
        """
        rows = {}
        for path in sorted(self.path.glob(".metrics-*.csv")) or [self.table_path]:
            rows |= read_rows(path) if path.exists() else {}
        for path in sorted(self.path.glob(".inputs-*.json")) or [self.inputs_path]:
            inputs = read_inputs(path)
            for name in rows.keys() & inputs.keys():
                rows[name]["inputs"] = inputs[name]
        if rows:
            check_settings(self.settings_path, self.settings)
        return rows

    def has_files(self, name: str) -> bool:
        """Return whether all files of a pair that are asked for exist."""
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
            rows: a mapping a pair, keys as for `inference.results.table.table_text`, what is missing stays empty; and
                `inputs`, the `inference.results.record.fingerprint` of its files.
            part: number of the process, where several share the pairs: each writes files of its own, hidden ones that
                `read_rows` finds, until one of them writes the whole and removes the parts.

        Raises:
            FileError: the file cannot be written, or what is outdated not be removed.
        """
        rows = rounded(rows)
        path = self.table_path if part is None else self.path / f".metrics-{part}.csv"
        inputs_path = self.inputs_path if part is None else self.path / f".inputs-{part}.json"
        if not self._settings_written:
            for old in self.outdated:
                remove(old)
            write_bytes(self.settings_path, json.dumps({"modality": self.modality, **self.settings}, indent=2).encode())
            self._settings_written = True
        write_bytes(path, table_text(rows).encode())
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
        return read_scores(self.table_path)
