"""Saving and scoring of pairs in processes of their own, while the next pairs are aligned.

Nothing here imports torch: the processes start the faster for it.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import active_children, get_context, parent_process
from typing import NamedTuple

from data.pairs import PairFiles
from evaluation.metrics import folding_share
from evaluation.scoring import score_pair
from inference.fused_pair import FusedPair
from inference.results.files import save_pair
from inference.results.layout import ResultLayout
from inference.results.record import fingerprint
from inference.results.table import FIDELITY_METRICS, FUSION_METRICS, REGISTRATION_METRICS, reference_of
from utils.files import MachineError
from utils.geometry.field_of_view import field_of_view
from utils.processes import check_shared_memory, pool_size
from utils.signals import STOPPING


class Job(NamedTuple):
    """A pair to save and score.

    Attributes:
        folder: where to.
        pair: its files.
        result: what the network made of it.
        scores: columns of the table that are known already.
    """

    folder: ResultLayout
    pair: PairFiles
    result: FusedPair
    scores: Mapping[str, float]


def save_and_score(job: Job) -> dict[str, float | str]:
    """Write the files of a pair, then score the images as they were saved, with their 8 bits.

    Returns:
        The pair's row of metrics.csv; without a label the columns that need the truth are missing.

    Raises:
        FileError: a file cannot be read or written.
    """
    pair, files = job.pair, save_pair(job.folder, job.pair, job.result)
    reference = reference_of(pair)
    images = {"fixed": pair.fixed, "fused": files["fused"], "reference": files["aligned"]}
    if reference == "label":
        images |= {"reference": pair.label, "label": pair.label}
        images |= {"aligned": files["aligned"], "moving": files.get("fitted", pair.moving)}
    seen = field_of_view(job.result.flow)
    colormap = job.folder.colormap if job.folder.has_colors else None
    scores = score_pair({"name": pair.name, **images}, seen, colormap)
    row = {"name": pair.name, "seconds": job.result.seconds, "reference": reference}
    columns = *FUSION_METRICS, *REGISTRATION_METRICS, *FIDELITY_METRICS[job.folder.modality]
    row |= {column: scores[column] for column in columns if column in scores}
    row |= {"folding": folding_share(job.result.flow), "inputs": fingerprint(pair)} | dict(job.scores)
    further = {name: getattr(job.result, name) for name in ("disagreement", "expected_error")}
    return row | {name: value for name, value in further.items() if value is not None}


def scoring_pool(workers: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Start processes for `scored`; for one worker return None, which leaves all to this process.

    Raises:
        MachineError: the system has no room for what they share.
    """
    if workers == 1:
        return nullcontext()
    check_shared_memory("--workers 1")
    # Not forked: torch has threads running.
    return ProcessPoolExecutor(pool_size(workers), get_context("spawn"), initializer=_begin)


def scored(
    jobs: Iterable[Job], pool: ProcessPoolExecutor | None, most_waiting: int
) -> Iterator[dict[str, float | str]]:
    """Save and score pairs while `jobs` goes on making them.

    Args:
        jobs: taken only as fast as they are dealt with, so that few images wait in memory.
        pool: of `scoring_pool`.
        most_waiting: pairs that are being saved and scored, or wait for it, at one time.

    Yields:
        The rows of `save_and_score`, in the order in which they are done.

    Raises:
        FileError: as `save_and_score`.
        MachineError: one of the processes was killed.
    """
    if pool is None:
        yield from map(save_and_score, jobs)
        return
    try:
        yield from _scored_by(pool, jobs, most_waiting)
    except BrokenProcessPool as error:
        # The pool waits for the others and asks them to end by SIGTERM, which they do not hear (`_signals_held`).
        for process in active_children():
            process.kill()
        expected = "processes that save and score to live"
        state = "one killed, maybe as memory ran out; with --workers 1 there are none, --resume goes on"
        raise MachineError(f"--workers: expected {expected}, found {state}") from error


def _scored_by(pool: ProcessPoolExecutor, jobs: Iterable[Job], most_waiting: int) -> Iterator[dict[str, float | str]]:
    waiting: set[Future] = set()
    for job in jobs:
        if len(waiting) >= most_waiting:
            wait(waiting, return_when=FIRST_COMPLETED)
        done = {future for future in waiting if future.done()}
        waiting -= done
        yield from (future.result() for future in done)
        try:
            with _signals_held():
                waiting.add(pool.submit(save_and_score, job))
        except (OSError, ValueError) as error:
            # A pool that breaks while it starts a process has closed the pipes that the new process needs. Jobs are
            # pickled elsewhere, so nothing else is refused here.
            raise BrokenProcessPool("no process can be started") from error
    yield from (future.result() for future in as_completed(waiting))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep `STOPPING` from processes started here: they finish their pair, and the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """End this process when the one that started it is gone, however that ended, and not before."""
    # Where signals cannot be held as above, Ctrl-C reaches all processes of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
