"""tools/benchmark.py: medians, memory and multiply-adds of known operations, stages of the network, the command."""

import json
import sys
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tools import benchmark
from tools.benchmark import main, multiply_adds, network_stages, peak_memory, time_stages, training_step

CPU = torch.device("cpu")


@pytest.fixture
def model() -> EDARFusion:
    torch.manual_seed(0)
    return EDARFusion("tiny").eval()


class Clock:
    """A clock that stages move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def taking(self, seconds: Iterator[float], log: list[str], name: str):
        def run() -> None:
            log.append(name)
            self.now += next(seconds)

        return run


def test_median_of_stages_that_take_turns_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    slow_start = chain([50.0, 50.0], iter([1.0, 2.0, 9.0, 1.5, 1.0]))
    stages = {"a": clock.taking(slow_start, log, "a"), "b": clock.taking(repeat(0.25), log, "b")}
    # 1, 2, 9, 1.5, 1 without the two warm-up rounds.
    assert time_stages(stages, CPU, repeats=5, seconds=1000) == {"a": 1.5, "b": 0.25}
    assert log == ["a", "b"] * 7


def test_slow_stages_end_after_the_third_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    time_stages({"a": clock.taking(repeat(60.0), log, "a")}, CPU, repeats=100, seconds=10)
    assert len(log) == benchmark.WARM_UP + 3


def test_multiply_adds_of_a_convolution() -> None:
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert multiply_adds(lambda: convolution(torch.zeros(2, 3, 8, 10))) == 2 * 8 * 10 * 5 * 3 * 9


def test_peak_memory_counts_what_lives_at_once() -> None:
    held = torch.zeros(2**18)  # 1 MiB, there before

    def run() -> None:
        first = held + 1
        second = first + 1
        del first
        torch.cat((second, second))  # 2 MiB beside the 1 MiB of `second`

    assert peak_memory(run, CPU) == pytest.approx(3, abs=0.01)


def test_stages_are_parts_of_the_network(model: EDARFusion) -> None:
    fixed, moving = torch.rand(2, 1, 1, 200, 264)
    with torch.inference_mode():
        stages = network_stages(model, fixed, moving)
        output, registration, fusion = stages["forward"](), stages["registration"](), stages["fusion"]()
        expected = model(fixed, moving)
        encoded = stages["features"]()
    torch.testing.assert_close(output.fused, expected.fused)
    torch.testing.assert_close(registration.flow[..., :200, :264], expected.flow)
    torch.testing.assert_close(fusion.fused[..., :200, :264], expected.fused)
    # Both encoders were run, and timing leaves no hook behind.
    assert encoded.shape[:3] == (1, 2, 4)
    assert not any(child._forward_pre_hooks for child in model.children())
    with torch.no_grad():
        counts = {name: multiply_adds(run) for name, run in network_stages(model, fixed, moving).items()}
    assert 0 < counts["features"] < counts["registration"]
    assert counts["registration"] + counts["fusion"] == counts["forward"]


def test_training_step_learns_and_leaves_the_model_alone(model: EDARFusion, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    original = benchmark.registration_loss

    def watched(*arguments):
        losses.append(original(*arguments))
        return losses[-1]

    monkeypatch.setattr(benchmark, "registration_loss", watched)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = training_step(model, (64, 96), batch=2)
    for _ in range(8):
        step()
    totals = [loss.total.item() for loss in losses]
    assert len(totals) == 8 and totals[-1] < totals[0]
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_fast_preset_is_a_fraction_of_one_convolution() -> None:
    # Seconds belong to the benchmark; this much of them is the same on every machine.
    pair = torch.zeros(2, 1, 1, 256, 256)
    actual = multiply_adds(lambda: EDARFusion("fast")(*pair))
    assert actual < 0.2 * 256 * 256 * 64 * 64 * 9


def test_command_writes_both_reports(
    tmp_path: Path, model: EDARFusion, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "WARM_UP", 1)
    monkeypatch.setitem(sys.modules, "inference.openvino_model", SimpleNamespace(OpenVINOModel=lambda model: model))
    save_checkpoint(tmp_path / "tiny.safetensors", model, modality="CT", training={"step": 1}, metrics={})
    arguments = ["--checkpoint", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "out"), "--device"]
    arguments += ["cpu", "--sizes", "64x64", "64x72", "--batches", "1", "2", "--training-batch", "2", "--repeats", "1"]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert results["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert results["model"]["arguments"]["preset"] == "tiny"
    cases = [("64x64", 1), ("64x64", 2), ("64x72", 1), ("64x72", 2)]
    assert [(row["size"], row["batch"]) for row in results["rows"]] == cases
    for row in results["rows"]:
        assert row["pairs_per_second"] == pytest.approx(row["batch"] / row["forward"])
        assert min(row["features"], row["fusion"], row["peak_memory"]) > 0
        assert (row["metrics"] is None) == (row["writing"] is None) == (row["batch"] == 2)
    one, two = results["rows"][:2]
    assert two["multiply_adds"] == 2 * one["multiply_adds"]
    ratio, training = results["ratio"], results["training"]
    assert ratio["ratio"] == pytest.approx((ratio["registration"] + ratio["fusion"]) / ratio["convolution"])
    assert training["pairs_per_second"] == pytest.approx(2 / training["seconds"])
    report = (tmp_path / "out/benchmark.md").read_text()
    assert report in capsys.readouterr().out
    assert "tiny.safetensors" in report and f"**{ratio['ratio']:.2f}**" in report
    assert f"`--engine openvino-bf16`: {1e3 * ratio['openvino-bf16']:.1f} ms" in report
    assert report.count("\n| 64x") == 4


@pytest.mark.parametrize("size", ["63x64", "64", "64x", "ax64"])
def test_bad_size(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--sizes", size])
    assert caught.value.code == 2
    assert "sides from 64" in capsys.readouterr().err


def test_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path / "none.safetensors"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m tools.benchmark: ") and "nothing there" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
