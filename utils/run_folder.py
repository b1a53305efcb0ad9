"""What a training run leaves on disk: checkpoints, and its log as a table, a picture and for TensorBoard."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.edarfusion import EDARFusion
from utils.checkpoint import save_checkpoint
from utils.files import FileError, write_bytes
from utils.learning_curve import learning_curve_figure
from utils.visualize import save_figure

REFUSALS = 3  # of a checkpoint, one after the other, that end a run


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder, which exists.
        network: whose weights are kept, the running mean of those in training.
        record: all that is noted of the run, saved with the weights; its `history` has a row an epoch and stage. Shared
            with what trains, which goes on writing it.
        modality: what the run is for.
        next_epoch: where TensorBoard forgets what a broken-off run showed of later ones.
    """

    def __init__(self, path: Path, network: EDARFusion, record: dict[str, Any], modality: str, next_epoch: int) -> None:
        self.path, self.network, self.record, self.modality = path, network, record, modality
        self.board = SummaryWriter(str(path / "tensorboard"), purge_step=next_epoch)
        self._refused = 0

    def save(self, name: str, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the checkpoint `name` with the latest validation's figures.

        Args:
            state: of `utils.training_state`, to go on from.

        Raises:
            FileError: it cannot be written; the earlier one stays.
        """
        metrics = next((row for row in reversed(self.record["history"]) if "score" in row), {})
        save_checkpoint(
            self.path / f"{name}.safetensors", self.network, modality=self.modality, training=self.record,
            metrics=metrics, state=state,
        )  # fmt: skip

    def save_last(self, state: Mapping[str, Tensor], *, needed: bool = False) -> None:
        """As `save`, but where the checkpoint cannot be written now the run may go on with the earlier one.

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
            tqdm.write(str(error))

    def keep_if_best(self, row: Mapping[str, float | str]) -> None:
        """Save the weights as `best` if the `score` of their row of the history is the least so far."""
        best = self.record["best"]
        if math.isnan(row["score"]):
            tqdm.write(f"step {row['step']}: the score is not a number, so this is not kept as best.safetensors")
        # A best that is not a number, of a run by an older version, must not stay.
        elif best is None or math.isnan(best) or row["score"] < best:
            self.record["best"] = row["score"]
            self.save("best")

    def add_scalars(self, group: str, values: Mapping[str, float], epoch: int) -> None:
        """Show values in TensorBoard."""
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, epoch)

    def add_picture(self, group: str, picture: Figure, epoch: int) -> None:
        """Show a pair in TensorBoard."""
        self.board.add_figure(f"{group}/pair", picture, epoch)

    def write_history(self) -> None:
        """Write the log as history.csv and, where its last row was validated, as learning_curve.png.

        It is in the checkpoint as well, so that a file which cannot be written now is no reason to end the run.
        """
        history = self.record["history"]
        table = pd.DataFrame(history)
        try:
            write_bytes(self.path / "history.csv", table.to_csv(index=False).encode())
            if any(name.startswith("epe_") for name in history[-1]):
                # A stage may end within an epoch and be validated once more there.
                by_epoch = table.groupby("epoch", as_index=False).last()
                save_figure(self.path / "learning_curve.png", learning_curve_figure(by_epoch))
        except FileError as error:
            tqdm.write(str(error))
