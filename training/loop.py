"""A training run at work: its stages, steps and epochs."""

import copy
import itertools
import math
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from data.dataset import EndlessSampler, Pair, seeded
from data.training_pairs import TrainingPairs
from models.edarfusion import EDARFusion
from models.layers import to_device
from training.distributed import agree
from training.options import STAGES
from training.progress import Progress, log
from training.record import Record
from training.run_folder import RunFolder, pack_state, unpack_state
from training.stages import StageTrainer, learning_rate
from training.validation import check, picture
from training.verdict import describe_losses, describe_validation, early_warning
from utils.device import loading_processes
from utils.files import InputError
from utils.processes import begin_loading, check_shared_memory, local_world, rank, world

AHEAD = 20
"""Steps that an accelerator is given before anyone waits for what they bring; on a CPU there is nothing to wait for."""

PAUSE = 60.0
"""Seconds from one validation to the next at least, beside an accelerator, where an epoch may last a second."""


def pace(device: torch.device) -> tuple[float, int]:
    """Return the seconds between two validations at least, and the steps from one reading of the losses to the next."""
    return (0.0, 1) if device.type == "cpu" else (PAUSE, AHEAD)


def compiles_by_default(device: torch.device) -> bool:
    """Return whether a step is compiled where the user does not say: on CUDA, if its compiler is there."""
    return device.type == "cuda" and find_spec("triton") is not None


class Clock:
    """Seconds of training over all sessions of a run, without validation and saving."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.since = seconds, time.perf_counter()

    def read(self) -> float:
        """Return the seconds until now."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def skip(self) -> None:
        """Leave out the time since it was last read."""
        self.since = time.perf_counter()


class Training:
    """A run at work.

    Args:
        record: of the run, which goes on being written here.
        start: network to start from.
        teacher: network to learn from instead of the truth, in evaluation mode; None learns from the truth.
        pairs: to train and to validate on.
        path: the run's folder; None in all processes but the first, which alone validates and writes.
        device: to compute on.
    """

    def __init__(
        self,
        record: Record,
        start: EDARFusion,
        teacher: EDARFusion | None,
        pairs: TrainingPairs,
        path: Path | None,
        device: torch.device,
    ) -> None:
        options = record.options
        self.options, self.record, self.teacher, self.device = options, record, teacher, device
        self.train_pairs, self.val_pairs = pairs
        self.world = world()
        self.compiled = compiles_by_default(device) if options.compile is None else options.compile
        # Two copies: one is trained, the other is the running mean of its weights, which is validated and kept.
        self.model = to_device(copy.deepcopy(start), device).train()
        self.averaged = to_device(start, device).eval()
        self.epoch_steps = math.ceil(len(pairs.train) / (options.batch_size * self.world))
        self.batches = self.endless_batches()
        next_epoch = record.step // self.epoch_steps + 1
        self.run_folder = RunFolder(path, self.averaged, record, next_epoch) if path else None
        self.clock, self.saved = Clock(record.seconds), time.monotonic()
        self.pause, self.ahead = pace(device)
        self.validated = self.pictured = -math.inf
        self.unread: list[Tensor] = []
        """What `StageTrainer.step` has returned since it was last read."""
        self.meeting, self.agreed = record.step, 0.0
        """At which step the processes agree next, and on which share of the run they did last."""
        self.loss = self.rate = math.nan
        """Latest total loss that was read, and latest learning rate."""
        self.stage_share, self.warned = 0.0, False
        self.trainer: StageTrainer | None = None

    def endless_batches(self) -> Iterator[Pair]:
        """Make batches for the run's stage, from the step on at which it is."""
        options, pairs = self.options, self.train_pairs
        pairs.two_deformations = options.own_offset > 0 and self.record.stage == "registration"
        sampler = EndlessSampler(
            len(pairs), options.batch_size, seed=options.seed, start=self.record.step, rank=rank(), world=self.world
        )
        workers = options.workers
        if workers is None:
            # Simulated heads are painted on the CPU. All else is made where the network computes.
            workers = loading_processes(self.device, local_world()) if pairs.simulated else 0
        if workers:
            check_shared_memory("--workers 0")
        else:
            pairs.make_on(self.device)
        loader = DataLoader(
            pairs,
            batch_size=None,
            sampler=BatchSampler(sampler, options.batch_size, drop_last=False),
            num_workers=workers,
            pin_memory=self.device.type == "cuda" and workers > 0,
            worker_init_fn=begin_loading,
        )
        batches = iter(loader)
        # The processes that make the pairs take seconds to start, which are no training time.
        return itertools.chain([next(batches)], batches)

    def run(self, state: dict[str, Tensor] | None, stop: threading.Event) -> bool:
        """Train all stages that are left.

        Args:
            state: of the checkpoint to go on from; None at the beginning.
            stop: breaks the run off.

        Returns:
            Whether it was broken off.

        Raises:
            FileError: what must be saved cannot be.
            InputError: a gradient is not finite, or the state is of another model.
        """
        for stage, (begin, end) in self.options.plan.items():
            if STAGES.index(stage) < STAGES.index(self.record.stage):
                continue
            self.begin_stage(stage, begin, state if stage == self.record.stage else None)
            if self.run_stage(end, stop):
                return True
        return False

    def begin_stage(self, stage: str, begin: float, state: dict[str, Tensor] | None) -> None:
        """Make ready to train a stage, which begins at the share `begin` of the run or goes on from a state."""
        options, record = self.options, self.record
        if stage != record.stage:
            # The fusion learns on top of the averaged registration, the one that will be used.
            self.model.load_state_dict(self.averaged.state_dict())
            record.stage, record.stage_began, record.stage_step = stage, begin * options.length, record.step
            record.best, record.sums = None, {}
            if self.train_pairs.two_deformations:
                self.batches = self.endless_batches()
        self.trainer = StageTrainer(
            stage, self.model, self.averaged, options, self.teacher, self.world, self.compiled
        )
        if state:
            unpack_state(state, self.model, self.trainer.optimizer)
            if self.run_folder and broke_off_validating(record, options.val_every):
                self.validate_into(record.history[-1])
                self.save_with_history()

    def run_stage(self, end: float, stop: threading.Event) -> bool:
        """Train the stage that has begun up to the share `end` of the run; returns whether it was broken off."""
        options, record = self.options, self.record
        begin = record.stage_began / options.length
        progress = Progress(record.stage, shown=self.run_folder is not None)
        self.clock.skip()
        while True:
            share, stopping = self.share_done(end, stop)
            if share >= end or stopping:
                break
            self.stage_share = (share - begin) / (end - begin)
            self.rate = learning_rate(options.lr, record.step - record.stage_step, self.stage_share)
            self.step()
            progress.update(options.batch_size * self.world, share, self.loss)
            if record.step % self.epoch_steps:
                self.save_now_and_then()
            else:
                self.end_epoch()
                self.clock.skip()
        progress.close()
        self.read_losses()
        if self.run_folder:
            self.end_stage(stopping, last=end == 1)
        return stopping

    def share_done(self, end: float, stop: threading.Event) -> tuple[float, bool]:
        """Return the share of the run that is done, and whether to break off before `end`. All processes agree."""
        options, record = self.options, self.record
        record.seconds = self.clock.read()
        if options.epochs:
            share = record.step / (self.epoch_steps * options.epochs)
        else:
            share = record.seconds / 60 / options.minutes
        if self.world == 1:
            return share, share < end and stop.is_set()
        # Processes differ in their clocks and in who got the signal, but must break off at one step.
        stopping = False
        if record.step >= self.meeting:
            self.agreed, stopping = agree(share, stop.is_set(), self.device, self.world)
            self.meeting = record.step + self.ahead
        return share if options.epochs else self.agreed, stopping

    def step(self) -> None:
        """Make one step on the next batch.

        Raises:
            InputError: a gradient of this step, or of one since the losses were last read, is not finite.
        """
        options, record = self.options, self.record
        if options.dropout:
            # What a step leaves out depends on nothing before it, so that a resumed run leaves out the same.
            torch.manual_seed(seeded(options.seed, record.step * self.world + rank()).initial_seed())
        # Evenly spread, so that all processes and a resumed run agree.
        second_pass = record.step * options.second_pass % 1 + options.second_pass >= 1
        second_pass = second_pass and record.stage == "registration"
        pair = next(self.batches).to(self.device)
        self.unread.append(self.trainer.step(pair, self.rate, record.step - record.stage_step, second_pass))
        record.step += 1
        if len(self.unread) >= self.ahead:
            self.read_losses()

    def read_losses(self) -> None:
        """Wait for the steps whose losses have not been read, and add these to the epoch's sums.

        Raises:
            InputError: a gradient is not finite.
        """
        if not self.unread:
            return
        record, first = self.record, self.record.step - len(self.unread)
        rows = torch.stack(self.unread).div(self.world).tolist()
        self.unread = []
        for step, (*losses, norm) in enumerate(rows, start=first):
            if not math.isfinite(norm):
                raise InputError(f"step {step}: expected finite gradients, found {norm}; the last save stays")
            for name, loss in zip(self.trainer.columns, losses, strict=True):
                record.sums[name] = record.sums.get(name, 0.0) + loss
            self.loss = losses[0]

    def overdue(self) -> bool:
        """Return whether the last save was long ago."""
        return time.monotonic() - self.saved > 60 * self.options.save_minutes

    def save_now_and_then(self) -> None:
        """Save within an epoch if the last save was long ago."""
        if self.run_folder and self.overdue():
            self.record.seconds = self.clock.read()
            self.save_last()
            self.clock.skip()

    def end_epoch(self) -> None:
        """Add the epoch's row to the history; the first process also validates and saves, if it is time."""
        record = self.record
        self.read_losses()
        record.seconds = self.clock.read()
        row = self.add_row()
        if self.run_folder:
            due = row["epoch"] % self.options.val_every == 0 and time.monotonic() - self.validated >= self.pause
            if due:
                # That may take longer than a signal's sender waits; a resumed run makes up for it.
                self.save_last()
                self.validate_into(row)
                self.warn_early(row)
            if due or not self.pause or self.overdue():
                self.save_with_history()
        if self.world > 1:
            dist.barrier()

    def add_row(self) -> dict[str, float | str]:
        """Add a row to the history, with the mean losses of the steps since the last one."""
        record = self.record
        before = max(record.stage_step, record.history[-1]["step"] if record.history else 0)
        losses = {name: value / (record.step - before) for name, value in record.sums.items()}
        row = {
            "epoch": math.ceil(record.step / self.epoch_steps),
            "stage": record.stage,
            "step": record.step,
            "minutes": record.seconds / 60,
            "lr": self.rate,
            **losses,
        }
        record.sums = {}
        record.history.append(row)
        if self.run_folder:
            self.run_folder.add_scalars("train", {"lr": self.rate} | losses, row["epoch"])
            log.info(describe_losses(row))
        return row

    def end_stage(self, stopping: bool, *, last: bool) -> None:
        """Save in the first process. A stage that was not broken off is validated first, unless it just was.

        Args:
            stopping: it was broken off.
            last: no other stage follows, so what cannot be saved now is lost.
        """
        record = self.record
        if record.step > record.stage_step and not stopping:
            row = record.history[-1] if record.history else {"step": None}
            if row["step"] != record.step:
                row = self.add_row()
            if "score" not in row:
                self.save_last()
                self.validate_into(row)
        record.finished = last and not stopping
        self.save_last(needed=stopping or last)
        if record.history:
            self.run_folder.write_history(with_curve=True)

    def validate_into(self, row: dict[str, float | str]) -> None:
        """Validate in the first process, and add the figures to a row of the history."""
        metrics = check(self.averaged, self.val_pairs, self.device, self.record.stage)
        row |= metrics
        log.info(describe_validation(row))
        self.run_folder.keep_if_best(row)
        self.run_folder.add_scalars("val", metrics, row["epoch"])
        self.validated = time.monotonic()
        # Drawing takes seconds, in which an accelerator would make hundreds of steps.
        if self.validated - self.pictured >= 10 * self.pause:
            figure = picture(self.averaged, self.val_pairs, self.device, row["epoch"] % len(self.val_pairs))
            self.run_folder.add_picture("val", figure, row["epoch"])
            self.pictured = self.validated

    def warn_early(self, row: dict[str, float | str]) -> None:
        """Say once where the registration does not learn, by a row with a validation."""
        if self.record.stage == "registration" and not self.warned:
            if warning := early_warning(row, self.stage_share):
                log.warning(warning)
                self.warned = True

    def save_with_history(self) -> None:
        """Save the state for --resume and the log in the first process."""
        self.save_last()
        self.run_folder.write_history(with_curve=self.pictured == self.validated)

    def save_last(self, *, needed: bool = False) -> None:
        """Save the state for --resume in the first process; see `RunFolder.save_last`."""
        self.read_losses()
        self.run_folder.save_last(pack_state(self.model, self.trainer.optimizer), needed=needed)
        self.saved = time.monotonic()


def broke_off_validating(record: Record, val_every: int) -> bool:
    """Return whether a run was last saved at the end of an epoch before its validation."""
    latest = record.history[-1] if record.history else {"step": None}
    return latest["step"] == record.step and latest["epoch"] % val_every == 0 and "score" not in latest
