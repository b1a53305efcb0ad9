"""Train EDARFusion: the registration from known deformations, then the fusion with predicted alignment in the loop.

    python EDARFusion_train.py --modality all --root DATA --minutes 90
    python EDARFusion_train.py --resume runs/all-001
    torchrun --nproc_per_node=2 EDARFusion_train.py ...        # several processes, GPUs or machines

DATA holds CT-MRI, PET-MRI, SPECT-MRI with folders MRI and CT, PET or SPECT of truly aligned pairs; see README.md.
Ctrl-C and SIGTERM save and end; --resume goes on exactly from there.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import VAL_SEED, EndlessSampler, Pair, PairDataset, balance, seeded
from data.make_csv import add_group_pattern, find_table, shared_patients
from data.table import MODALITIES, SPLITS, DataError
from losses.fusion import FusionLoss, FusionWeights, for_modalities, fusion_loss
from losses.registration import RegistrationLoss, registration_loss
from models.edarfusion import PRESETS, EDARFusion
from models.layers import UNet
from utils.arguments import natural, positive, positive_float, print_anywhere, share
from utils.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from utils.device import choose_device, loading_processes
from utils.files import FileError, remove_unfinished, write_bytes
from utils.head import TISSUE
from utils.interruption import leave_signals_to_parent, stop_on_signal
from utils.optimizer import Muon
from utils.run_folder import RunFolder
from utils.training_state import pack_state, unpack_state
from utils.validation import summary, validate
from utils.visualize import MAPS, figure_pair
from utils.warp import warp
from utils.wording import counted

STAGES = ("registration", "fusion")
WHERE = {"csv", "device", "workers", "root", "save_minutes", "stop_after"}
"""Options that --resume may be given anew: they change where and how long a run computes, but not what."""
ABLATIONS = ("entropy", "prereg", "reliability", "aggregation", "gate", "refinement", "consistency")
Autocast = torch.autocast | nullcontext


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train EDARFusion.", formatter_class=argparse.RawTextHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--modality", choices=(*MODALITIES, "all"), default="all", help="default: %(default)s")
    data.add_argument("--root", nargs="+", metavar="DIR", help="folders of aligned pairs, or what --csv starts from")
    data.add_argument("--csv", metavar="FILE", help="table of pairs (python -m data.make_csv)")
    add_group_pattern(data)
    data.add_argument("--overfit", type=positive, metavar="N",
                      help="train and validate on N pairs with fixed deformations")
    data.add_argument("--wide", type=share, default=0.5, help="share of large deformations (default: %(default)s)")
    data.add_argument("--second-pass", type=share, default=0.0, metavar="SHARE",
                      help="of the steps whose pairs are first aligned by the network itself (default: %(default)s)")
    data.add_argument("--workers", type=natural, metavar="N",
                      help="processes that make the pairs (default: none on a CPU, up to 8 beside a GPU)")
    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="DIR", help="run folder (default: the next free runs/MODALITY-NNN)")
    run.add_argument("--resume", metavar="DIR", help="go on with this run; its options are kept, but for\n"
                     f"{', '.join(f'--{name}'.replace('_', '-') for name in sorted(WHERE))}")
    run.add_argument("--init", metavar="FILE", help="checkpoint whose weights to start from")
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
        PairDataset(balance(train, options.seed), ".", seed=options.seed, augment=True, wide=options.wide),
        PairDataset(val, ".", seed=VAL_SEED),
    )


class RegistrationStep(nn.Module):
    """Loss of the registration for one batch, in the form that DistributedDataParallel wraps."""

    def __init__(self, model: EDARFusion) -> None:
        super().__init__()
        parts = [model.encoders, model.frg_prereg, model.eda_flowreg, model.refinement]
        self.parts = nn.ModuleList(part for part in parts if part is not None)
        self.register_pair = model.register

    def forward(self, pair: Pair, amp: Autocast) -> RegistrationLoss:
        with amp:
            registration = self.register_pair(pair.fixed, pair.moving, both=True)
        return registration_loss(
            registration, pair.moving, pair.moving_aligned, pair.fixed, pair.flow, pair.inverse_flow
        )


class FusionStep(nn.Module):
    """Loss of the fusion for one batch; the registration stays as it is.

    With the alignment-consistency constraint the predicted alignment is in the loop; without it (ablation) only truly
    aligned pairs are fused.
    """

    def __init__(self, model: EDARFusion, consistency: bool) -> None:
        super().__init__()
        self.part, self.consistency = model.fusion, consistency
        self.register_pair, self.fuse = model.register, model.fuse

    def forward(self, pair: Pair, amp: Autocast) -> FusionLoss:
        with torch.no_grad(), amp:
            registration = self.register_pair(pair.fixed, pair.moving)
            aligned = warp(pair.moving, registration.flow) if self.consistency else pair.moving_aligned
        # Grey values want more digits than bfloat16 has.
        fused, fused_true = (
            self.fuse(pair.fixed, image, registration).fused for image in (aligned, pair.moving_aligned)
        )
        weights = for_modalities(FusionWeights(), pair.modality)
        return fusion_loss(pair.fixed, pair.moving_aligned, fused, fused_true, weights)


def learning_rate(highest: float, step: int, progress: float) -> float:
    """Short warm-up, then half a cosine down to a fiftieth: `step` and `progress` (0 to 1) are the stage's own."""
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return highest * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * cosine)


def running_mean(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Exponential mean of weights, in place, that forgets the first, untrained ones faster."""
    return lambda means, new, n: torch._foreach_lerp_(means, new, max(1 - decay, 9 / (10 + int(n))))


def agree(progress: float, stopping: bool, device: torch.device, world: int) -> tuple[float, bool]:
    """The furthest progress among all processes, and whether any of them is to stop."""
    if world > 1:
        # In double precision, as a single process computes: a share that is rounded would end a stage a step later.
        flags = torch.tensor([progress, float(stopping)], dtype=torch.float64, device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        progress, stopping = flags[0].item(), bool(flags[1].item())
    return progress, stopping


def check(model: EDARFusion, pairs: PairDataset, device: torch.device, stage: str) -> dict[str, float]:
    """Validation figures and the score by which the best checkpoint is chosen."""
    metrics = summary(validate(model, pairs, device, fusion=stage == "fusion"))
    return metrics | {"score": score(metrics, stage)}


def broke_off_validating(record: dict, val_every: int) -> bool:
    """Whether a run was last saved at the end of an epoch that was still to be validated."""
    latest = record["history"][-1] if record["history"] else {"step": None}
    return latest["step"] == record["step"] and latest["epoch"] % val_every == 0 and "score" not in latest


def describe(row: dict[str, float | str]) -> str:
    """One line for the log."""
    shown = {name: value for name, value in row.items() if not name.startswith(("step", "rmse_before", "better"))}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())


def picture(model: EDARFusion, pairs: PairDataset, device: torch.device, row: int) -> Figure:
    """All that the model makes of one validation pair."""
    pair = pairs[row]
    with torch.inference_mode():
        output = model(pair.fixed[None].to(device), pair.moving[None].to(device))
    shown = {name: field[0].cpu().squeeze().numpy() for name, field in output._asdict().items()}
    images = {"fixed": pair.fixed[0].numpy(), "moving": pair.moving[0].numpy(), "label": pair.moving_aligned[0].numpy()}
    maps = {name: array for name, array in shown.items() if name in MAPS}
    return figure_pair(
        images["fixed"], images["moving"], shown["aligned"], shown["fused"], label=images["label"], flow=shown["flow"],
        maps=maps, title=pairs.fixed[row].stem,
    )  # fmt: skip


def new_run_folder(modality: str) -> Path:
    """The next free runs/MODALITY-NNN, made at once so that no other run takes it."""
    for number in range(1, 1000):
        folder = Path("runs", f"{modality}-{number:03d}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileError.at("runs", "a free run folder", "999 runs")


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


def begin_run(options: argparse.Namespace) -> Path:
    """Make the folder of a new run, with its options in it."""
    folder = Path(options.output) if options.output else new_run_folder(options.modality)
    if (folder / "last.safetensors").exists():
        raise FileError.at(folder, "a folder without a run in it", "one; --resume goes on with it")
    # Also shows before the first step whether the folder can be written to.
    write_bytes(folder / "options.json", json.dumps(vars(options), indent=2).encode())
    return folder


def open_run(options: argparse.Namespace) -> tuple[argparse.Namespace, Path, Checkpoint]:
    """The options, the folder and the last checkpoint of the run to --resume."""
    folder = Path(options.resume)
    checkpoint = load_checkpoint(folder / "last.safetensors")
    if not checkpoint.state:
        expected, found = "a run's last.safetensors, with its training state", "published weights or the best ones"
        raise CheckpointError.at(folder / "last.safetensors", expected, found)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if (began := checkpoint.training.get("processes", world)) != world:
        # The number of steps, and which pairs a step sees, follow from it.
        raise CheckpointError.at(folder, f"{began} processes (torchrun --nproc_per_node), as it began with", f"{world}")
    # Options that a run of an older version does not know are at their defaults.
    defaults = dict(vars(options))
    moved = {"stop_after": None} | defaults.pop("moved")
    return argparse.Namespace(**(defaults | checkpoint.training["options"] | moved)), folder, checkpoint


def stages(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Each stage with the shares of the run at which it begins and ends."""
    if options.stage != "all":
        return {options.stage: (0.0, 1.0)}
    return {"registration": (0.0, 1 - options.fusion_share), "fusion": (1 - options.fusion_share, 1.0)}


def score(metrics: dict[str, float], stage: str) -> float:
    """What the best checkpoint has least of: endpoint error over zero flow's, or what fusion loses of the edges."""
    kinds = [name.removeprefix("epe_") for name in metrics if name.startswith("epe_")]
    if stage == "registration":
        for kind in kinds:
            if not metrics[f"zero_{kind}"] > 0:
                raise DataError.at(kind, f"tissue in the validation pairs, brighter than {TISSUE} of the range", "none")
        return sum(metrics[f"epe_{kind}"] / metrics[f"zero_{kind}"] for kind in kinds) / len(kinds)
    return 1 - sum(metrics[f"qabf_{kind}"] for kind in kinds) / len(kinds)


def own_device(name: str, world: int) -> torch.device:
    """The device called `name` that this one of several processes computes on."""
    device = choose_device(name, int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1 and device.type == "mps":
        raise ValueError("device: expected cpu or cuda for several processes, found mps (--device cpu)")
    together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # A process that sees a single GPU may have been given one of its own.
    if device.type == "cuda" and dist.is_nccl_available() and together > torch.cuda.device_count() > 1:
        expected = f"at most {torch.cuda.device_count()} processes here, one for each GPU (torchrun --nproc_per_node)"
        raise ValueError(f"device: expected {expected}, found {together}")
    return device


def join_processes(device: torch.device, world: int) -> None:
    """Several processes become one group."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        # Only one process validates; the others wait for it.
        # Windows has no NCCL.
        backend, own = ("nccl", device) if device.type == "cuda" and dist.is_nccl_available() else ("gloo", None)
        dist.init_process_group(backend, timeout=timedelta(hours=2), device_id=own)


def begin_stage(
    stage: str, model: EDARFusion, options: argparse.Namespace
) -> tuple[RegistrationStep | FusionStep, torch.optim.Optimizer]:
    """What a stage trains, and its optimizer."""
    for network in model.modules():
        if isinstance(network, UNet):
            network.dropout = options.dropout if stage == "registration" else 0.0
    if stage == "registration":
        module = RegistrationStep(model)
        dtype = torch.bfloat16 if options.amp else torch.float32
        return module, Muon(module, options.lr, weight_decay=1e-3, dtype=dtype)
    module = FusionStep(model, consistency="consistency" not in options.without)
    # Muon's steps of one length upset the few small kernels of the fusion, whose head corrects grey values directly.
    return module, torch.optim.AdamW(module.parameters(), options.lr, weight_decay=1e-3)


class Clock:
    """Seconds of training over all sessions of a run, without validation and saving."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.since = seconds, time.perf_counter()

    def read(self) -> float:
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def skip(self) -> None:
        self.since = time.perf_counter()


class Training:
    """A run at work.

    Args:
        options: of the run.
        start: network to start from.
        record: what is noted of the run, as checkpoints keep it; goes on being written here.
        train_pairs, val_pairs: to train and to validate on.
        path: the run's folder; None in all processes but the first, which alone validates and writes.
        device: to compute on.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        start: EDARFusion,
        record: dict[str, Any],
        train_pairs: PairDataset,
        val_pairs: PairDataset,
        path: Path | None,
        device: torch.device,
    ) -> None:
        self.options, self.record, self.val_pairs, self.device = options, record, val_pairs, device
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.amp = torch.autocast(device.type, torch.bfloat16) if options.amp else nullcontext()
        # Two copies: one is trained, the other is the running mean of its weights, which is validated and kept.
        self.model = copy.deepcopy(start).to(device).train()
        self.averaged = AveragedModel(start.to(device), multi_avg_fn=running_mean(options.averaging)).eval()
        self.averaged.n_averaged.fill_(record["step"] - record["stage_step"])
        self.epoch_steps = math.ceil(len(train_pairs) / (options.batch_size * self.world))
        self.batches = self.endless_batches(train_pairs)
        kind, next_epoch = options.modality, record["step"] // self.epoch_steps + 1
        self.folder = RunFolder(path, self.averaged.module, record, kind, next_epoch) if path else None
        self.clock, self.saved = Clock(record["seconds"]), time.monotonic()

    def endless_batches(self, pairs: PairDataset) -> Iterator[Pair]:
        """Batches from the step on at which the run is."""
        options, together = self.options, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        sampler = EndlessSampler(
            len(pairs), options.batch_size, seed=options.seed, start=self.record["step"], rank=self.rank,
            world=self.world,
        )  # fmt: skip
        loader = DataLoader(
            pairs,
            options.batch_size,
            sampler=sampler,
            num_workers=loading_processes(self.device, together) if options.workers is None else options.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )
        batches = iter(loader)
        # The processes that make the pairs take seconds to start, which are no training time.
        return itertools.chain([next(batches)], batches)

    def run_stage(
        self, stage: str, begin: float, end: float, state: dict[str, Tensor] | None, stop: threading.Event
    ) -> bool:
        """Train one stage.

        Args:
            begin, end: its shares of the run.
            state: of the checkpoint to go on from; None at the stage's beginning.
            stop: breaks it off.

        Returns:
            Whether it was broken off.
        """
        options, record = self.options, self.record
        if stage != record["stage"]:
            # The fusion learns on top of the averaged registration, the one that will be used.
            self.model.load_state_dict(self.averaged.module.state_dict())
            self.averaged.n_averaged.zero_()
            record |= {"stage": stage, "stage_step": record["step"], "best": None, "sums": {}}
        self.module, self.optimizer = begin_stage(stage, self.model, options)
        if state:
            unpack_state(state, self.model, self.optimizer)
            if self.folder and broke_off_validating(record, options.val_every):
                self.validate_into(record["history"][-1])
                self.log(record["history"][-1])
        step_loss = DistributedDataParallel(self.module) if self.world > 1 else self.module
        total_steps = self.epoch_steps * options.epochs if options.epochs else None
        bar = tqdm(desc=stage, unit="pair", disable=None if self.folder else True, dynamic_ncols=True)
        self.clock.skip()
        while True:
            record["seconds"] = self.clock.read()
            progress = record["step"] / total_steps if total_steps else record["seconds"] / 60 / options.minutes
            # Processes differ in their clocks and in who got the signal, but must break off at one step.
            progress, stopping = agree(progress, stop.is_set(), self.device, self.world)
            if progress >= end or stopping:
                break
            within = (progress - begin) / (end - begin)
            rate = learning_rate(options.lr, record["step"] - record["stage_step"], within)
            loss = self.step(step_loss, rate)
            bar.update(options.batch_size * self.world)
            bar.set_postfix(loss=f"{loss:.3f}", done=f"{progress:.1%}")
            epoch, rest = divmod(record["step"], self.epoch_steps)
            if rest:
                self.save_now_and_then()
                continue
            self.end_epoch(epoch, rate)
            if options.stop_after and epoch >= options.stop_after:
                stop.set()
            self.clock.skip()
        bar.close()
        if self.folder:
            self.end_stage(stopping)
        return stopping

    def step(self, step_loss: nn.Module, rate: float) -> float:
        """One step on the next batch; returns the loss, the mean over all processes.

        Args:
            step_loss: the stage's module, made one with those of the other processes.
            rate: learning rate.
        """
        options, record = self.options, self.record
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pair = next(self.batches).to(self.device)
        # Evenly spread, so that all processes and a resumed run agree.
        second_pass = record["step"] * options.second_pass % 1 + options.second_pass >= 1
        if options.dropout:
            # What a step leaves out depends on nothing before it, so that a resumed run leaves out the same.
            torch.manual_seed(seeded(options.seed, record["step"] * self.world + self.rank).initial_seed())
        if record["stage"] == "registration" and second_pass:
            with torch.no_grad(), self.amp:
                found = self.model.register(pair.fixed, pair.moving)
                pair = pair.aligned_by(found.flow, found.inverse_flow)
        loss = step_loss(pair, self.amp)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        if not norm.isfinite():
            raise ValueError(f"step {record['step']}: expected finite gradients, found {norm}; the last save stays")
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        record["step"] += 1
        parts = torch.stack([part.detach() for part in loss])
        if self.world > 1:
            # Each process has seen pairs of its own.
            dist.all_reduce(parts)
        values = dict(zip(loss._fields, (parts / self.world).tolist(), strict=True))
        record["sums"] = {name: record["sums"].get(name, 0.0) + value for name, value in values.items()}
        return values["total"]

    def save_now_and_then(self) -> None:
        """Within an epoch: save if the last time was long ago."""
        if self.folder and time.monotonic() - self.saved > 60 * self.options.save_minutes:
            self.record["seconds"] = self.clock.read()
            self.save_last()
            self.saved = time.monotonic()
            self.clock.skip()

    def end_epoch(self, epoch: int, rate: float) -> None:
        """Add the epoch's row to the history; the first process also validates, if it is time, and saves."""
        record = self.record
        record["seconds"] = self.clock.read()
        # A stage may begin within an epoch.
        summed = min(self.epoch_steps, record["step"] - record["stage_step"])
        losses = {"lr": rate} | {name: value / summed for name, value in record["sums"].items()}
        row = self.new_row(epoch) | losses
        record["sums"] = {}
        record["history"].append(row)
        if self.folder:
            self.folder.add_scalars("train", losses, epoch)
            if epoch % self.options.val_every == 0:
                # That may take longer than a signal's sender waits; a resumed run makes up for it.
                self.save_last()
                self.validate_into(row)
            self.log(row)
            self.saved = time.monotonic()
        if self.world > 1:
            dist.barrier()

    def end_stage(self, stopping: bool) -> None:
        """Save; a stage that was not broken off is validated first, unless its last epoch was."""
        record = self.record
        latest = record["history"][-1] if record["history"] else {}
        validated = latest.get("step") == record["step"] and "score" in latest
        if record["step"] > record["stage_step"] and not stopping and not validated:
            self.save_last()
            row = self.new_row(math.ceil(record["step"] / self.epoch_steps))
            record["history"].append(row)
            self.validate_into(row)
            tqdm.write(describe(row))
        self.save_last(needed=stopping or record["stage"] == list(stages(self.options))[-1])
        if record["history"]:
            self.folder.write_history()

    def new_row(self, epoch: int) -> dict[str, float | str]:
        """What every row of the history begins with."""
        record = self.record
        return {
            "epoch": epoch,
            "stage": record["stage"],
            "step": record["step"],
            "minutes": record["seconds"] / 60,
        }

    def validate_into(self, row: dict[str, float | str]) -> None:
        """Validate and add the figures to a row of the history."""
        metrics = check(self.averaged.module, self.val_pairs, self.device, self.record["stage"])
        row |= metrics
        self.folder.keep_if_best(row)
        figure = picture(self.averaged.module, self.val_pairs, self.device, row["epoch"] % len(self.val_pairs))
        self.folder.add_picture("val", figure, row["epoch"])
        self.folder.add_scalars("val", metrics, row["epoch"])

    def log(self, row: dict[str, float | str]) -> None:
        """Show a row of the history, and save."""
        tqdm.write(describe(row))
        self.save_last()
        self.folder.write_history()

    def save_last(self, *, needed: bool = False) -> None:
        """Save what --resume goes on from; see `RunFolder.save_last`."""
        self.folder.save_last(pack_state(self.model, self.optimizer), needed=needed)


def say_what_is_trained_on(
    train_pairs: PairDataset, val_pairs: PairDataset, table: pd.DataFrame, options: argparse.Namespace, device: object
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
    main, world = int(os.environ.get("RANK", 0)) == 0, int(os.environ.get("WORLD_SIZE", 1))
    folder = resumed = None
    if options.resume:
        options, folder, resumed = open_run(options)
    device = own_device(options.device, world)
    torch.manual_seed(options.seed)
    table, pairs_found = load_table(options)
    train_pairs, val_pairs = build_datasets(options, table)
    plan = stages(options)
    if resumed:
        start, record = resumed.model, resumed.training
        # Steps an epoch, and what the seed draws, follow from them.
        if main and "pairs" not in record:
            print("a run of an older version, which did not note its pairs; where no split.csv and no table gives the "
                  "split, it may be drawn otherwise now (--csv FILE gives another)")
        if (began := record.setdefault("pairs", pairs_found)) != pairs_found:
            raise DataError.at(options.csv or options.root[0], f"the {began} that the run began with", pairs_found)
    else:
        start = initial_network(options)
        record = {"options": vars(options), "pairs": pairs_found, "processes": world, "stage": next(iter(plan))}
        record |= {"step": 0, "stage_step": 0, "seconds": 0.0, "best": None, "sums": {}, "history": []}
    if main:
        for pairs in (train_pairs, val_pairs):
            pairs.check()
        if resumed:
            remove_unfinished(folder)
        else:
            # Last of what may fail, so that no folder is left of a run that does not begin.
            folder = begin_run(options)
        say_what_is_trained_on(train_pairs, val_pairs, table, options, device)
    join_processes(device, world)
    # An accelerator has no deterministic form of some operators: there it would only cost time.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    training = Training(options, start, record, train_pairs, val_pairs, folder if main else None, device)
    stopping, state = False, resumed.state if resumed else None
    for stage, (begin, end) in plan.items():
        if not stopping and STAGES.index(stage) >= STAGES.index(record["stage"]):
            stopping = training.run_stage(stage, begin, end, state if stage == record["stage"] else None, stop)
    if main:
        training.folder.board.close()
        say_how_it_ended(record, plan, folder, stopping)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> int:
    print_anywhere()
    try:
        options = parse_arguments()
        # The loading processes inherit it: Ctrl-C leaves them at work until the step is saved.
        with stop_on_signal(second_breaks_in=False) as stop:
            train(options, stop)
    except (FileError, ValueError) as error:
        print(f"EDARFusion_train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
