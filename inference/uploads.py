"""What the visitors of the local page (app.py) upload and have made: aligned and fused, kept apart, and removed.

The functions are those of the test command.
"""

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.pairs import PairFiles
from data.table import DataError
from inference.batches import make_batches, prepare_folders
from inference.checks import check_pairs
from inference.chosen_pairs import find_pairs
from inference.modality import guess_of_volume
from inference.network import load_network
from inference.options import Options
from inference.pair_fuser import PairFuser
from inference.results.folder import ResultFolder
from inference.run import align_and_fuse, finish_folder, report_notes, say_what_to_look_at
from inference.scoring_pool import save_and_score
from inference.volumes.checks import open_volumes
from inference.volumes.pair import VolumePair
from inference.volumes.registration import register_volume
from utils.imaging.images import read_image
from utils.imaging.volumes import read_volume
from utils.messages import counted, log

MOST_PIXELS = 2048 * 2048
"""Of an image or a slice: a larger one would take all others' time."""


class Fused(NamedTuple):
    """What a visitor has had made.

    Attributes:
        folder: the result folder of the modality.
        pairs: as `inference.checks.check_pairs` returns them.
        table: a row a pair, by name.
        notes: what should be known of the input, a line each.
    """

    folder: ResultFolder
    pairs: list[PairFiles]
    table: pd.DataFrame
    notes: list[str]


class Visitors:
    """The files of each visitor, by the number that gradio gives the open page.

    Args:
        root: the folder that gradio keeps uploads in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._uploads: dict[str, set[Path]] = {}
        self._stops: dict[str, threading.Event] = {}

    def note(self, visitor: str, files: Sequence[str] | None) -> None:
        """Remember what a visitor has uploaded."""
        self._uploads.setdefault(visitor, set()).update(Path(file) for file in files or ())

    def begin(self, visitor: str) -> tuple[Path, threading.Event]:
        """Make an empty folder for new results, and the event that ends their making when the page is closed."""
        folder = self.root / "visitors" / visitor
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._stops[visitor] = threading.Event()
        return folder, self._stops[visitor]

    def close(self, visitor: str) -> None:
        """Remove all that a visitor has uploaded and had made."""
        if visitor in self._stops:
            self._stops.pop(visitor).set()
        shutil.rmtree(self.root / "visitors" / visitor, ignore_errors=True)
        # Two visitors who upload the same file share it.
        mine, others = self._uploads.pop(visitor, set()), set().union(*self._uploads.values())
        for file in mine - others:
            if file.is_relative_to(self.root):
                shutil.rmtree(file.parent, ignore_errors=True)

    def plain(self, text: str) -> str:
        """Name files in a message as a visitor knows them, without their folders."""
        return re.sub(rf"{re.escape(str(self.root))}/(?:visitors/)?[^/\s]+/", "", text)


class UploadFuser:
    """Aligns and fuses what visitors have uploaded, with one network, for one visitor at a time.

    Args:
        options: of the test command; what a visitor may choose is replaced.
        most_slices: of a volume.
        visitors: whose files these are.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(self, options: Options, most_slices: int, visitors: Visitors) -> None:
        self.options, self.most_slices, self.visitors = options, most_slices, visitors
        self.network = load_network(options, [])

    def fuse(
        self,
        visitor: str,
        fixed: Sequence[str],
        moving: Sequence[str],
        *,
        progress: Callable[[int, int], object],
        resample: bool = False,
        **chosen: Any,
    ) -> Fused:
        """Align, fuse and score a pair of images or volumes.

        Args:
            visitor: whose files they are.
            fixed, moving: one file each, or the files of one DICOM series.
            progress: called with the number of slices that are done, and of all.
            resample: of volumes; images ignore it.
            chosen: further `Options`, such as modality and color.

        Raises:
            InputError: the input cannot be used.
        """
        place, stop = self.visitors.begin(visitor)
        paths = [_one_path(files, place / role) for role, files in (("fixed", fixed), ("moving", moving))]
        places = {"fixed": str(paths[0]), "moving": str(paths[1]), "output": place / "results"}
        options, notes = replace(self.options, **places, **chosen), _Notes()
        with notes.collected():
            options, pairs, volumes = self._read(options, resample, place)
            (batch,) = batches = make_batches(options, {options.modality: pairs}, self.network, volumes)
            prepare_folders(batches)
            network, settings = self.network, self.network.settings
            if volumes:
                as_it_lies = PairFuser(network.model, network.device, **settings | {"multistart": False})
                batch.field = register_volume(volumes, pairs, as_it_lies, stop)
            colormap = options.colormap if batch.folder.has_colors else None
            colors = {"color": options.color, "colormap": colormap, "grey": batch.folder.greys}
            fuse = PairFuser(network.model, network.device, **settings, **colors)
            for job in align_and_fuse(batch, pairs, fuse, stop):
                batch.rows[job.pair.name] = save_and_score(job)
                progress(len(batch.rows), len(pairs))
            if stop.is_set():
                raise DataError("expected the page to stay open, found it closed")
            table = finish_folder(batch, volumes, report_notes(options, network, volumes))
            say_what_to_look_at(batches, [])
        lines = dict.fromkeys(map(self.visitors.plain, notes.lines))
        return Fused(batch.folder, pairs, table.set_index("name"), list(lines))

    def _read(
        self, options: Options, resample: bool, place: Path
    ) -> tuple[Options, list[PairFiles], VolumePair | None]:
        """Read and check what the options name; the modality that is returned is a single one."""
        volumes = None
        if options.has_volumes:
            if options.modality == "all":
                options = replace(options, modality=guess_of_volume(read_volume(options.moving)))
            options = replace(options, resample=resample)
            volumes = open_volumes(options)
            count = len(volumes.levels["fixed"])
            if count > self.most_slices:
                raise DataError.at(options.fixed, f"at most {counted(self.most_slices, 'slice')}", str(count))
            pairs = volumes.write_slices(place / "slices")
        else:
            ((modality, pairs),) = find_pairs(options, []).items()
            options = replace(options, modality=modality)
        pairs, _ = check_pairs(pairs, options.modality, keep_going=False)
        size = read_image(pairs[0].fixed).size
        if size > MOST_PIXELS:
            raise DataError.at(options.fixed, f"at most {MOST_PIXELS:,} pixels on this page", f"{size:,}")
        return options, pairs, volumes


class _Notes(logging.Handler):
    """Collects what the test command would say on the terminal; one visitor is served at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep all messages while this lasts."""
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)


def _one_path(files: Sequence[str], folder: Path) -> Path:
    """Return the one file, or a folder of several, such as those of a DICOM series."""
    if len(files) == 1:
        return Path(files[0])
    folder.mkdir()
    for number, file in enumerate(files):
        # Several folders of one upload may hold files of one name.
        (folder / f"{number:05}-{Path(file).name}").hardlink_to(file)
    return folder
