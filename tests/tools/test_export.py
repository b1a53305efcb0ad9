"""tools/export.py: the ONNX file gives what the network gives; bad arguments give one line."""

import copy
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.edarfusion import AtSettings, EDARFusion
from tools import export
from tools.export import TOLERANCE, Exported, accurate_means, largest_differences, main, run_onnx, sample_pair, to_onnx
from utils.arguments import DEFAULT_CHECKPOINT
from utils.geometry.warp import warp

for package in export.PACKAGES:
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
SIZE = (200, 220)
"""No multiple of any stride, so that padding is part of the graph."""


@pytest.fixture(scope="module")
def model() -> EDARFusion:
    return load_checkpoint(DEFAULT_CHECKPOINT).model


@pytest.fixture(scope="module")
def graph(model: EDARFusion) -> AtSettings:
    """As the test command uses the weights."""
    return AtSettings(model, 2, True, Exported._fields)


@pytest.fixture(scope="module")
def data(graph: AtSettings) -> bytes:
    return to_onnx(graph, SIZE, {"modality": "CT"})


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Images that the export has not seen."""
    return sample_pair(SIZE)


@pytest.mark.parametrize("threads", [1, 2])
def test_onnxruntime_gives_what_the_network_gives(threads: int, graph: AtSettings, data: bytes, pair: tuple) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        differences = largest_differences(data, graph, *pair)
    finally:
        torch.set_num_threads(before)
    assert all(differences[name] <= limit / 2 for name, limit in TOLERANCE.items()), differences


def test_the_fast_weights_can_be_exported_as_well(pair: tuple) -> None:
    model = load_checkpoint(ROOT / "checkpoints" / "edarfusion_fast.safetensors").model
    fast = AtSettings(model, 1, False, Exported._fields)
    differences = largest_differences(to_onnx(fast, SIZE), fast, *pair)
    assert all(differences[name] <= limit for name, limit in TOLERANCE.items()), differences


def test_outputs_follow_the_convention(data: bytes, pair: tuple) -> None:
    actual = run_onnx(data, *pair)
    assert actual.fused.shape == actual.aligned.shape == (1, 1, *SIZE) and actual.flow.shape == (1, 2, *SIZE)
    assert actual.flow.abs().max() > 0.5
    # Inside the image, where padding has no part in it.
    torch.testing.assert_close(
        warp(pair[1], actual.flow)[..., 16:-16, 16:-16], actual.aligned[..., 16:-16, 16:-16], atol=1e-4, rtol=0
    )


def test_differences_are_told_by_output(graph: AtSettings, pair: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode(), accurate_means(graph):
        output = Exported(*graph(*pair))
    shifted = Exported(output.fused, output.aligned - 0.25, output.flow + 2)
    monkeypatch.setattr(export, "run_onnx", lambda *_: shifted)
    differences = largest_differences(b"", graph, *pair)
    assert differences == {"fused": 0, "aligned": pytest.approx(0.25), "flow": pytest.approx(2)}


def test_command(
    tmp_path: Path, model: EDARFusion, data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def exported(graph: AtSettings, size: tuple[int, int], metadata: dict[str, str]) -> bytes:
        calls.append((size, metadata, graph.passes, graph.average))
        return data

    # Exporting takes seconds; what it writes is tested above.
    monkeypatch.setattr(export, "to_onnx", exported)
    training = {"step": 1, "inference": {"passes": 2, "average": True}}
    save_checkpoint(tmp_path / "c.safetensors", model, modality="CT", training=training, metrics={})
    output = tmp_path / "folder/model.onnx"
    arguments = ["--checkpoint", str(tmp_path / "c.safetensors"), "--output", str(output), "--size", "200", "220"]
    assert main(arguments) == 0
    assert output.read_bytes() == data
    assert calls[0][0] == SIZE and calls[0][1]["modality"] == "CT" and '"small"' in calls[0][1]["arguments"]
    assert calls[0][2:] == (2, True) and calls[0][1]["inference"] == '{"passes": 2, "average": true}'
    assert f"{output}: " in (text := capsys.readouterr().out) and "2 passes, averaged" in text

    # Another network's file differs from this one's network: nothing is written.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fusion.head.bias += 0.1
    save_checkpoint(tmp_path / "c.safetensors", other, modality="CT", training=training, metrics={})
    output.write_bytes(b"earlier")
    assert main(arguments) == 2
    assert "within" in capsys.readouterr().err
    assert output.read_bytes() == b"earlier"

    # Nor is the checkpoint written over.
    before = (tmp_path / "c.safetensors").read_bytes()
    assert main([*arguments[:3], arguments[1], *arguments[4:]]) == 2
    assert "expected an input that no result is written over" in capsys.readouterr().err
    assert (tmp_path / "c.safetensors").read_bytes() == before


def test_metadata_is_in_the_file(data: bytes) -> None:
    import onnx

    loaded = onnx.load_from_string(data)
    onnx.checker.check_model(loaded)
    assert {entry.key: entry.value for entry in loaded.metadata_props}["modality"] == "CT"
    assert [value.name for value in loaded.graph.input] == ["fixed", "moving"]
    assert [value.name for value in loaded.graph.output] == ["fused", "aligned", "flow"]


def test_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m tools.export: ") and "nothing there" in error and error.count("\n") == 1


def test_missing_package(
    tmp_path: Path, model: EDARFusion, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(*_) -> bytes:
        raise ImportError("No module named 'onnxscript'")

    monkeypatch.setattr(export, "to_onnx", exported)
    save_checkpoint(tmp_path / "c.safetensors", model, modality="CT", training={"step": 1}, metrics={})
    assert main(["--checkpoint", str(tmp_path / "c.safetensors"), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "onnxscript" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["63", "-100", "x"])
def test_bad_size(side: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--checkpoint", "c", "--output", "m.onnx", "--size", "100", side])
    assert caught.value.code == 2
    assert "at least 64" in capsys.readouterr().err
