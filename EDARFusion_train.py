"""Train EDARFusion: the registration from known deformations, then the fusion with predicted alignment in the loop.

    python EDARFusion_train.py --modality all --root DATA --minutes 90
    python EDARFusion_train.py --resume runs/all-001
    torchrun --nproc_per_node=2 EDARFusion_train.py ...        # several processes, GPUs or machines

DATA holds CT-MRI, PET-MRI, SPECT-MRI with folders MRI and CT, PET or SPECT of truly aligned pairs; see README.md.
Ctrl-C and SIGTERM save and end; --resume goes on exactly from there.
"""

import argparse
import hashlib
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist

from data.dataset import VAL_SEED, PairDataset, balance
from data.simulated_heads import LabelledHeads
from data.splits import add_group_pattern, find_table, shared_patients
from data.table import MODALITIES, SPLITS, DataError, modality_name, modality_of
from models.checkpoint import CheckpointError, load_checkpoint
from models.edarfusion import PRESETS, EDARFusion
from training.distributed import join_processes, own_device
from training.loop import Training
from training.run_folder import begin_run, open_run
from training.stages import STAGES, stages
from utils.arguments import OneLineParser, natural, positive, positive_float, print_anywhere, share
from utils.files import InputError, remove_unfinished
from utils.messages import counted
from utils.processes import rank, world
from utils.signals import INTERRUPTED, stop_on_signal

PROGRAM = "EDARFusion_train"
WHERE = {"csv", "device", "heads", "workers", "root", "save_minutes", "stop_after", "teacher"}
"""Options that --resume may be given anew: they change where and how long a run computes, but not what."""
ABLATIONS = ("entropy", "prereg", "reliability", "aggregation", "gate", "refinement", "consistency")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as they go together; with --resume, `moved` says which of `WHERE` were given."""
    parser = OneLineParser(PROGRAM, description="Train EDARFusion.", formatter_class=argparse.RawTextHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), default="all",
                      help="default: %(default)s")
    data.add_argument("--root", nargs="+", metavar="DIR", help="folders of aligned pairs, or what --csv starts from")
    data.add_argument("--csv", metavar="FILE", help="table of pairs (python -m tools.make_csv)")
    add_group_pattern(data)
    data.add_argument("--overfit", type=positive, metavar="N",
                      help="train and validate on N pairs with fixed deformations")
    data.add_argument("--wide", type=share, default=0.5, help="share of large deformations (default: %(default)s)")
    data.add_argument("--simulated", type=share, default=0.0, metavar="SHARE",
                      help="of the training pairs that show simulated heads (default: %(default)s)")
    data.add_argument("--heads", metavar="DIR", help="labelled heads to simulate on (python -m tools.make_heads);\n"
                      "without them --simulated draws random shapes")
    data.add_argument("--second-pass", type=share, default=0.0, metavar="SHARE",
                      help="of the steps whose pairs are first aligned by the network itself (default: %(default)s)")
    data.add_argument("--workers", type=natural, metavar="N",
                      help="processes that make the pairs (default: none on a CPU, up to 8 beside a GPU)")
    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="DIR", help="run folder (default: the next free runs/MODALITY-NNN)")
    run.add_argument("--resume", metavar="DIR", help="go on with this run; its options are kept, but for\n"
                     f"{', '.join(f'--{name}'.replace('_', '-') for name in sorted(WHERE))}")
    run.add_argument("--init", metavar="FILE", help="checkpoint whose weights to start from")
    run.add_argument("--teacher", metavar="FILE",
                     help="checkpoint of a network to learn from instead of the truth, for a small network")
    run.add_argument("--epochs", type=positive, help="length of the run")
    run.add_argument("--minutes", type=positive_float, help="length of the run as training time, instead of --epochs")
    run.add_argument("--stop-after", type=positive, metavar="N", help="break off at the end of epoch N, as Ctrl-C does")
    run.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="default: %(default)s, in turn")
    run.add_argument("--fusion-share", type=share, default=0.15, help="of the run, at its end (default: %(default)s)")
    run.add_argument("--save-minutes", type=positive_float, default=3,
                     help="time between checkpoints (default: %(default)s)")
    run.add_argument("--val-every", type=positive, default=5, metavar="EPOCHS", help="default: %(default)s")
    model = parser.add_argument_group("model and optimisation")
    model.add_argument("--preset", choices=PRESETS, help="size (default: small; with --init that of the checkpoint)")
    model.add_argument("--without", nargs="+", choices=ABLATIONS, default=[], metavar="PART",
                       help=f"ablation: leave out {', '.join(ABLATIONS)}")
    model.add_argument("--batch-size", type=positive, default=8, help="of one process (default: %(default)s)")
    model.add_argument("--lr", type=positive_float, default=1.5e-3, help="highest learning rate (default: %(default)s)")
    model.add_argument("--dropout", type=share, default=0.0, metavar="SHARE",
                       help="of the registration's deeper channels that a step leaves out (default: %(default)s)")
    model.add_argument("--averaging", type=share, default=0.998,
                       help="decay of the mean weights (default: %(default)s)")
    model.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    model.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    model.add_argument("--amp", action="store_true", help="bfloat16 where it is safe")
    options = parser.parse_args(arguments)
    if options.resume:
        # What already has a value gets no default.
        said = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(options))))
        options.moved = {name: value for name, value in vars(said).items() if value is not None and name != "resume"}
        if kept := options.moved.keys() - WHERE:
            names = ", ".join(f"--{name}".replace("_", "-") for name in sorted(kept))
            parser.error(f"--resume: expected the run's own options, found {names}; for others --init")
        return options
    if not options.root:
        parser.error("--root: expected a folder of aligned pairs")
    if (options.epochs is None) == (options.minutes is None):
        parser.error("expected either --epochs or --minutes")
    if options.seed >= 2**32:
        parser.error(f"--seed: expected a number below {2**32}, found {options.seed}")
    if options.heads and not options.simulated:
        parser.error("--heads: expected --simulated SHARE with it, found none")
    if options.stage == "fusion" and not options.init:
        parser.error("--stage fusion: expected --init FILE with a trained registration, found none")
    return options


def load_table(options: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """The pairs of all roots, paths included; and what tells them from others, wherever their folders lie."""
    if options.csv and len(options.root) > 1:
        raise DataError.at(options.csv, "one --root with it", " ".join(options.root))
    tables, digest = [], hashlib.sha256()
    for root in options.root:
        table = find_table(root, options.modality, csv=options.csv, group_pattern=options.group_pattern)
        # The same under every system: a run may go on under another.
        told = table[["fixed", "moving", "modality", "split"]].to_csv(index=False, lineterminator="\n")
        digest.update(told.replace(os.sep, "/").encode())
        # One number in two folders is not one patient.
        for column in ("fixed", "moving", *({"group"} & set(table))):
            table[column] = [str(Path(root, value)) for value in table[column]]
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return table, f"{len(table)} pairs ({digest.hexdigest()[:8]})"


def build_datasets(options: argparse.Namespace, table: pd.DataFrame) -> tuple[PairDataset, PairDataset]:
    """Pairs to train on, as many of each modality, and to validate on."""
    if options.overfit:
        if options.overfit > len(table):
            raise DataError.at(options.csv or options.root[0], f"{options.overfit} pairs to overfit", f"{len(table)}")
        # In turn from each modality.
        few = table.iloc[table.groupby("modality").cumcount().argsort(kind="stable")[: options.overfit]]
        pairs = PairDataset(few, ".", seed=VAL_SEED)
        return pairs, pairs
    train, val = (table[table["split"] == split] for split in ("train", "val"))
    if train.empty or val.empty:
        found = ", ".join(f"{(table['split'] == split).sum()} {split}" for split in SPLITS)
        raise DataError.at(options.csv or options.root[0], "pairs of the splits train and val", found)
    return (
        PairDataset(
            balance(train, options.seed), ".", seed=options.seed, augment=True, wide=options.wide,
            simulated=options.simulated, heads=LabelledHeads(options.heads) if options.heads else None,
        ),  # fmt: skip
        PairDataset(val, ".", seed=VAL_SEED),
    )


def initial_network(options: argparse.Namespace) -> EDARFusion:
    """The network that a run begins with: a new one, or that of --init."""
    parts = {"use_gate" if part == "gate" else part: False for part in options.without if part != "consistency"}
    if not options.init:
        return EDARFusion(options.preset or "small", **parts)
    network = load_checkpoint(options.init).model
    wanted = parts | ({"preset": options.preset} if options.preset else {})
    if other := {name: network.arguments[name] for name in wanted if network.arguments[name] != wanted[name]}:
        expected, found = (", ".join(f"{name} {x[name]}" for name in other) for x in (wanted, other))
        raise CheckpointError.at(options.init, f"a network of {expected}, as the options say", f"one of {found}")
    return network


def load_teacher(
    options: argparse.Namespace, table: pd.DataFrame, device: torch.device
) -> tuple[EDARFusion | None, str | None]:
    """The network of --teacher, if there is one, and what tells its file from others."""
    if not options.teacher:
        return None, None
    modality = modality_of(table["modality"].unique())
    teacher = load_checkpoint(options.teacher, modality=modality, device=device).model
    with open(options.teacher, "rb") as file:
        return teacher, hashlib.file_digest(file, "sha256").hexdigest()


def say_what_is_trained_on(
    train_pairs: PairDataset,
    val_pairs: PairDataset,
    table: pd.DataFrame,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """How many pairs there are, and what validation on them cannot tell."""
    modalities = ", ".join(MODALITIES[index] for index in sorted(set(train_pairs.modalities)))
    print(f"{len(train_pairs)} pairs an epoch ({modalities}), {len(val_pairs)} to validate on; {device}")
    for index in sorted(set(train_pairs.modalities) - set(val_pairs.modalities)):
        print(f"{MODALITIES[index]}: no pairs to validate on, so the best checkpoint is chosen without it")
    if not options.overfit and "group" in table and (shared := shared_patients(table)):
        print(f"{counted(shared, 'patient')} with slices both to train and to validate on: validation flatters")


def say_how_it_ended(record: dict[str, Any], plan: Iterable[str], folder: Path, stopping: bool) -> None:
    """Where the run lies, and what of its plan was never trained."""
    where = f"broken off; go on with --resume {folder}" if stopping else f"finished: {folder / 'last.safetensors'}"
    print(f"{where} ({record['step']} steps, {record['seconds'] / 60:.1f} minutes)")
    # A stage that made steps has a row, that of an epoch's end or of its own.
    trained = {row["stage"] for row in record["history"]}
    if not stopping and (idle := [stage for stage in plan if stage not in trained]):
        print(f"no step was left for {' and '.join(idle)}, still as the run began; a longer run trains all stages")


def train(options: argparse.Namespace, stop: threading.Event) -> None:
    """One run, from its beginning or --resume to its end or until `stop` is set."""
    first = rank() == 0
    folder = resumed = None
    if options.resume:
        options, folder, resumed = open_run(options)
    device = own_device(options.device, world())
    torch.manual_seed(options.seed)
    table, pairs_found = load_table(options)
    train_pairs, val_pairs = build_datasets(options, table)
    teacher, taught_by = load_teacher(options, table, device)
    plan = stages(options)
    if resumed:
        start, record = resumed.model, resumed.training
        # Steps an epoch, and what the seed draws, follow from them.
        if first and "pairs" not in record:
            print("a run of an older version, which did not note its pairs; where no split.csv and no table gives the "
                  "split, it may be drawn otherwise now (--csv FILE gives another)")
        if (began := record.setdefault("pairs", pairs_found)) != pairs_found:
            raise DataError.at(options.csv or options.root[0], f"the {began} that the run began with", pairs_found)
        if record.get("teacher") != taught_by:
            raise CheckpointError.at(options.teacher, "the teacher that the run began with", "another one")
        # Where these lie now, the next --resume looks for them as well.
        record["options"] |= {name: getattr(options, name) for name in ("csv", "root", "teacher")}
    else:
        start = initial_network(options)
        record = {"options": vars(options), "pairs": pairs_found, "processes": world(), "teacher": taught_by}
        record |= {"stage": next(iter(plan)), "step": 0, "stage_step": 0, "seconds": 0.0}
        record |= {"best": None, "sums": {}, "history": []}
    if first:
        for pairs in (train_pairs, val_pairs):
            pairs.check()
        if resumed:
            remove_unfinished(folder)
        else:
            # Last of what may fail, so that no folder is left of a run that does not begin.
            folder = begin_run(options)
        say_what_is_trained_on(train_pairs, val_pairs, table, options, device)
    join_processes(device, world())
    # An accelerator has no deterministic form of some operators: there it would only cost time.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    training = Training(options, start, teacher, record, train_pairs, val_pairs, folder if first else None, device)
    stopping, state = False, resumed.state if resumed else None
    for stage, (begin, end) in plan.items():
        if not stopping and STAGES.index(stage) >= STAGES.index(record["stage"]):
            stopping = training.run_stage(stage, begin, end, state if stage == record["stage"] else None, stop)
    if first:
        training.run_folder.close()
        say_how_it_ended(record, plan, folder, stopping)
    if world() > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> int:
    """``python EDARFusion_train.py``; returns the exit status."""
    print_anywhere()
    try:
        options = parse_arguments()
        # The loading processes inherit it: Ctrl-C leaves them at work until the step is saved.
        with stop_on_signal(second_breaks_in=world() == 1) as stop:
            train(options, stop)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: broken off at once; --resume goes on from what was saved, if anything", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
