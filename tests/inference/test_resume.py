"""Interrupted runs, several processes, and --resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from inference.results.folder import ResultFolder
from inference.results.table import COLUMNS
from models.checkpoint import save_checkpoint
from tests.examples import REPOSITORY, folders, picture, read_table, run_command, with_flows
from utils import processes
from utils.files import FileError
from utils.imaging.images import write_image
from utils.signals import INTERRUPTED


def test_resume_scores_again_when_flows_are_given(checkpoint, tmp_path):
    folders(tmp_path, label=True)
    table = with_flows(tmp_path)
    pd.read_csv(table).drop(columns="flow").to_csv(tmp_path / "bare.csv", index=False)
    assert run_command(checkpoint, tmp_path / "out", "--csv", str(tmp_path / "bare.csv")) == 0
    assert "epe" not in read_table(tmp_path / "out/CT/metrics.csv")
    assert run_command(checkpoint, tmp_path / "out", "--csv", str(table), "--resume") == 0
    assert read_table(tmp_path / "out/CT/metrics.csv")["epe"].notna().all()


def test_resume_computes_what_is_missing_only(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    folder = tmp_path / "out/CT"
    table = read_table(folder / "metrics.csv")
    kept = (folder / "fused/001.png").stat()
    # 001 is finished; 002 has lost a file, 003 its row.
    (folder / "aligned/002.png").unlink()
    table[table["name"] != "003"].to_csv(folder / "metrics.csv", index=False)
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    again = read_table(folder / "metrics.csv")
    assert (folder / "fused/001.png").stat() == kept
    assert (folder / "aligned/002.png").is_file()
    assert list(again["name"]) == ["001", "002", "003", "mean"]
    assert again.loc[0, "seconds"] == pytest.approx(table.loc[0, "seconds"])
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    assert again["seconds"].iloc[-1] == pytest.approx(again["seconds"].iloc[:-1].mean())
    # A wanted file that the earlier run did not save makes a pair unfinished.
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume", "--save-flow") == 0
    assert len(list((folder / "flow").iterdir())) == 3


def test_resume_leaves_the_report_of_what_is_finished(checkpoint, tmp_path, monkeypatch):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    folders(tmp_path, pairs=2)
    monkeypatch.setattr("inference.run.scored", lambda *x: ())
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == INTERRUPTED
    assert (tmp_path / "out/CT/report.html").exists()


def test_what_is_outdated_and_cannot_be_removed_is_named(tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    folder.report_path.mkdir()
    folder.outdated = [folder.report_path]
    with pytest.raises(FileError, match=r"report\.html: expected a file that can be removed"):
        folder.write_rows([])


@pytest.mark.parametrize("changed", ["checkpoint", "passes", "unreadable"])
def test_resume_does_not_mix_results(checkpoint, model, tmp_path, capsys, changed):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    other, settings = tmp_path / "other.safetensors", tmp_path / "out/CT/settings.json"
    shutil.copy(checkpoint, other)
    if changed == "checkpoint":
        save_checkpoint(other, model, modality="CT", training={"note": "another"}, metrics={})
    elif changed == "passes":
        options += ["--passes", "2"]
    else:
        settings.write_text("[1")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run_command(other if changed == "checkpoint" else checkpoint, tmp_path / "out", *options, "--resume") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{settings}: expected" in line and "found" in line
    assert {"checkpoint": "sha256", "passes": "passes 2", "unreadable": "settings"}[changed] in line
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    # Without --resume they are results of a new run.
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_resume_makes_pairs_again_whose_files_are_others(checkpoint, tmp_path, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2, label=True), "--save-flow"]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    table, kept = (read_table(tmp_path / "out/CT/metrics.csv") for _ in range(2))
    # Another patient's slice of the same name.
    write_image(tmp_path / role / "002.png", picture(77))
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    again = read_table(tmp_path / "out/CT/metrics.csv")
    assert again.loc[0].equals(kept.loc[0]) and not again.loc[1].equals(table.loc[1])
    assert run_command(checkpoint, tmp_path / "anew", *options) == 0
    anew = read_table(tmp_path / "anew/CT/metrics.csv")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), anew.drop(columns="seconds"))


def test_resume_makes_pairs_again_that_are_shown_at_another_scale(checkpoint, tmp_path):
    def write(name: str, size: int) -> None:
        for role, seed in (("fixed", 0), ("moving", 1)):
            write_image(tmp_path / role / f"{name}.png", np.pad(picture(seed)[:size, :size], (128 - size) // 2))

    options = ["--modality", "CT", "--fixed", str(tmp_path / "fixed"), "--moving", str(tmp_path / "moving")]
    for number in range(5):
        write(f"00{number}", 60)
    # Several heads, all of them small, are enlarged; beside a large one they are tops of heads.
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    for role in ("fixed", "moving"):
        write_image(tmp_path / role / "005.png", np.kron(picture(2)[:64, :64], np.ones((2, 2))))
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert run_command(checkpoint, tmp_path / "anew", *options) == 0
    again, anew = (read_table(tmp_path / name / "CT/metrics.csv") for name in ("out", "anew"))
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), anew.drop(columns="seconds"))


def test_rows_without_known_inputs_are_made_again(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    before = (tmp_path / "out/CT/fused/001.png").stat()
    (tmp_path / "out/CT/inputs.json").write_text("no json")
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert (tmp_path / "out/CT/fused/001.png").stat().st_ino != before.st_ino
    assert list(json.loads((tmp_path / "out/CT/inputs.json").read_text())) == ["001"]


def test_parts_of_several_processes_are_resumed(checkpoint, tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    rows = {name: dict.fromkeys(COLUMNS, 0.5) | {"name": name, "reference": "label"} for name in ("001", "002", "003")}
    folder.write_rows([rows["003"] | {"inputs": "old"}])
    for part, name in enumerate(("001", "002")):
        folder.write_rows([rows[name] | {"inputs": f"of {name}"}], part)
    actual = folder.read_rows()
    # What the processes left when they broke off is newer than the whole table.
    assert {name: row["inputs"] for name, row in actual.items()} == {"001": "of 001", "002": "of 002"}
    (unfinished := tmp_path / ".metrics.csv.1.tmp").touch()
    folder.remove_parts()
    assert not unfinished.exists()
    assert {name: row["inputs"] for name, row in folder.read_rows().items()} == {"003": "old"}


def test_resume_scores_again_when_labels_are_given(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1, label=True)]
    assert run_command(checkpoint, tmp_path / "out", *options[:-2]) == 0
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert read_table(tmp_path / "out/CT/metrics.csv")["rmse"].notna().all()


def command(checkpoint: Path, output: Path, *options: str) -> list[str]:
    script_path = str(REPOSITORY / "EDARFusion_test_val.py")
    return [script_path, "--checkpoint", str(checkpoint), "--output", str(output), "--modality", "CT", *options]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_interruption_keeps_what_is_done(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=40)
    table_path = tmp_path / "out/CT/metrics.csv"
    process = subprocess.Popen(
        [sys.executable, *command(checkpoint, tmp_path / "out", *options, "--workers", "1")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not table_path.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == INTERRUPTED and "Traceback" not in errors
    assert "--resume goes on" in errors.rstrip().split("\n")[-1]
    names = list(read_table(table_path)["name"])
    assert 2 <= len(names) < 41 and names[-1] == "mean"
    fused = {p.stem for p in (tmp_path / "out/CT/fused").iterdir()}
    assert fused == set(names[:-1])
    kept = {name: (tmp_path / f"out/CT/fused/{name}.png").stat() for name in names[:-1]}
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--resume") == 0
    assert len(read_table(table_path)) == 41
    assert kept == {name: (tmp_path / f"out/CT/fused/{name}.png").stat() for name in kept}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_a_reader_that_goes_away_is_no_traceback(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=1)
    process = subprocess.Popen(
        [sys.executable, *command(checkpoint, tmp_path / "out", *options, "--workers", "1")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    _, errors = process.communicate()
    assert process.returncode == 1 and "Traceback" not in errors and "Exception" not in errors
    assert len(read_table(tmp_path / "out/CT/metrics.csv")) == 2


def test_two_processes_share_the_pairs(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=5, label=True)
    assert run_command(checkpoint, tmp_path / "one", "--modality", "CT", *options) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launcher, *command(checkpoint, tmp_path / "two", *options, "--workers", "1")],
        check=True, capture_output=True, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = (read_table(tmp_path / run_ / "CT/metrics.csv").drop(columns="seconds") for run_ in ("one", "two"))
    # Processes that share the cores round otherwise.
    pd.testing.assert_frame_equal(one, two, rtol=1e-2, atol=1e-2)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*"))


def test_what_several_processes_finished_outlives_a_run_that_is_killed_as_it_begins(checkpoint, tmp_path, monkeypatch):
    options, folder = ["--modality", "CT", *folders(tmp_path, pairs=1)], tmp_path / "out/CT"
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    for name, part in {"metrics.csv": ".metrics-1.csv", "inputs.json": ".inputs-1.json"}.items():
        (folder / name).rename(folder / part)
    made, remove = (folder / "fused/001.png").stat(), ResultFolder.remove_parts

    def remove_and_die(folder: ResultFolder) -> None:
        remove(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(ResultFolder, "remove_parts", remove_and_die)
        assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == INTERRUPTED
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert (folder / "fused/001.png").stat() == made


def test_pairs_of_a_process_whose_folder_is_another_are_missed(checkpoint, tmp_path, monkeypatch, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    with monkeypatch.context() as first_of_two:
        first_of_two.setenv("WORLD_SIZE", "2")
        for name in ("init_process_group", "barrier"):
            first_of_two.setattr(torch.distributed, name, lambda *_, **__: None)
        assert run_command(checkpoint, tmp_path / "out", *options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'out/CT'}: expected a folder that all processes see" in line
    assert "found none of 1 pair, such as 002" in line
    # What it made itself is not lost.
    kept = (tmp_path / "out/CT/fused/001.png").stat()
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "002", "003", "mean"]
    assert (tmp_path / "out/CT/fused/001.png").stat() == kept


def test_each_pair_is_one_process_s_and_its_row_is_in_the_table_before_the_parts_go(checkpoint, tmp_path, monkeypatch):
    """Two processes, the second run where the first one waits for it after its last pair."""
    options = ["--modality", "CT", *folders(tmp_path, pairs=5)]
    waits, actual = [], []

    def become(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))

    def barrier() -> None:
        waits.append(processes.rank())
        if processes.rank() == 0 and waits.count(0) == 3:
            become(1)
            assert run_command(checkpoint, tmp_path / "out", *options) == 0
            become(0)

    def look_and_remove(folder: ResultFolder) -> None:
        tables = folder.path.glob("*metrics*.csv")
        actual.append({path.name: list(read_table(path)["name"])[:-1] for path in tables})
        remove(folder)

    remove = ResultFolder.remove_parts
    monkeypatch.setattr(ResultFolder, "remove_parts", look_and_remove)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.barrier", barrier)
    monkeypatch.setenv("WORLD_SIZE", "2")
    become(0)
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    parts = {".metrics-0.csv": ["001", "003", "005"], ".metrics-1.csv": ["002", "004"]}
    assert actual[-1] == parts | {"metrics.csv": ["001", "002", "003", "004", "005"]}
    assert [path.name for path in (tmp_path / "out/CT").glob("*metrics*")] == ["metrics.csv"]
