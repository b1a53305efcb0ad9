"""The training script for real, on the embedded sample: it learns, repeats, resumes and shares its work."""

import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import EDARFusion_train as script
from models.checkpoint import load_checkpoint
from tests.examples import ONE_THREAD, REPOSITORY, sample_table
from tests.kill_training import SHORT, StopAfter, command, kill_and_resume, resume
from utils.arguments import DEFAULT_CHECKPOINT


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return sample_table(tmp_path_factory.mktemp("table") / "pairs.csv")


def run(line: list[str], expected: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=ONE_THREAD, timeout=500)
    assert result.returncode == expected, result.stderr[-3000:]
    return result


def assert_same_weights(a: Path, b: Path, tolerance: float = 0.0) -> None:
    first, second = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        # The optimiser's running means are gradients, which rounding moves more than the weights they move.
        atol = 10 * tolerance if name.startswith("optimizer.") else tolerance
        torch.testing.assert_close(value, second[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def uninterrupted(table, tmp_path_factory) -> Path:
    """A short run of both stages."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(command(table, "--output", folder, *SHORT))
    return folder


def test_overfits_four_pairs(table, tmp_path):
    folder = tmp_path / "overfit"
    options = ("--preset", "tiny", "--overfit", "4", "--batch-size", "4", "--epochs", "90", "--val-every", "30")
    run(command(table, "--output", folder, *options, "--stage", "registration", "--averaging", "0.9"))
    metrics = load_checkpoint(folder / "last.safetensors").metrics
    kinds = [name.removeprefix("epe_") for name in metrics if name.startswith("epe_")]
    error, zero = (sum(metrics[f"{name}_{kind}"] for kind in kinds) for name in ("epe", "zero"))
    assert error < 0.5 * zero
    assert all(metrics[f"folding_{kind}"] == 0 for kind in kinds)


def test_a_run_leaves_what_its_user_needs(uninterrupted):
    assert {p.name for p in uninterrupted.iterdir()} >= {
        "best.safetensors", "last.safetensors", "history.csv", "learning_curve.png", "tensorboard",
    }  # fmt: skip
    history = pd.read_csv(uninterrupted / "history.csv")
    assert {"registration", "fusion"} == set(history["stage"])
    assert {"flow", "matching", "consistency", "epe_CT", "zero_CT", "rmse_CT", "qabf_CT"} <= set(history.columns)
    assert (history.loc[history["stage"] == "fusion", "consistency"] > 0).all()
    assert list((uninterrupted / "tensorboard").glob("events*"))


def test_one_seed_gives_one_result(table, tmp_path, uninterrupted):
    run(command(table, "--output", tmp_path / "again", *SHORT, "--workers", "1"))
    assert_same_weights(uninterrupted, tmp_path / "again")


@pytest.mark.parametrize(("epochs", "stage"), [(2, "registration"), (3, "fusion")])
def test_resume_goes_on_exactly(table, tmp_path, uninterrupted, epochs, stage):
    folder = tmp_path / "broken off"
    try:
        line = command(table, "--output", folder, *SHORT)[2:]
        script.train(script.parse_arguments(line), StopAfter(3 * epochs))
    finally:
        torch.use_deterministic_algorithms(False)
    stopped = load_checkpoint(folder / "last.safetensors").training
    assert (stopped["stage"], stopped["step"]) == (stage, 3 * epochs) and stopped["stage_step"] < stopped["step"]
    run(resume(folder))
    assert_same_weights(uninterrupted, folder)
    columns = ["epoch", "stage", "lr", "total"]
    histories = [pd.read_csv(path / "history.csv")[columns] for path in (uninterrupted, folder)]
    pd.testing.assert_frame_equal(*histories)


def test_two_processes_give_the_weights_of_one(table, tmp_path):
    # From trained weights: where a layer is still zero the gradients behind it are rounding, which Adam magnifies.
    start = DEFAULT_CHECKPOINT
    options = ("--init", start, "--epochs", "2", "--val-every", "2", "--lr", "1e-3", "--stage", "registration",
               "--own-offset", "0.7")  # fmt: skip
    run(command(table, "--output", tmp_path / "one", *options, "--batch-size", "4"))
    run(command(table, "--output", tmp_path / "two", *options, "--batch-size", "2", processes=2))
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    # What is logged is the mean over all pairs of a step, too.
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two"))
    assert one["total"].tolist() == pytest.approx(two["total"].tolist(), rel=1e-3)
    before, after = load_file(start), load_file(tmp_path / "two" / "last.safetensors")
    name = "raw.encoders.head.weight"
    assert (after[name] - before[name.replace("raw.", "model.")]).abs().max() > 5e-5


def test_what_an_ablation_leaves_out_stays_out(table, tmp_path):
    parts = ("entropy", "prereg", "reliability", "aggregation", "gate", "refinement")
    run(command(table, "--output", tmp_path / "without", *SHORT, "--without", *parts, "consistency"))
    left_out = load_checkpoint(tmp_path / "without" / "last.safetensors")
    switched_off = {name for name, value in left_out.model.arguments.items() if value is False}
    # A new network expects no errors: that is fitted after the training.
    assert switched_off == set(parts) - {"gate"} | {"use_gate", "expected_error"}
    history = pd.read_csv(tmp_path / "without" / "history.csv")
    fusion = history[history["stage"] == "fusion"]
    assert len(fusion) and fusion["total"].notna().all() and (fusion["consistency"] == 0).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_end_well(table, tmp_path, number):
    folder = tmp_path / "signalled"
    line = command(table, "--output", folder, "--preset", "tiny", "--batch-size", "2", "--epochs", "100000",
                   "--save-minutes", "0.001", "--val-every", "100000")  # fmt: skip
    process = subprocess.Popen(
        line, cwd=REPOSITORY, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "last.safetensors", process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    assert f"--resume {folder}" in output
    assert load_checkpoint(folder / "last.safetensors").training["step"] > 0


def test_killed_at_random_moments_it_still_ends_the_same(table, tmp_path, uninterrupted):
    """Two kills here; `python -m tests.kill_training` does it as often as wanted."""
    folder = tmp_path / "killed"
    (unfinished := folder / ".last.safetensors.1.tmp").parent.mkdir()
    unfinished.touch()  # no kill need come while a file is written
    assert kill_and_resume(command(table, "--output", folder, *SHORT), folder, kills=2, seed=0) == 2
    assert_same_weights(uninterrupted, folder)
    assert not unfinished.exists()


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.05)


def test_a_run_folder_is_never_overwritten(table, uninterrupted):
    before = (uninterrupted / "last.safetensors").read_bytes()
    result = run(command(table, "--output", uninterrupted, *SHORT), expected=2)
    assert "--resume" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert (uninterrupted / "last.safetensors").read_bytes() == before
