"""The folder of a training run: its options, checkpoints, and its log as a table, a picture and for TensorBoard."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from evaluation.figures import save_figure
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from training.learning_curve import learning_curve_figure
from training.options import LENGTHS, Options, Resumption
from training.progress import log
from training.record import Record
from utils.files import FileError, InputError, write_bytes
from utils.processes import world
from utils.tables import write_table

_RAW, _OPTIMIZER = "raw.", "optimizer."

REFUSALS = 3
"""Failures to write a checkpoint, one after the other, that end a run."""

LOCK_SECONDS = 10.0
"""How long a run waits for the processes of a killed one, which need some seconds to notice."""


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder, which exists.
        network: whose weights are kept, the running mean of those in training.
        record: of the run, saved with the weights. What trains goes on writing it.
        next_epoch: where TensorBoard forgets what a broken-off run showed of later ones.
    """

    def __init__(self, path: Path, network: EDARFusion, record: Record, next_epoch: int) -> None:
        self.path, self.network, self.record = path, network, record
        self.board = SummaryWriter(str(path / "tensorboard"), purge_step=next_epoch)
        self._refused, self._board_failed = 0, False

    def save(self, name: str, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the checkpoint `name` with the latest validation's figures.

        Args:
            state: of `pack_state`, to go on from.

        Raises:
            FileError: it cannot be written; the earlier one stays.
        """
        record = self.record
        metrics = next((row for row in reversed(record.history) if "score" in row), {})
        save_checkpoint(
            self.path / f"{name}.safetensors", self.network, modality=record.options.modality,
            training=record.to_json(), metrics=metrics, state=state,
        )  # fmt: skip

    def save_last(self, state: Mapping[str, Tensor], *, needed: bool = False) -> None:
        """Save as `save` does, but let the run go on with the earlier checkpoint if this one cannot be written.

        Raises:
            FileError: there is no earlier one, it is `needed`, or this is the `REFUSALS`th time in a row.
        """
        try:
            self.save("last", state)
            self._refused = 0
        except FileError as error:
            self._refused += 1
            if needed or self._refused == REFUSALS or not (self.path / "last.safetensors").exists():
                raise
            log.warning(str(error))

    def keep_if_best(self, row: Mapping[str, float | str]) -> None:
        """Save the weights as `best` if the `score` of their row of the history is the least so far.

        Raises:
            FileError: they cannot be written.
        """
        best = self.record.best
        if math.isnan(row["score"]):
            log.warning(f"step {row['step']}: the score is not a number, so this is not kept as best.safetensors")
        # A best that is not a number, of a run by an older version, must not stay.
        elif best is None or math.isnan(best) or row["score"] < best:
            self.record.best = row["score"]
            self.save("best")

    def add_scalars(self, group: str, values: Mapping[str, float], epoch: int) -> None:
        """Show values in TensorBoard."""
        for name, value in values.items():
            self._show(lambda name=name, value=value: self.board.add_scalar(f"{group}/{name}", value, epoch))

    def add_picture(self, group: str, picture: Figure, epoch: int) -> None:
        """Show a pair in TensorBoard."""
        self._show(lambda: self.board.add_figure(f"{group}/pair", picture, epoch))

    def _show(self, add: Callable[[], None]) -> None:
        """Add something to TensorBoard, whose writer fails for good once its file cannot be written."""
        if self._board_failed:
            return
        try:
            add()
        except OSError as error:
            self._board_failed = True
            state = f"{error.strerror or error}; TensorBoard shows no more of this run"
            log.warning(f"{self.path / 'tensorboard'}: expected a place to write to, found {state}")

    def write_history(self, with_curve: bool) -> None:
        """Write the log as history.csv and with it, if its last row was validated, learning_curve.png.

        It is in the checkpoint as well, so that a file which cannot be written now is no reason to end the run.
        """
        history = self.record.history
        table = pd.DataFrame(history)
        try:
            write_table(self.path / "history.csv", table)
            if with_curve and any(name.startswith("epe_") for name in history[-1]):
                # A stage may end within an epoch and be validated once more there.
                by_epoch = table.groupby("epoch", as_index=False).last()
                save_figure(self.path / "learning_curve.png", learning_curve_figure(by_epoch))
        except FileError as error:
            log.warning(str(error))

    def close(self) -> None:
        """Write what TensorBoard has not been given yet."""
        self._show(self.board.close)


def new_run_folder(modality: str) -> Path:
    """Make the next free runs/MODALITY-NNN at once, so that no other run takes it.

    Raises:
        FileError: there are 999 of them, or none can be made.
    """
    for number in range(1, 1000):
        folder = Path("runs", f"{modality}-{number:03d}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise FileError.at(folder, "a place for the run's folder", error.strerror or str(error)) from error
    raise FileError.at("runs", "a free run folder", "999 runs")


def lock_folder(folder: Path) -> FileLock:
    """Make a folder, if need be, and keep other processes from training in it until the lock is released.

    Raises:
        FileError: another process trains there, or the folder cannot be written to.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise FileError.at(folder, "a folder in which no other run is at work", "one (--output DIR)") from error
    except OSError as error:
        raise FileError.at(folder, "a place to write to", error.strerror or str(error)) from error
    return lock


@contextmanager
def new_folder(options: Options) -> Iterator[Path]:
    """Make the folder of a new run and lock it; remove it at the end if nothing came into it.

    Raises:
        FileError: there is a run in it already, another process trains there, or it cannot be written to.
    """
    existed = bool(options.output) and Path(options.output).exists()
    folder = Path(options.output) if options.output else new_run_folder(options.modality)
    try:
        with lock_folder(folder):
            if (folder / "last.safetensors").exists():
                raise FileError.at(folder, "a folder without a run in it", "one; --resume goes on with it")
            yield folder
    finally:
        if not existed:
            remove_if_unused(folder)
            if not options.output:
                with suppress(OSError):  # other runs are in it
                    folder.parent.rmdir()


def remove_if_unused(folder: Path) -> None:
    """Remove a folder that holds nothing but the file of its lock."""
    with suppress(OSError):  # the folder is gone already, or another run has begun in it
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def begin_run(folder: Path, options: Options) -> None:
    """Write the options of a new run into its folder.

    Raises:
        FileError: it cannot be written to.
    """
    # Also shows before the first step whether the folder can be written to.
    write_bytes(folder / "options.json", json.dumps(asdict(options), indent=2).encode())


def open_run(resumption: Resumption) -> tuple[Checkpoint, Record]:
    """Read the last checkpoint of a run to resume.

    Returns:
        The checkpoint, and its record with the changed options.

    Raises:
        FileError: there is none that can be gone on with, it began with another number of processes, or its length is
            to change to one that is no longer than it was.
    """
    path = resumption.folder / "last.safetensors"
    checkpoint = load_checkpoint(path)
    if not checkpoint.state:
        expected = "a run's last.safetensors, with its training state"
        raise CheckpointError.at(path, expected, "published weights or the best ones")
    record = Record.from_json(checkpoint.training)
    if (record.processes or world()) != world():
        # The number of steps, and which pairs a step sees, follow from it.
        expected = f"{record.processes} processes (torchrun --nproc_per_node), as it began with"
        raise CheckpointError.at(resumption.folder, expected, str(world()))
    for name in LENGTHS:
        length, longer = getattr(record.options, name), resumption.changes.get(name)
        if longer is not None and (length is None or longer < length):
            expected = f"--{name} of at least the run's {length:g}" if length else f"no --{name}, as the run has none"
            raise CheckpointError.at(resumption.folder, expected, f"{longer:g}")
        if longer is not None and longer > length:
            record.finished = False
    record.options = replace(record.options, **resumption.changes)
    return checkpoint, record


def pack_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect the weights as the optimizer left them (those of the checkpoint are averaged) and its moments."""
    state = {_RAW + name: value for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        state |= {f"{_OPTIMIZER}{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    return state


def unpack_state(state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `pack_state` took.

    Raises:
        InputError: the state belongs to another model.
    """
    raw = {name.removeprefix(_RAW): value for name, value in state.items() if name.startswith(_RAW)}
    try:
        model.load_state_dict(raw)
    except RuntimeError as error:
        raise InputError(f"training state: {' '.join(str(error).split())[:300]}") from error
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split(".")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
