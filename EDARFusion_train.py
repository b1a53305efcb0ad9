"""Train EDARFusion: the registration from known deformations, then the fusion with predicted alignment in the loop.

    python EDARFusion_train.py --modality all --root DATA --minutes 90
    python EDARFusion_train.py --resume runs/all-001
    torchrun --nproc_per_node=2 EDARFusion_train.py ...        # several processes, GPUs or machines

DATA holds CT-MRI, PET-MRI, SPECT-MRI with folders MRI and CT, PET or SPECT of truly aligned pairs; see docs/data.md.
Ctrl-C and SIGTERM save and end; --resume goes on exactly from there.
"""

import os
import sys
from contextlib import ExitStack, suppress

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0" and not {"-h", "--help", "--version"} & set(sys.argv):
    # On a busy machine that takes up to minutes, in which a user would see nothing.
    with suppress(OSError):
        print("EDARFusion_train: loading PyTorch", file=sys.stderr, flush=True)

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist

from data.table import DataError, modality_of
from data.training_pairs import TrainingPairs, build_datasets, describe, load_table
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from models.edarfusion import EDARFusion
from training.distributed import join_processes, own_device
from training.loop import Training
from training.options import Options, Resumption, parse_arguments
from training.progress import log, show_log
from training.record import Record
from training.run_folder import begin_run, lock_folder, new_folder, open_run
from training.verdict import verdict
from utils.arguments import print_anywhere
from utils.command import run_command
from utils.device import choose_threads, memory_advice, prefer_speed
from utils.files import remove_unfinished
from utils.messages import counted
from utils.processes import kill_children, rank, world
from utils.signals import stop_on_signal

PROGRAM = "EDARFusion_train"
CUDA_BATCH, BATCH = 16, 8
"""Default pairs a step on CUDA and elsewhere."""


def initial_network(options: Options) -> tuple[EDARFusion, dict[str, int | bool]]:
    """Build the network that a run begins with, a new one or that of --init.

    Returns:
        The network, and how it is best used: arguments `passes` and `average` of its `forward`.

    Raises:
        CheckpointError: the checkpoint cannot be used, or its network is not the one that the options describe.
    """
    # The mean of both directions is better than one, and a network of a second pass needs one.
    usage = {"passes": 2 if options.second_pass else 1, "average": True}
    parts = {"use_gate" if part == "gate" else part: False for part in options.without if part != "consistency"}
    if not options.init:
        return EDARFusion(options.preset or "small", **parts), usage
    checkpoint = load_checkpoint(options.init)
    network = checkpoint.model
    arguments = parts | ({"preset": options.preset} if options.preset else {})
    if other := {name: network.arguments[name] for name in arguments if network.arguments[name] != arguments[name]}:
        chosen, stored = (", ".join(f"{name} {x[name]}" for name in other) for x in (arguments, other))
        raise CheckpointError.at(options.init, f"a network of {chosen}, as the options say", f"one of {stored}")
    passes = max(usage["passes"], checkpoint.inference()["passes"])
    return network, usage | {"passes": passes}


def load_pairs(options: Options) -> tuple[TrainingPairs, pd.DataFrame, str]:
    """Find the pairs of a run; return them, their table, and what tells them from others."""
    table, digest = load_table(options.root, options.modality, csv=options.csv, group_pattern=options.group_pattern)
    place = options.csv or options.root[0]
    pairs = build_datasets(table, place, seed=options.seed, wide=options.wide, overfit=options.overfit,
                           simulated=options.simulated, heads=options.heads,
                           repeat_after=options.repeat_after)  # fmt: skip
    return pairs, table, digest


def load_teacher(
    options: Options, table: pd.DataFrame, device: torch.device
) -> tuple[EDARFusion | None, str | None]:
    """Load the network of --teacher, if there is one, with the digest of its file."""
    if not options.teacher:
        return None, None
    modality = modality_of(table["modality"].unique())
    teacher = load_checkpoint(options.teacher, modality=modality, device=device).model
    with open(options.teacher, "rb") as file:
        return teacher, hashlib.file_digest(file, "sha256").hexdigest()


def check_resumed(record: Record, pairs: str, teacher: str | None) -> None:
    """Check that a run goes on with what it began with.

    Raises:
        FileError: the pairs or the teacher are other ones.
    """
    options = record.options
    # Steps an epoch, and what the seed draws, follow from the pairs.
    if record.pairs is None:
        log.warning("a run of an older version, which did not note its pairs; where no split.csv and no table gives "
                    "the split, it may be drawn otherwise now (--csv FILE gives another)")  # fmt: skip
        record.pairs = pairs
    if record.pairs != pairs:
        raise DataError.at(options.csv or options.root[0], f"the {record.pairs} that the run began with", pairs)
    if record.teacher != teacher:
        raise CheckpointError.at(options.teacher, "the teacher that the run began with", "another one")


def log_pairs(pairs: TrainingPairs, table: pd.DataFrame, device: torch.device) -> None:
    """Say what is trained on and where it computes."""
    numbers, limits = describe(pairs, table)
    place = f"{device}, {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else f"{device}"
    log.info(f"{numbers}; {place}")
    for limit in limits:
        log.warning(limit)


def log_verdict(record: Record, folder: Path, broken_off: bool) -> None:
    """Say how the run ended."""
    messages, warnings = verdict(record, folder, broken_off)
    for message in messages:
        log.info(message)
    for warning in warnings:
        log.warning(warning)


def train(request: Options | Resumption, stop: threading.Event) -> None:
    """Make one run, from its beginning or from where it was left, to its end or until `stop` is set."""
    with ExitStack() as until_the_end:
        resumed: Checkpoint | None = None
        if isinstance(request, Resumption):
            folder = request.folder
            if rank() == 0 and folder.is_dir():
                until_the_end.enter_context(lock_folder(folder))
            resumed, record = open_run(request)
            if record.finished:
                unit = "epochs" if record.options.epochs else "minutes"
                log.info(f"{folder} is finished after {record.options.length:g} {unit}; a larger number prolongs it")
                return
        elif rank() == 0:
            folder = until_the_end.enter_context(new_folder(request))
        options = record.options if resumed else request
        device = own_device(options.device, world())
        choose_threads(device, options.threads)
        prefer_speed(device)
        torch.manual_seed(options.seed)
        if rank() == 0:
            log.info(f"{'going on with' if resumed else 'run folder:'} {folder}; reading the pairs")
        pairs, table, digest = load_pairs(options)
        teacher, taught_by = load_teacher(options, table, device)
        if resumed:
            start = resumed.model
            check_resumed(record, digest, taught_by)
        else:
            default = CUDA_BATCH if device.type == "cuda" else BATCH
            options = replace(options, batch_size=options.batch_size or default)
            start, inference = initial_network(options)
            record = Record(options, next(iter(options.plan)), digest, world(), taught_by, inference=inference)
        if rank() == 0:
            pairs.check()
            if resumed:
                remove_unfinished(folder)
            else:
                # Last of what may fail, so that nothing is left of a run that does not begin.
                begin_run(folder, options)
            log_pairs(pairs, table, device)
        join_processes(device, world())
        training = Training(record, start, teacher, pairs, folder if rank() == 0 else None, device)
        broken_off = training.run(resumed.state if resumed else None, stop)
        if rank() == 0:
            training.run_folder.close()
            log_verdict(record, folder, broken_off)
        if world() > 1:
            dist.barrier()
            dist.destroy_process_group()


def run() -> int:
    """Train as the command line says; return the exit status."""
    request = parse_arguments()
    if rank() == 0:
        show_log()
    try:
        # The loading processes inherit it: Ctrl-C leaves them at work until the step is saved.
        with stop_on_signal(second_breaks_in=world() == 1) as stop:
            train(request, stop)
    except (RuntimeError, MemoryError) as error:
        if not (advice := memory_advice(error)):
            raise
        print(f"{PROGRAM}: {advice}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run ``python EDARFusion_train.py``; return the exit status."""
    print_anywhere()
    try:
        return run_command(PROGRAM, run, hint="; --resume goes on from what was saved, if anything")
    finally:
        # At exit Python would wait for the loading processes, which leave signals to this one.
        kill_children()


if __name__ == "__main__":
    sys.exit(main())
