"""The work of the test command once its pairs are known: align, fuse and score them, and say what came out."""

import math
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.pairs import PairFiles, SourceImages, read_fitted, read_true_flow
from data.table import MODALITIES
from evaluation.report.index import write_index
from inference.batches import Batch, make_batches, prepare_folders
from inference.chosen_pairs import Chosen, check_chosen, say_what_is_left_out
from inference.displacement import endpoint_scores, inverse_of
from inference.fused_pair import FusedPair
from inference.marks import read_mask, score_marks
from inference.mirror_check import LOOKED_AT
from inference.modality import guess_of_volume
from inference.network import Network, load_network
from inference.options import Options
from inference.pair_fuser import PairFuser
from inference.results.folder import ResultFolder
from inference.results.layout import INDEX
from inference.results.report import report_folder
from inference.scoring_pool import Job, scored, scoring_pool
from inference.summary import print_summary
from inference.volumes.checks import open_volumes
from inference.volumes.pair import VolumePair
from inference.volumes.registration import register_volume
from utils.arguments import VERSION
from utils.files import FileError, InputError
from utils.imaging.images import luma
from utils.imaging.volumes import read_volume
from utils.messages import counted, listed, log, printable
from utils.processes import part, rank, wait_for_others, world
from utils.signals import INTERRUPTED, stop_on_signal

CUDA_BATCH = 8
"""Number of pairs of one size that a GPU takes at a time by default: a few are enough to keep it busy."""


def run_volumes(options: Options) -> int:
    """Align, fuse and score the volumes that the options name, slice by slice.

    Returns:
        As `fuse_and_score`.

    Raises:
        InputError: something that the user can mend.
    """
    if options.modality == "all":
        options = replace(options, modality=guess_of_volume(read_volume(options.moving)))
    volumes = open_volumes(options)
    try:
        slices = tempfile.TemporaryDirectory()
    except OSError as error:
        raise InputError(f"TMPDIR: expected a folder to write the slices to, found {error.strerror}") from error
    with slices:
        pairs = {options.modality: volumes.write_slices(slices.name)}
        return fuse_and_score(options, *check_chosen(options, pairs, []), volumes)


def fuse_and_score(
    options: Options, chosen: Chosen, left_out: list[str], volumes: VolumePair | None = None
) -> int:
    """Align, fuse and score pairs.

    Args:
        chosen, left_out: of `inference.chosen_pairs.check_chosen`.
        volumes: where the pairs are slices of volumes, these.

    Returns:
        The exit status: 0, or 1 where --keep-going has left something out, or `INTERRUPTED`.

    Raises:
        InputError: something that the user can mend.
    """
    # What the pairs are, whatever was asked for: a table may hold one modality only.
    network = load_network(options, [modality for modality, pairs in chosen.items() if pairs])
    batches = make_batches(options, chosen, network, volumes)
    prepare_folders(batches)
    for batch in batches if rank() == 0 else ():
        say_what_is_older(batch.folder, batch.pairs, batch.rows, volumes)
    colors = {"color": options.color, "blend": options.blend, "grey": volumes is not None}
    fusers = {
        has_colors: PairFuser(network.model, network.device, **network.settings, **colors, colormap=colormap)
        for has_colors, colormap in ((True, options.colormap), (False, None))
    }
    without_starts = PairFuser(network.model, network.device, **network.settings | {"multistart": False})
    notes = report_notes(options, network, volumes)
    tables = {}
    batch_size = options.batch_size or (CUDA_BATCH if network.device.type == "cuda" else 1)
    workers = max(1, min(options.workers, max(map(len, chosen.values()))))
    with stop_on_signal(second_breaks_in=world() == 1) as stop, scoring_pool(workers) as pool:
        for batch in batches:
            if volumes:
                batch.field = register_volume(volumes, batch.pairs, without_starts, stop)
                batch.scores = {} if stop.is_set() else volumes.mark_scores(batch.field)
            if not process(batch, fusers[batch.folder.has_colors], pool, 2 * workers, stop, batch_size):
                if world() == 1:
                    finished = [pair for pair in batch.pairs if pair.name in batch.rows]
                    say_what_is_older(batch.folder, finished, batch.rows, volumes)
                done = f"{len(batch.rows)} of {counted(len(batch.pairs), 'pair')}"
                log.warning(f"interrupted at {batch.modality} after {done}; the same command with --resume goes on")
                return INTERRUPTED
            wait_for_others()
            if rank() == 0 and batch.pairs:
                tables[batch.modality] = finish_folder(batch, volumes, notes)
    if rank() == 0:
        write_overview(options.output, tables, notes)
        folders = {batch.modality: batch.folder for batch in batches}
        print_summary(tables, folders, barely_trained=network.barely_trained)
        say_what_to_look_at(batches, left_out)
    # Where one process ends with an error, torchrun ends those that are still writing.
    wait_for_others()
    return 1 if left_out else 0


def report_notes(options: Options, network: Network, volumes: VolumePair | None) -> dict:
    """Describe for the report how its images were made."""
    settings = network.settings
    notes = {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "EDARFusion": VERSION,
        "command": printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "checkpoint": f"{printable(Path(options.checkpoint).name)}, trained for {network.trained_for}",
        "passes": settings["passes"],
        "estimates averaged": 4 if settings["average"] else 1,
        "multi-start": "where pairs lie far apart" if settings["multistart"] else "no",
        "device": network.device,
        "engine": options.engine,
        "PyTorch": torch.__version__,
    }
    notes["colours"] = {"keep": "tracer's hue and saturation kept", "luma": "luma replaced"}[options.color]
    notes["grey tracers"] = f"shown in the scale {options.colormap}"
    if volumes:
        notes["window"] = volumes.window_text()
        notes["pose"] = volumes.pose_text()
    if options.mask:
        notes["mask"] = "nothing is matched within it"
    if options.is_sample:
        notes["pairs"] = "the embedded sample: simulated, says nothing about patients' images"
    return notes


def process(
    batch: Batch,
    fuse: PairFuser,
    pool: ProcessPoolExecutor | None,
    most_waiting: int,
    stop: threading.Event,
    batch_size: int = 1,
) -> bool:
    """Align, fuse and score this process's share of a batch; return whether it came to the end.

    Args:
        pool, most_waiting: as `inference.scoring_pool.scored` takes them.
        stop: set where the user wishes to end.
        batch_size: number of pairs that the network takes at a time.
    """
    order = {pair.name: place for place, pair in enumerate(batch.pairs)}
    todo = [pair for pair in batch.pairs if pair.name not in batch.rows][rank() :: world()]
    if rank() > 0:
        batch.rows = {}  # the first process writes those that were finished before
    jobs = align_and_fuse(batch, todo, fuse, stop, batch_size)
    with tqdm(total=len(todo), desc=batch.modality, unit="pair", disable=rank() > 0) as progress:
        for row in scored(jobs, pool, most_waiting):
            batch.rows[row["name"]] = row
            batch.folder.write_rows(sorted(batch.rows.values(), key=lambda row: order[row["name"]]), part())
            progress.update()
    return all(pair.name in batch.rows for pair in todo)


def align_and_fuse(
    batch: Batch, pairs: list[PairFiles], fuse: PairFuser, stop: threading.Event, batch_size: int = 1
) -> Iterator[Job]:
    """Make jobs of saving and scoring, one for each of these pairs, until `stop` is set.

    Args:
        batch_size: number of pairs that the network takes at a time, where their sizes allow it.
    """
    # Neither first nor last: the ends of a volume show little of a head.
    looked_at = set(np.linspace(0, len(pairs) - 1, LOOKED_AT + 2)[1:-1].round())
    for first in range(0, len(pairs), batch_size):
        if stop.is_set():
            return
        group = pairs[first : first + batch_size]
        loaded = [read_fitted(pair, batch.modality) for pair in group]
        arguments = [_fuser_arguments(batch, pair, images) for pair, (images, _) in zip(group, loaded, strict=True)]
        sizes = [images.fixed.shape for images, _ in loaded]
        size, largest = max(zip(sizes, group, strict=True), key=lambda sized: math.prod(sized[0]))
        with enough_memory(largest, size, len(group)):
            results = fuse.together(arguments)
        for place, (pair, (images, fit), result) in enumerate(zip(group, loaded, results, strict=True), first):
            if rank() == 0 and place in looked_at and result.disagreement:
                view = {"aspect": pair.aspect, "longest": pair.longest}
                with enough_memory(pair, images.fixed.shape):
                    batch.mirror.look(images.fixed, images.moving, result.disagreement, **view)
            yield _job(batch, pair, images, result._replace(fit=fit))


def _fuser_arguments(batch: Batch, pair: PairFiles, images: SourceImages) -> dict[str, Any]:
    """Collect the arguments of `PairFuser` for a pair."""
    known = batch.field.of(batch.pairs.index(pair)) if batch.field else {}
    mask = read_mask(pair, images.fixed.shape)
    view = {"aspect": pair.aspect, "longest": pair.longest}
    how = {"mask": mask, "luma_steps": batch.luma_steps}
    return {"fixed": images.fixed, "moving": images.moving} | how | view | known


def _job(batch: Batch, pair: PairFiles, images: SourceImages, result: FusedPair) -> Job:
    """Make the job of saving and scoring a result, with the scores that need the images or the marks."""
    folder = batch.folder
    scores = batch.scores | score_marks(pair, result.flow, result.fit)
    true_flow = read_true_flow(pair, images.fixed.shape, result.fit)
    if true_flow is not None:
        label = luma(images.label) if images.label.ndim == 3 else images.label
        scores |= endpoint_scores(result.flow, true_flow, label)
    if batch.bound_ratio and result.expected_error is not None:
        scores["error_bound"] = batch.bound_ratio * result.expected_error
    # Seven maps of a pair are more than all else that waits with it.
    maps = result.maps if folder.maps or folder.figures else {}
    inverse_flow = inverse_of(result.flow) if folder.flow else None
    return Job(folder, pair, result._replace(maps=maps, inverse_flow=inverse_flow), scores)


@contextmanager
def enough_memory(pair: PairFiles, size: tuple[int, int], count: int = 1) -> Iterator[None]:
    """Name the pair and its size where memory runs out.

    Args:
        pair, size: the largest of the pairs in work, and its height and width.
        count: how many are in work.

    Raises:
        FileError: it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch says it of a CPU in a plain RuntimeError.
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        expected = f"enough memory for an image of {size[1]} x {size[0]} px"
        fewer = "a smaller --batch-size, " if count > 1 else ""
        state = f"too little ({fewer}smaller images, another --device, or --passes 1 --no-average need less)"
        raise FileError.at(pair.fixed, expected, state) from error


def finish_folder(batch: Batch, volumes: VolumePair | None, notes: dict) -> pd.DataFrame:
    """Write what follows from all pairs of a modality, and return their table.

    Args:
        volumes: where the pairs are slices of volumes, these.
        notes: of `report_notes`.

    Raises:
        FileError: the row of a pair is missing, as another process wrote it elsewhere; or a file cannot be written.
    """
    folder, pairs = batch.folder, batch.pairs
    rows = folder.read_rows() if world() > 1 else batch.rows
    if missing := [pair.name for pair in pairs if pair.name not in rows]:
        expected = "a folder that all processes see, with the rows of all pairs (then --resume goes on)"
        state = f"none of {counted(len(missing), 'pair')}, such as {missing[0]}"
        raise FileError.at(folder.path, expected, state)
    ordered = [rows[pair.name] for pair in pairs]
    folder.write_rows(ordered)
    folder.remove_parts()
    if volumes:
        volumes.write_results(folder, pairs, batch.field)
    if batch.luma_steps and folder.has_colors:
        notes = notes | {"luma": f"of coloured pairs fitted in {batch.luma_steps} steps"}
    report_folder(folder, pairs, notes)
    return pd.DataFrame(ordered)


def write_overview(output: Path, made: Collection[str], notes: dict) -> None:
    """Write the page that leads to the reports of all modalities in the output folder, of earlier runs as well.

    Args:
        made: the modalities of this run.
        notes: of `report_notes`.

    Raises:
        FileError: the page cannot be written.
    """
    tables = {}
    for folder in (ResultFolder(output / modality, modality) for modality in MODALITIES):
        if not (folder.report_path.exists() and folder.table_path.exists()):
            continue
        try:
            tables[folder.modality] = folder.read_table().iloc[:-1]
        except FileError as error:
            log.warning(f"{output / INDEX}: {folder.modality} is left out; {error}")
    if tables:
        write_index(output / INDEX, tables, "EDARFusion: results", notes, earlier=tables.keys() - set(made))


def say_what_is_older(
    folder: ResultFolder, pairs: list[PairFiles], kept: Collection[str], volumes: VolumePair | None
) -> None:
    """Say what lies beside the results of these pairs, of which those of the names `kept` are taken over."""
    if strangers := folder.strangers(pairs, kept=kept, volumes=volumes is not None):
        results = counted(len(strangers), "result")
        log.warning(f"{folder.path}: holds {results} of an earlier run as well: {listed(strangers)}")


def say_what_to_look_at(batches: list[Batch], left_out: list[str]) -> None:
    """Say which images seem mirrored, and what was left out."""
    for batch in batches:
        if batch.mirror.seems_mirrored():
            share = f"{sum(batch.mirror.fits)} of {len(batch.mirror.fits)} pairs looked at"
            fit = f"the moving images fit better mirrored left to right in {share}"
            log.warning(f"{batch.modality}: {fit}; is one side flipped?")
    say_what_is_left_out(left_out)
