"""EDARFusion_train.py where something is not as it should be: other options, other processes, numbers that are none."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch

import EDARFusion_train as script
from losses import steps
from losses.registration import edge_error, edge_strength
from models.checkpoint import CheckpointError, save_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import ONE_THREAD, REPOSITORY, sample_table
from tests.kill_training import command
from training import distributed, progress, run_folder, validation
from utils import device, processes
from utils.files import FileError, InputError

RUN = ("--root", "somewhere", "--epochs", "7")


@pytest.fixture
def begun(tmp_path) -> Path:
    """The folder of a run by one process."""
    options = asdict(script.parse_arguments([*RUN, "--seed", "3", "--save-minutes", "9"]))
    record, state = {"options": options, "processes": 1, "step": 5}, {"raw": torch.zeros(1)}
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, EDARFusion("tiny"), modality="all", training=record, metrics={}, state=state)
    return tmp_path


def test_a_resumed_run_may_move_but_keeps_its_options(begun, capsys):
    line = ["--resume", str(begun), "--device", "cpu", "--workers", "1", "--root", "elsewhere", "--threads", "2"]
    options = run_folder.open_run(script.parse_arguments(line))[1].options
    assert (options.device, options.workers, options.root, options.threads) == ("cpu", 1, ["elsewhere"], 2)
    assert (options.epochs, options.seed, options.save_minutes) == (7, 3, 9)
    for other in (["--modality", "CT"], ["--lr", "1"], ["--seed", "3"], ["--amp"]):
        with pytest.raises(SystemExit):
            script.parse_arguments(["--resume", str(begun), *other])
        assert other[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_with_as_many_processes_as_before(begun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(CheckpointError, match=f"{begun}: expected 1 processes .* found 4"):
        run_folder.open_run(script.parse_arguments(["--resume", str(begun)]))


def test_a_network_to_start_from_is_that_of_the_options(begun):
    start = str(begun / "last.safetensors")
    assert script.initial_network(script.parse_arguments([*RUN, "--init", start]))[0].arguments["preset"] == "tiny"
    for options, words in ((["--preset", "small"], "preset small"), (["--without", "gate"], "use_gate False")):
        with pytest.raises(CheckpointError, match=f"{words}.* found"):
            script.initial_network(script.parse_arguments([*RUN, "--init", start, *options]))
    agreeing = ["--preset", "tiny", "--without", "consistency"]
    assert script.initial_network(script.parse_arguments([*RUN, "--init", start, *agreeing]))[0].arguments["use_gate"]


def test_the_fusion_alone_needs_a_registration(capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments([*RUN, "--stage", "fusion"])
    assert "--init" in capsys.readouterr().err.splitlines()[-1]


def test_validation_pairs_without_tissue_are_no_measure():
    with pytest.raises(FileError, match="PET: expected tissue"):
        validation.score({"epe_CT": 1, "zero_CT": 2, "epe_PET": 0, "zero_PET": 0}, "registration")


def test_edge_error_of_an_error_along_a_single_sharp_edge_is_a_number():
    # One short edge in an empty image: its tensor is of rank 1 and huge, so that rounding makes a negative square.
    image = torch.zeros(1, 1, 256, 256)
    image[..., 100:104, 100:104] = torch.tril(torch.ones(4, 4))
    edges = edge_strength(image, (64, 64)) * 1e3
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    error = torch.stack((x / 3 + 0.1, y / 3 + 0.1))[None].requires_grad_()
    loss = edge_error(error, edges)
    loss.backward()
    assert loss.isfinite() and error.grad.isfinite().all()
    # A tensor of rank 1 across (1, -1), with the last digit of a float32 off.
    edges = torch.tensor([1e4, 1.0001e4, 1e4]).view(1, 3, 1, 1)
    assert edge_error(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1), edges).item() == pytest.approx(0.01)


def test_a_run_stops_at_gradients_that_are_none_and_keeps_what_it_saved(tmp_path, monkeypatch):
    table = sample_table(tmp_path / "pairs.csv")
    losses = []

    def broken(*arguments):
        loss = true_loss(*arguments)
        losses.append(loss)
        return loss if len(losses) < 3 else loss._replace(total=loss.total * float("nan"))

    true_loss = steps.registration_loss
    monkeypatch.setattr(steps, "registration_loss", broken)
    options = ("--preset", "tiny", "--overfit", "1", "--epochs", "9", "--val-every", "9", "--stage", "registration")
    monkeypatch.setattr("sys.argv", command(table, "--output", tmp_path / "run", *options)[1:])
    try:
        assert script.main() == 2
    finally:
        torch.use_deterministic_algorithms(False)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["step"].tolist() == [1, 2] and history["total"].notna().all()
    assert script.load_checkpoint(tmp_path / "run" / "last.safetensors").training["step"] == 2


def test_losses_of_a_stage_that_begins_within_an_epoch_are_means_of_its_steps(tmp_path, monkeypatch):
    table = sample_table(tmp_path / "pairs.csv")
    seen = []

    def watched(*arguments):
        loss = true_loss(*arguments)
        seen.append(loss.total.item())
        return loss

    true_loss = steps.fusion_loss
    monkeypatch.setattr(steps, "fusion_loss", watched)
    # Four steps an epoch; the fusion has the last three of them.
    options = ("--preset", "tiny", "--batch-size", "1", "--overfit", "4", "--epochs", "1", "--fusion-share", "0.75")
    line = command(table, "--output", tmp_path / "run", *options, "--val-every", "9")[2:]
    try:
        script.train(script.parse_arguments(line), threading.Event())
    finally:
        torch.use_deterministic_algorithms(False)
    before, row = pd.read_csv(tmp_path / "run" / "history.csv").to_dict("records")
    assert (before["stage"], before["step"], row["stage"], row["step"]) == ("registration", 1, "fusion", 4)
    assert before["total"] > 0 and len(seen) == 3
    assert row["total"] == pytest.approx(sum(seen) / 3, rel=1e-5)


@pytest.mark.parametrize(("processes", "gpus", "fine"), [(2, 2, True), (4, 2, False), (4, 1, True)])
def test_no_two_processes_share_one_of_several_gpus(monkeypatch, processes, gpus, fine):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    if fine:
        assert distributed.own_device("cuda", processes) == torch.device("cuda", 1 % gpus)
    else:
        with pytest.raises(ValueError, match="device: expected at most 2 processes here, .* found 4"):
            distributed.own_device("cuda", processes)


def test_several_processes_agree_as_exactly_as_one_counts(monkeypatch):
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda *_: None)
    assert distributed.agree(0.7, False, torch.device("cpu"), 2) == (0.7, False)


def test_processes_that_torchrun_did_not_start_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="2 processes: expected to be started by torchrun, found: .*MASTER_ADDR"):
        distributed.join_processes(torch.device("cpu"), 2)


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [(InputError("here: expected this, found that"), 2, "here: expected this, found that"),
     (KeyboardInterrupt(), 130, "--resume goes on from what was saved")],
)  # fmt: skip
def test_what_a_user_did_is_one_line_and_what_the_project_did_a_traceback(monkeypatch, capsys, raised, status, told):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(script, "parse_arguments", fail)
    assert script.main() == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("EDARFusion_train: ") and told in line
    raised = ValueError("not a message for users")
    with pytest.raises(ValueError, match="not a message"):
        script.main()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_although_others_make_the_pairs(tmp_path, number):
    table = sample_table(tmp_path / "pairs.csv")
    options = ("--preset", "tiny", "--batch-size", "1", "--epochs", "5000", "--val-every", "5000", "--workers", "2")
    line = command(table, "--output", tmp_path / "run", *options, "--save-minutes", "0.001")
    process = subprocess.Popen(line, cwd=REPOSITORY, env=ONE_THREAD, start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    last = tmp_path / "run" / "last.safetensors"
    try:
        for _ in range(1200):
            if last.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    assert "go on with --resume" in output


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="processes hand pairs over in other ways here")
@pytest.mark.parametrize(
    ("raised", "words"),
    [("RuntimeError('a fault')", "RuntimeError: a fault"),
     ("torch.OutOfMemoryError('CUDA out of memory')", "out of memory on the GPU: try a smaller --batch-size"),
     ("RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error')", "--shm-size"),
     ("MemoryError()", "out of memory: try a smaller --batch-size")],
)  # fmt: skip
def test_an_error_ends_a_run_within_seconds_although_others_make_the_pairs(tmp_path, raised, words):
    table = sample_table(tmp_path / "pairs.csv")
    program = (
        "import sys, time, torch, EDARFusion_train as script\n"
        "from training.stages import StageTrainer\n"
        "def fail(*_):\n"
        f"    print(time.time(), flush=True)\n    raise {raised}\n"
        "StageTrainer.step = fail\n"
        "try:\n    sys.exit(script.main())\n"
        "finally:\n    print(time.time(), flush=True)\n"
    )
    options = ("--preset", "tiny", "--batch-size", "1", "--epochs", "9", "--workers", "2")
    line = [sys.executable, "-c", program, *command(table, "--output", tmp_path / "run", *options)[2:]]
    done = subprocess.run(line, cwd=REPOSITORY, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    began, ended = map(float, done.stdout.splitlines()[-2:])
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1], done.stderr[-2000:]
    # Python's own way out waits for nobody any more.
    assert ended - began < 5


def test_threads_are_those_that_are_idle(monkeypatch):
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for load, cores in ((0.0, 8), (8.0, 4), (15.9, 1), (40.0, 1)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0), raising=False)
        assert processes.idle_cores() == cores
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(device, "idle_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    device.choose_threads(torch.device("cpu"), None)
    device.choose_threads(torch.device("cpu"), 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    device.choose_threads(torch.device("cpu"), None)
    device.choose_threads(torch.device("meta"), None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    device.choose_threads(torch.device("cpu"), None)
    assert chosen == [3, 6, 1]


def test_a_folder_that_is_removed_costs_tensorboard_and_no_training(tmp_path, caplog, capfd):
    monitored = tmp_path / "run"
    monitored.mkdir()
    threading.excepthook = progress._leave_out_lost_files
    folder = run_folder.RunFolder(monitored, None, None, 1)
    shutil.rmtree(monitored)
    for step in range(100):
        folder.add_scalars("train", {"lr": 1.0}, step)
        if folder._board_failed:
            break
        time.sleep(0.05)
    folder.add_scalars("train", {"lr": 1.0}, 101)
    folder.close()
    (line,) = caplog.messages
    assert line.startswith(f"{monitored / 'tensorboard'}: expected a place to write to, found ")
    assert capfd.readouterr().err == ""
