"""Rank classical baselines and this project on the same pairs, each followed by the same fusion.

    pip install -r requirements-baselines.txt
    python -m tools.misalign --root DATA --output BENCH
    python -m tools.baselines --csv BENCH/pairs.csv --output BASELINES

Registers each pair by mutual information (rigid, affine, B-splines, ANTs SyN) and by the checkpoint. What a baseline
has aligned is fused by the network without a registration (``--passes 0``), so that the fused images differ by the
alignment alone. OUTPUT/SYSTEM/MODALITY holds the results as the test command writes them. Then `tools.rank` scores all
from the files, together with further results (``--results``).

A registration that fails or takes longer than the time limit counts as zero flow. The same command goes on after an
interruption: pairs with results of the same inputs and settings are kept.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.pairs import PairFiles, read_pair
from data.table import FILES
from inference.classical import CLASSICAL, RegistrationFailed, register_within
from inference.fused_pair import FusedPair
from inference.options import default_luma_steps
from inference.results.folder import ResultFolder
from inference.scoring_pool import Job, save_and_score
from tools.rank import add_pairs_options, chosen_pairs, unique_results, write_ranking
from utils.arguments import OneLineParser, add_checkpoint, positive_float, print_anywhere
from utils.command import run_command
from utils.files import check_inputs_stay, write_bytes
from utils.imaging.images import luma
from utils.messages import counted, show_messages
from utils.processes import available_cores

OURS = "EDARFusion"
"""Name of this project's own results."""

Result = tuple[PairFiles, FusedPair, str]
"""A pair, what was made of it, and why its registration failed, empty where it did not."""


class Systems:
    """The systems to be run, by the name of the folder of their results.

    Args:
        checkpoint: weights that register and fuse for `OURS`, and fuse for the others.
        limit: seconds that a classical registration may take.
        workers: classical registrations at one time.
    """

    def __init__(self, checkpoint: Path, limit: float, workers: int) -> None:
        # Brings the network, which --help does not need.
        from inference.pair_fuser import PairFuser
        from models.checkpoint import load_checkpoint
        from utils.device import choose_device

        device, loaded = choose_device("cpu"), load_checkpoint(checkpoint)
        self.own_settings = loaded.inference()
        self.fuse_aligned = PairFuser(loaded.model, device, passes=0)
        self.align_and_fuse = PairFuser(loaded.model, device, **self.own_settings)
        self.limit, self.workers = limit, workers

    def run(self, system: str, pairs: list[PairFiles], modality: str) -> Iterator[Result]:
        """Align and fuse pairs, in the order in which they are done."""
        if system == OURS:
            for pair in pairs:
                images = read_pair(pair, modality)
                how = {"longest": pair.longest, "luma_steps": default_luma_steps(modality)}
                yield pair, self.align_and_fuse(images.fixed, images.moving, **how), ""
            return
        with ThreadPoolExecutor(self.workers) as pool:
            # A thread waits for the process of one registration.
            waiting = {pool.submit(self._register, system, pair, modality): pair for pair in pairs}
            try:
                for future in as_completed(waiting):
                    flow, seconds, failure = future.result()
                    yield waiting[future], self._fuse(waiting[future], modality, flow, seconds), failure
            finally:
                pool.shutdown(cancel_futures=True)

    def _register(self, system: str, pair: PairFiles, modality: str) -> tuple[np.ndarray, float, str]:
        images = read_pair(pair, modality)
        moving = luma(images.moving) if images.moving.ndim == 3 else images.moving
        try:
            return *register_within(system, images.fixed, moving, self.limit), ""
        except RegistrationFailed as error:
            return np.zeros((2, *images.fixed.shape), np.float32), self.limit, str(error)

    def _fuse(self, pair: PairFiles, modality: str, flow: np.ndarray, seconds: float) -> FusedPair:
        from utils.geometry.warp import apply_flow

        images = read_pair(pair, modality)
        # Interpolation may leave [0, 1] by a rounding error.
        aligned = np.clip(apply_flow(images.moving, flow), 0, 1)
        fused = self.fuse_aligned(images.fixed, aligned, luma_steps=default_luma_steps(modality))
        return fused._replace(aligned=aligned, flow=flow, seconds=seconds + fused.seconds)

    def settings_of(self, system: str) -> str:
        """Describe how a system is run, in words."""
        if system == OURS:
            estimates = "four estimates averaged" if self.own_settings["average"] else "a single estimate"
            return f"the checkpoint's own settings: passes {self.own_settings['passes']}, {estimates}"
        return CLASSICAL[system].settings


def run_system(
    system: str, systems: Systems, folder: ResultFolder, pairs: list[PairFiles], progress: Callable[[], object]
) -> dict[str, str]:
    """Run a system on the pairs of one modality that have no results yet.

    Args:
        system: `OURS` or a key of `inference.classical.CLASSICAL`.
        systems: that run it.
        folder: of the results.
        pairs: of one modality, as `inference.checks.check_pairs` returns them.
        progress: called after each pair, once for those that have results.

    Returns:
        Name of a pair -> why its registration failed.

    Raises:
        FileError: a file cannot be read or written, or the folder holds results made otherwise.
    """
    path = folder.path / "failures.json"
    rows = folder.rows_to_keep(pairs, resume=True, volumes=False)
    failures = json.loads(path.read_text()) if rows and path.is_file() else {}
    failures = {name: reason for name, reason in failures.items() if name in rows}
    folder.prepare()
    for _ in rows:
        progress()
    order = {pair.name: place for place, pair in enumerate(pairs)}
    todo = [pair for pair in pairs if pair.name not in rows]
    for pair, result, failure in systems.run(system, todo, folder.modality):
        if failure:
            failures[pair.name] = failure
        rows[pair.name] = save_and_score(Job(folder, pair, result, {}))
        write_bytes(path, json.dumps(failures, indent=2).encode())
        folder.write_rows(sorted(rows.values(), key=lambda row: order[row["name"]]))
        progress()
    return failures


def run_all(
    pairs: pd.DataFrame, names: list[str], systems: Systems, output: Path, checkpoint: Path
) -> dict[str, str]:
    """Run all systems on all pairs.

    Args:
        pairs: of `inference.systems.read_pairs`.
        names: the systems.
        systems: that run them.
        output: folder of all results.
        checkpoint: its checksum is part of the settings that results are kept for.

    Returns:
        System -> how it was run, in words, with the number of its failures.

    Raises:
        FileError: as `run_system`.
    """
    from inference.checks import check_pairs

    settings = {}
    for system in names:
        failures: dict[str, str] = {}
        with tqdm(total=len(pairs), desc=system, unit="pair") as progress:
            for modality, part in pairs.groupby("modality", sort=False):
                files = [PairFiles(**row) for row in part[["name", *FILES]].to_dict("records")]
                checked, _ = check_pairs(files, modality, keep_going=False)
                made_with = {"system": systems.settings_of(system), "limit": systems.limit}
                made_with |= {"luma_steps": default_luma_steps(modality)}
                made_with |= {"sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
                folder = ResultFolder(output / system / modality, modality, made_with, flow=True)
                inputs = (path for column in FILES for path in part[column].dropna())
                check_inputs_stay(inputs, folder.all_files(checked))
                failed = run_system(system, systems, folder, checked, progress.update)
                failures |= {f"{modality} {name}": reason for name, reason in failed.items()}
        settings[system] = systems.settings_of(system)
        if failures:
            first, reason = next(iter(failures.items()))
            settings[system] += f"; {len(failures)} of {counted(len(pairs), 'pair')} failed, {first} as {reason}"
    return settings


def _missing_packages(names: list[str]) -> list[str]:
    packages = {CLASSICAL[name].package for name in names if name != OURS}
    return sorted(package for package in packages if importlib.util.find_spec(package) is None)


def run(options: argparse.Namespace, names: list[str], results: dict[str, Path]) -> None:
    """Run the systems, rank them with further results, and print the ranking.

    Raises:
        InputError: as `run_all` and `tools.rank.write_ranking`.
    """
    pairs = chosen_pairs(options)
    systems = Systems(options.checkpoint, options.time_limit, options.workers or available_cores())
    settings = run_all(pairs, names, systems, options.output, options.checkpoint)
    folders = {name: options.output / name for name in names} | results
    write_ranking(pairs, folders, OURS, options.output, workers=options.workers, settings=settings)
    print((options.output / "ranking.md").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.baselines``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.baselines", description=__doc__)
    add_pairs_options(parser)
    parser.add_argument("--systems", nargs="+", choices=(OURS, *CLASSICAL), default=[OURS, *CLASSICAL],
                        metavar="NAME",
                        help=f"names of the systems to run: {', '.join((OURS, *CLASSICAL))} (default: all)")
    add_checkpoint(parser)
    parser.add_argument("--time-limit", metavar="SECONDS", type=positive_float, default=300.0,
                        help="longest time of one classical registration (default: %(default)g)")
    options = parser.parse_args(arguments)
    show_messages(parser.prog)
    results = unique_results(parser, options.results)
    if taken := results.keys() & {OURS, *options.systems}:
        parser.error(f"--results: expected other names than those of --systems, found {min(taken)}")
    names = list(dict.fromkeys([OURS, *options.systems]))
    if missing := _missing_packages(names):
        parser.error(f"--systems: expected the packages {', '.join(missing)} (requirements-baselines.txt), found none")
    return run_command(parser.prog, run, options, names, results, hint="; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
