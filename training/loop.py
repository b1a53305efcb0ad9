"""A training run at work: its stages, steps and epochs."""

import argparse
import copy
import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import EndlessSampler, Pair, PairDataset, seeded
from models.edarfusion import EDARFusion
from training.distributed import agree
from training.run_folder import RunFolder, pack_state, unpack_state
from training.stages import begin_stage, learning_rate, running_mean
from training.validation import check, describe, picture
from utils.device import loading_processes
from utils.files import InputError
from utils.processes import local_world, rank, world
from utils.signals import leave_signals_to_parent


class Clock:
    """Seconds of training over all sessions of a run, without validation and saving."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.since = seconds, time.perf_counter()

    def read(self) -> float:
        """Seconds until now."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def skip(self) -> None:
        """Leave out the time since it was last read."""
        self.since = time.perf_counter()


class Training:
    """A run at work.

    Args:
        options: of the run.
        start: network to start from.
        teacher: network to learn from instead of the truth, in evaluation mode; None learns from the truth.
        record: what is noted of the run, as checkpoints keep it; goes on being written here.
        train_pairs, val_pairs: to train and to validate on.
        path: the run's folder; None in all processes but the first, which alone validates and writes.
        device: to compute on.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        start: EDARFusion,
        teacher: EDARFusion | None,
        record: dict[str, Any],
        train_pairs: PairDataset,
        val_pairs: PairDataset,
        path: Path | None,
        device: torch.device,
    ) -> None:
        self.options, self.record, self.val_pairs, self.device = options, record, val_pairs, device
        self.teacher = teacher
        self.rank, self.world = rank(), world()
        self.amp = torch.autocast(device.type, torch.bfloat16) if options.amp else nullcontext()
        # Two copies: one is trained, the other is the running mean of its weights, which is validated and kept.
        self.model = copy.deepcopy(start).to(device).train()
        self.averaged = AveragedModel(start.to(device), multi_avg_fn=running_mean(options.averaging)).eval()
        self.averaged.n_averaged.fill_(record["step"] - record["stage_step"])
        self.epoch_steps = math.ceil(len(train_pairs) / (options.batch_size * self.world))
        self.batches = self.endless_batches(train_pairs)
        kind, next_epoch = options.modality, record["step"] // self.epoch_steps + 1
        self.run_folder = RunFolder(path, self.averaged.module, record, kind, next_epoch) if path else None
        self.clock, self.saved = Clock(record["seconds"]), time.monotonic()
        self.module: nn.Module | None = None
        """Of the stage, with its loss; `step_loss` is it, made one with those of the other processes."""
        self.step_loss: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def endless_batches(self, pairs: PairDataset) -> Iterator[Pair]:
        """Batches from the step on at which the run is."""
        options = self.options
        sampler = EndlessSampler(
            len(pairs), options.batch_size, seed=options.seed, start=self.record["step"], rank=self.rank,
            world=self.world,
        )  # fmt: skip
        loader = DataLoader(
            pairs,
            options.batch_size,
            sampler=sampler,
            num_workers=loading_processes(self.device, local_world()) if options.workers is None else options.workers,
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
            begin, end: shares of the run at which it begins and ends; 1 ends the last stage.
            state: of the checkpoint to go on from; None at the stage's beginning.
            stop: breaks it off.

        Returns:
            Whether it was broken off.

        Raises:
            FileError: what must be saved cannot be.
            InputError: a gradient is not finite, or the state is of another model.
        """
        options, record = self.options, self.record
        if stage != record["stage"]:
            # The fusion learns on top of the averaged registration, the one that will be used.
            self.model.load_state_dict(self.averaged.module.state_dict())
            self.averaged.n_averaged.zero_()
            record |= {"stage": stage, "stage_step": record["step"], "best": None, "sums": {}}
        self.module, self.optimizer = begin_stage(stage, self.model, options, self.teacher)
        if state:
            unpack_state(state, self.model, self.optimizer)
            if self.run_folder and broke_off_validating(record, options.val_every):
                self.validate_into(record["history"][-1])
                self.log(record["history"][-1])
        self.step_loss = DistributedDataParallel(self.module) if self.world > 1 else self.module
        total_steps = self.epoch_steps * options.epochs if options.epochs else None
        bar = tqdm(desc=stage, unit="pair", disable=None if self.run_folder else True, dynamic_ncols=True)
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
            loss = self.step(rate)
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
        if self.run_folder:
            self.end_stage(stopping, last=end == 1)
        return stopping

    def step(self, rate: float) -> float:
        """One step on the next batch with the learning rate `rate`; returns the loss, the mean over all processes.

        Raises:
            InputError: a gradient is not finite.
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
        loss = self.step_loss(pair, self.amp)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        if not norm.isfinite():
            raise InputError(f"step {record['step']}: expected finite gradients, found {norm}; the last save stays")
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
        if self.run_folder and time.monotonic() - self.saved > 60 * self.options.save_minutes:
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
        if self.run_folder:
            self.run_folder.add_scalars("train", losses, epoch)
            if epoch % self.options.val_every == 0:
                # That may take longer than a signal's sender waits; a resumed run makes up for it.
                self.save_last()
                self.validate_into(row)
            self.log(row)
            self.saved = time.monotonic()
        if self.world > 1:
            dist.barrier()

    def end_stage(self, stopping: bool, *, last: bool) -> None:
        """In the first process: save; a stage that was not broken off is validated first, unless its last epoch was.

        Args:
            stopping: it was broken off.
            last: no other stage follows, so what cannot be saved now is lost.
        """
        record = self.record
        latest = record["history"][-1] if record["history"] else {}
        validated = latest.get("step") == record["step"] and "score" in latest
        if record["step"] > record["stage_step"] and not stopping and not validated:
            self.save_last()
            row = self.new_row(math.ceil(record["step"] / self.epoch_steps))
            record["history"].append(row)
            self.validate_into(row)
            tqdm.write(describe(row))
        self.save_last(needed=stopping or last)
        if record["history"]:
            self.run_folder.write_history()

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
        """In the first process: validate, and add the figures to a row of the history."""
        metrics = check(self.averaged.module, self.val_pairs, self.device, self.record["stage"])
        row |= metrics
        self.run_folder.keep_if_best(row)
        figure = picture(self.averaged.module, self.val_pairs, self.device, row["epoch"] % len(self.val_pairs))
        self.run_folder.add_picture("val", figure, row["epoch"])
        self.run_folder.add_scalars("val", metrics, row["epoch"])

    def log(self, row: dict[str, float | str]) -> None:
        """In the first process: show a row of the history, and save."""
        tqdm.write(describe(row))
        self.save_last()
        self.run_folder.write_history()

    def save_last(self, *, needed: bool = False) -> None:
        """In the first process: save what --resume goes on from; see `RunFolder.save_last`."""
        self.run_folder.save_last(pack_state(self.model, self.optimizer), needed=needed)


def broke_off_validating(record: dict, val_every: int) -> bool:
    """Whether a run was last saved at the end of an epoch that was still to be validated."""
    latest = record["history"][-1] if record["history"] else {"step": None}
    return latest["step"] == record["step"] and latest["epoch"] % val_every == 0 and "score" not in latest


