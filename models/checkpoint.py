"""The one checkpoint format: safetensors with everything needed to build the model in its metadata.

Nothing is ever unpickled. A training state is the same file with further tensors, so every checkpoint of a run can be
used for testing.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.edarfusion import EDARFusion
from models.layers import to_device
from utils.files import FileError, lacking, write_bytes

FORMAT = 1
"""Raised when a file can no longer be read by an older version."""

_MODEL = "model."


class CheckpointError(FileError):
    """A checkpoint cannot be used."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        model: built and loaded, in evaluation mode.
        modality: one of `data.table.MODALITIES` or "all", what the model was trained for.
        training: how it was trained: options, steps, minutes, history.
        metrics: values on the validation pairs.
        state: tensors for going on with the training; empty for a model that is only to be used.
    """

    model: EDARFusion
    modality: str
    training: dict[str, Any]
    metrics: dict[str, Any]
    state: dict[str, Tensor]

    def inference(self, passes: int | None = None, average: bool | None = None) -> dict[str, Any]:
        """Return how to use the model: the arguments `passes` and `average` of `EDARFusion.forward`.

        Args:
            passes, average: what is wished for; None leaves it to the checkpoint. Old training runs say nothing: one
                pass, not averaged.
        """
        settings = {"passes": 1, "average": False} | self.training.get("inference", {})
        wishes = {"passes": passes, "average": average}
        settings |= {name: value for name, value in wishes.items() if value is not None}
        # Nothing is estimated that could be averaged.
        settings["average"] &= settings["passes"] > 0
        return settings

    @property
    def bound_ratio(self) -> float | None:
        """Multiple of the expected error of a place below which its error lies in 9 of 10 cases.

        None where the network expects no errors, or is not calibrated on patients never seen.
        """
        calibrated = "calibration_pairs" in self.training.get("expected_error", {})
        return self.model.expected_error.bound_ratio.item() if self.model.expected_error and calibrated else None


def save_checkpoint(
    path: str | os.PathLike,
    model: EDARFusion,
    *,
    modality: str,
    training: dict[str, Any],
    metrics: dict[str, Any],
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all: a file of that name stays as it was until the new one is complete.

    Args:
        path: file to write, by custom `NAME.safetensors`.
        model: whose weights and constructor arguments are kept.
        modality, training, metrics, state: see `Checkpoint`; dictionaries must be JSON.

    Raises:
        FileError: the file cannot be written.
    """
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()} | (state or {})
    fields = {"format": FORMAT, "arguments": model.arguments, "modality": modality}
    fields |= {"training": training, "metrics": metrics}
    metadata = {name: json.dumps(value) for name, value in fields.items()}
    write_bytes(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))


def load_checkpoint(
    path: str | os.PathLike, *, modality: str | None = None, device: str | torch.device = "cpu"
) -> Checkpoint:
    """Read a checkpoint and build its model.

    Args:
        path: file that `save_checkpoint` wrote.
        modality: what it is to be used for; None accepts any.
        device: where the model goes.

    Raises:
        CheckpointError: no such file, not a checkpoint (a pickle is refused unread), truncated, of a newer format, of
            another modality, or with weights that do not fit its arguments.
    """
    path = Path(path)
    if problem := lacking(path):
        raise CheckpointError.at(path, "a complete safetensors file" if path.is_file() else "a checkpoint", problem)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file may begin like a pickle, with any length of its header, but then comes JSON.
        if len(start) == 9 and start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
            # Loading a pickle runs whatever program it carries.
            raise CheckpointError.at(path, "a safetensors file", "a PyTorch file (pickle), which is not loaded")
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Copies: the file stays free to be replaced, which Windows denies while it is mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except OSError as error:
        raise CheckpointError.at(path, "a complete safetensors file", error.strerror or str(error)) from error
    except SafetensorError as error:
        damaged = "a damaged one, as of a copy or download that was broken off"
        state = damaged if start[8:] == b"{" else "a file of another kind"
        raise CheckpointError.at(path, "a complete safetensors file", state) from error
    fields = _fields(path, metadata)
    kind = fields["modality"]
    if modality and kind not in (modality, "all"):
        raise CheckpointError.at(path, f"a checkpoint for {modality}", f"one for {kind}")
    weights = {n.removeprefix(_MODEL): tensors.pop(n) for n in list(tensors) if n.startswith(_MODEL)}
    try:
        model = EDARFusion(**fields["arguments"])
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        expected = "weights that fit the model (were they made by another version?)"
        raise CheckpointError.at(path, expected, reason) from error
    model = to_device(model, device).eval()
    return Checkpoint(model, kind, fields["training"], fields["metrics"], tensors)


def _fields(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Parse and check the metadata."""
    types = {"format": int, "arguments": dict, "modality": str, "training": dict, "metrics": dict}
    fields = {}
    for name, kind in types.items():
        try:
            fields[name] = json.loads(metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError.at(path, "a checkpoint of EDARFusion", f"no readable {name!r} in it") from error
        if not isinstance(fields[name], kind):
            raise CheckpointError.at(path, f"{kind.__name__} as {name!r}", repr(fields[name])[:80])
        if name == "format" and fields[name] > FORMAT:
            raise CheckpointError.at(path, f"a checkpoint of format {FORMAT} or older", f"format {fields[name]}")
    return fields
