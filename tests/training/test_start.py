"""Both commands say at once that they start and where their results lie, also into a pipe."""

import subprocess
import sys
from pathlib import Path

import pytest

import EDARFusion_train as script
from tests.examples import REPOSITORY, SAMPLE, sample_table
from utils.files import FileError

COUNTED = "results go to out\nCT 3 pairs, PET 3 pairs, SPECT 3 pairs; loading PyTorch\n"
FIRST_LINES = {
    "EDARFusion_train.py": (["--root", "nowhere", "--epochs", "1"], "stderr", "EDARFusion_train: loading PyTorch\n"),
    "EDARFusion_test_val.py": (["--output", "out"], "stdout", COUNTED),
}


@pytest.mark.parametrize("name", FIRST_LINES)
def test_the_first_lines_come_before_pytorch_is_loaded(name: str, tmp_path: Path) -> None:
    options, stream, lines = FIRST_LINES[name]
    command = [sys.executable, str(REPOSITORY / name), *options]
    with subprocess.Popen(command, cwd=tmp_path, **{stream: subprocess.PIPE}, text=True) as process:
        try:
            for line in lines.splitlines(keepends=True):
                assert getattr(process, stream).readline() == line
            assert process.poll() is None
        finally:
            process.kill()


def test_a_run_names_its_folder_before_it_reads_the_pairs(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    table = sample_table(tmp_path / "pairs.csv")
    caplog.set_level("INFO", logger="EDARFusion.training")
    monkeypatch.setattr(script.log, "propagate", True)

    def no_pairs(options):
        assert "run folder: runs/CT-001; reading the pairs".replace("/", script.os.sep) in caplog.text
        assert Path("runs/CT-001").is_dir()
        raise FileError("no pairs")

    monkeypatch.setattr(script, "load_pairs", no_pairs)
    options = ["--csv", str(table), "--root", str(SAMPLE), "--modality", "CT", "--epochs", "1", "--device", "cpu"]
    with pytest.raises(FileError, match="no pairs"):
        script.train(script.parse_arguments(options), script.threading.Event())
    # Nothing is left of a run that did not begin.
    assert not Path("runs").exists()
