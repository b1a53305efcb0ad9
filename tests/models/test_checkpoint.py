"""models/checkpoint.py: what is saved comes back; nothing else is loaded, and nothing is ever unpickled."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from models.checkpoint import FORMAT, Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from utils.files import FileError

TRAINING = {"options": {"steps": 10, "seed": 0}, "history": [{"step": 5, "loss": 1.5}], "note": "Größe"}
METRICS = {"epe_CT": 3.25, "better_CT": 0.9}


@pytest.fixture(scope="module")
def model() -> EDARFusion:
    torch.manual_seed(0)
    return EDARFusion("tiny", use_gate=False).eval()


@pytest.fixture
def file(model: EDARFusion, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    state = {"raw.x": torch.arange(6.0).view(2, 3), "step": torch.tensor(7)}
    save_checkpoint(path, model, modality="CT", training=TRAINING, metrics=METRICS, state=state)
    return path


def rewrite(path: Path, drop: str = "", tensors: dict | None = None, **fields: str) -> None:
    """Change metadata, as raw text, or tensors of a checkpoint."""
    with safe_open(path, framework="pt") as opened:
        metadata = {**opened.metadata(), **fields}
        kept = {name: opened.get_tensor(name) for name in opened.keys()}
    metadata.pop(drop, None)
    path.write_bytes(save(kept if tensors is None else tensors, metadata))


def message_of(path: Path, *words: str, **options) -> str:
    """The message of the error that loading gives: one line with the file's name and the words."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: expected ") and ", found " in message
    for word in words:
        assert word in message
    return message


def test_round_trip_gives_equal_outputs(model, file):
    loaded = load_checkpoint(file)
    assert loaded.model.arguments == model.arguments and loaded.model.arguments["use_gate"] is False
    assert not loaded.model.training
    fixed, moving = torch.rand(2, 1, 1, 70, 90, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output, again = model(fixed, moving), loaded.model(fixed, moving)
        assert output.expected_error is again.expected_error is None
        for ours, theirs in zip(output[:-1], again[:-1], strict=True):
            assert torch.equal(ours, theirs)


def test_round_trip_keeps_the_record(file):
    loaded = load_checkpoint(file)
    assert loaded.modality == "CT" and loaded.training == TRAINING and loaded.metrics == METRICS
    assert loaded.state.keys() == {"raw.x", "step"}
    assert torch.equal(loaded.state["raw.x"], torch.arange(6.0).view(2, 3)) and loaded.state["step"].item() == 7


def test_saving_again_keeps_everything(file, tmp_path):
    first = load_checkpoint(file)
    again = tmp_path / "deeper" / "again.safetensors"
    save_checkpoint(again, first.model, modality="CT", training=TRAINING, metrics=METRICS, state=first.state)
    with safe_open(file, framework="pt") as one, safe_open(again, framework="pt") as two:
        assert one.metadata() == two.metadata() and set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(name), two.get_tensor(name)) for name in one.keys())


@pytest.mark.parametrize(("kind", "wanted"), [("CT", "CT"), ("CT", None), ("all", "PET"), ("all", None)])
def test_fitting_modality_is_accepted(model, tmp_path, kind, wanted):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model, modality=kind, training={}, metrics={})
    loaded = load_checkpoint(path, modality=wanted)
    assert loaded.modality == kind and loaded.state == {}


def test_other_modality_is_refused(file):
    message_of(file, "a checkpoint for PET, found one for CT", modality="PET")


def test_missing_file_and_folder(tmp_path):
    message_of(tmp_path / "none.safetensors", "nothing there")
    message_of(tmp_path, "a folder")


class Program:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("kind", ["torch", "legacy torch", "pickle 0", "pickle 2", "pickle 5"])
def test_pickle_is_refused_unread(tmp_path, kind):
    path, marker = tmp_path / "model.pth", tmp_path / "created"
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(Program(marker), protocol=int(kind[-1])))
    else:
        torch.save({"model": Program(marker)}, path, _use_new_zipfile_serialization=kind == "torch")
    message_of(path, "a" if kind == "pickle 0" else "pickle", "safetensors file")
    assert not marker.exists()
    # The pickle would indeed have done it.
    if kind.startswith("pickle"):
        pickle.loads(path.read_bytes()).close()
        assert marker.exists()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 3000, 0.5, 0.99, -1])
def test_truncated_file(file, length):
    data = file.read_bytes()
    file.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    state = "a damaged one" if length > 8 or length < 0 or isinstance(length, float) else ""
    message_of(file, "a complete safetensors file", state)


def test_lengthened_file_and_nonsense(file, tmp_path):
    file.write_bytes(file.read_bytes() + b"more")
    message_of(file, "a complete safetensors file", "a damaged one")
    other = tmp_path / "text.safetensors"
    for data in (b"just some text that is none", bytes(5000), b"\xff" * 100, b"\x08" + bytes(7) + b"{}      "):
        other.write_bytes(data)
        message_of(other)


def test_newer_format_is_refused(file):
    rewrite(file, format=str(FORMAT + 1))
    message_of(file, f"format {FORMAT} or older", f"format {FORMAT + 1}")


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"author": "someone"}):
        path.write_bytes(save({"weight": torch.zeros(3)}, metadata))
        message_of(path, "a checkpoint of EDARFusion")


@pytest.mark.parametrize("name", ["format", "arguments", "modality", "training", "metrics"])
def test_each_field_is_needed_and_checked(file, name):
    original = file.read_bytes()
    rewrite(file, drop=name)
    message_of(file, f"no readable '{name}'")
    for text in ("", "{broken", "[1, 2]", "null", "1.5", "[" * 100_000):
        file.write_bytes(original)
        rewrite(file, **{name: text})
        message_of(file, name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"preset": "huge"},
        {"preset": ["tiny"]},
        {"preset": None},
        {"preset": "tiny", "colour": True},
        {"preset": "base"},
        {"preset": "tiny", "aggregation": False},
        {"": 1},
    ],
)
def test_arguments_that_do_not_fit_are_refused(file, arguments):
    rewrite(file, arguments=json.dumps(arguments))
    message_of(file, "weights that fit the model")


def test_weights_that_do_not_fit_are_refused(model, file):
    weights = {"model." + name: value.contiguous() for name, value in model.state_dict().items()}
    name = "model.eda_flowreg.scales.0.head.weight"
    lacking = {n: value for n, value in weights.items() if n != name}
    for tensors in (lacking, weights | {"model.extra": torch.zeros(1)}, weights | {name: torch.zeros(3)}, {}):
        rewrite(file, tensors=tensors)
        assert len(message_of(file, "weights that fit the model")) < 1000


def test_wishes_go_before_the_checkpoint_and_that_before_the_defaults(model):
    plain = Checkpoint(model, "all", {}, {}, {})
    tuned = plain._replace(training={"inference": {"passes": 2, "average": True}})
    assert plain.inference() == {"passes": 1, "average": False}
    assert tuned.inference() == {"passes": 2, "average": True}
    assert tuned.inference(passes=1) == {"passes": 1, "average": True}
    assert tuned.inference(average=False) == {"passes": 2, "average": False}
    # Without a pass nothing is averaged, whatever is wished for.
    assert tuned.inference(passes=0) == plain.inference(0, True) == {"passes": 0, "average": False}


def test_a_failing_write_leaves_the_old_file(model, file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FileError, match="No space left on device"):
            save_checkpoint(file, model, modality="PET", training={}, metrics={})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match="No space left on device"):
            save_checkpoint(file, model, modality="PET", training={}, metrics={})
    with pytest.raises(TypeError):
        save_checkpoint(file, model, modality="PET", training={"not JSON": object()}, metrics={})
    assert file.read_bytes() == before and load_checkpoint(file).modality == "CT"
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_not_a_number_in_metrics_survives(model, tmp_path):
    # A diverged run must still be readable.
    path = tmp_path / "nan.safetensors"
    save_checkpoint(path, model, modality="all", training={}, metrics={"epe": float("nan")})
    assert str(load_checkpoint(path).metrics["epe"]) == "nan"


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path):
    # A safetensors file begins with that length, whose first byte is 0x80, the first of a pickle, for 1 in 32.
    model = EDARFusion("tiny")
    for length in range(0, 256, 8):
        path = tmp_path / f"{length}.safetensors"
        save_checkpoint(path, model, modality="CT", training={"note": "x" * length}, metrics={})
        assert load_checkpoint(path).training == {"note": "x" * length}
