"""Bad input is one line and exit status 2, and what was there stays; --keep-going leaves it out."""

import os
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from data.table import lacking_in_name
from models.checkpoint import save_checkpoint
from tests.examples import SHAPE, folders, picture, read_table, run_command, with_flows
from utils.files import FileError, check_inputs_stay, write_bytes
from utils.imaging.images import write_image
from utils.imaging.pairing import list_images


def test_flows_that_cannot_be_used(checkpoint, tmp_path, capsys):
    folders(tmp_path, label=True)
    table = with_flows(tmp_path)
    np.save(tmp_path / "flow/002.npy", np.full((2, *SHAPE), np.nan))
    options = ["--csv", str(table)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    assert str(tmp_path / "flow/002.npy") in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run_command(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "mean"]
    pd.read_csv(table).drop(columns="label").to_csv(table, index=False)
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    assert "a column label" in capsys.readouterr().err


class TestBadInput:
    """One line, exit status 2, and earlier results stay as they are."""

    @pytest.fixture
    def output(self, tmp_path):
        """A folder with earlier results of the same modality."""
        for name in ("metrics.csv", "report.html", "fused/001.png"):
            write_bytes(tmp_path / "out/CT" / name, b"earlier")
        return tmp_path / "out"

    def check(self, capsys, output, code, *words, status=2):
        captured = capsys.readouterr()
        # Beside the progress bar.
        (line,) = [line for line in captured.err.splitlines() if line and "pair/s" not in line]
        assert code == status and line.startswith("EDARFusion_test_val: ")
        for word in ("expected", "found", *words):
            assert word in line
        left = {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}
        assert left == {f"CT/{name}": b"earlier" for name in ("metrics.csv", "report.html", "fused/001.png")}

    def run(self, checkpoint, output, *options):
        try:
            return run_command(checkpoint, output, *options)
        except SystemExit as exit_:
            return exit_.code

    @pytest.mark.parametrize("case", [
        "missing folder", "missing file", "unpaired", "sizes", "damaged", "label unpaired", "unknown modality",
        "moving missing", "label alone", "no table", "split without table", "device",
        "engine", "name of the last row",
    ])  # fmt: skip
    def test_input(self, checkpoint, tmp_path, output, capsys, case):
        options = ["--modality", "CT", *folders(tmp_path, label=True)]
        fixed, moving, label = (tmp_path / role / "002.png" for role in ("fixed", "moving", "label"))
        words = []
        if case == "missing folder":
            options[options.index("--moving") + 1] = str(tmp_path / "nowhere")
            words = [str(tmp_path / "nowhere")]
        elif case == "missing file":
            options = ["--modality", "CT", "--fixed", str(fixed), "--moving", str(tmp_path / "nothing.png")]
            words = [str(tmp_path / "nothing.png")]
        elif case == "unpaired":
            moving.unlink()
            words = [str(moving.parent), "002"]
        elif case == "label unpaired":
            label.unlink()
            words = [str(label.parent), "002"]
        elif case == "sizes":
            write_image(moving, picture(1, (70, 80)))
            options += ["--fit", "none"]
            words = [str(moving), "80 x 70", "80 x 64"]
        elif case == "damaged":
            moving.write_bytes(moving.read_bytes()[:-100])
            words = [str(moving), "damaged"]
        elif case == "unknown modality":
            options[1] = "MRT"
            words = ["MRT", "SPECT"]
        elif case == "moving missing":
            options = ["--modality", "CT", "--fixed", str(fixed.parent)]
            words = ["--moving"]
        elif case == "label alone":
            options = ["--modality", "CT", "--label", str(label.parent)]
            words = ["--label", "--fixed", "--moving"]
        elif case == "no table":
            options = ["--csv", str(tmp_path / "none.csv")]
            words = [str(tmp_path / "none.csv")]
        elif case == "split without table":
            options += ["--split", "val"]
            words = ["--csv"]
        elif case == "device":
            if torch.backends.mps.is_available():
                pytest.skip("the device is here")
            options += ["--device", "mps"]
            words = ["mps"]
        elif case == "engine":
            options += ["--engine", "openvino-bf16", "--device", "cuda"]
            words = ["--engine", "cuda", "openvino-bf16"]
        elif case == "name of the last row":
            for path in (fixed, moving, label):
                path.rename(path.with_stem("mean"))
            words = [str(fixed.with_stem("mean")), "another name"]
        self.check(capsys, output, self.run(checkpoint, output, *options), *words)

    @pytest.mark.parametrize("case", ["missing", "foreign", "pickled", "of another modality"])
    def test_checkpoint(self, model, tmp_path, output, capsys, case):
        path = tmp_path / "c.safetensors"
        if case == "foreign":
            path.write_bytes(b"no checkpoint at all")
        elif case == "pickled":
            torch.save(model.state_dict(), path)
        elif case == "of another modality":
            save_checkpoint(path, model, modality="PET", training={"note": "untrained"}, metrics={})
        code = self.run(path, output, "--modality", "CT", *folders(tmp_path))
        self.check(capsys, output, code, str(path), *{"of another modality": ["PET", "CT"]}.get(case, []))

    def test_output_in_the_way(self, checkpoint, tmp_path, output, capsys):
        (tmp_path / "file").write_bytes(b"")
        code = self.run(checkpoint, tmp_path / "file", "--modality", "CT", *folders(tmp_path))
        self.check(capsys, output, code, f"{tmp_path / 'file' / 'CT'}: expected a folder")

    def test_disk_full(self, checkpoint, tmp_path, output, capsys, monkeypatch):
        options = folders(tmp_path)
        replace = os.replace

        def full(source, target):
            if Path(target).suffix == ".png":
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
        code = self.run(checkpoint, output, "--modality", "CT", *options)
        # The input is not to blame.
        self.check(capsys, output, code, "No space left", status=1)

    def test_resume_from_a_foreign_table(self, checkpoint, tmp_path, output, capsys):
        code = self.run(checkpoint, output, "--modality", "CT", *folders(tmp_path), "--resume")
        self.check(capsys, output, code, "metrics.csv")


class TestInputsStay:
    """No result takes the place of a file that it is made from: one line, exit status 2, nothing written."""

    def check(self, capsys, checkpoint, output, path, *options):
        before = {p: p.read_bytes() for p in output.parent.rglob("*") if p.is_file()}
        capsys.readouterr()
        assert run_command(checkpoint, output, *options) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "pair/s" not in line)
        assert line.startswith(f"EDARFusion_test_val: {path}: expected") and "found" in line and "--output" in line
        assert before == {p: p.read_bytes() for p in output.parent.rglob("*") if p.is_file()}

    @pytest.mark.parametrize("kind", [
        "aligned", "fused",
        pytest.param("linked", marks=pytest.mark.skipif(os.name == "nt", reason="links need rights there")),
    ])  # fmt: skip
    def test_images(self, checkpoint, tmp_path, capsys, kind):
        output = tmp_path / "out"
        options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
        assert run_command(checkpoint, output, *options) == 0
        if kind == "linked":
            (tmp_path / "linked").symlink_to(output / "CT/fused", target_is_directory=True)
        options[-1] = str(tmp_path / "linked" if kind == "linked" else output / "CT" / kind)
        self.check(capsys, checkpoint, output, f"{options[-1]}/001.png", *options)
        assert run_command(checkpoint, tmp_path / "other", *options) == 0

    def test_other_capitals(self, tmp_path):
        # Two paths of one file without a link between them, as on a file system without capitals.
        (tmp_path / "a.png").touch()
        (tmp_path / "b.png").touch()
        if not (tmp_path / "A.PNG").exists():
            os.link(tmp_path / "a.png", tmp_path / "A.PNG")
        with pytest.raises(FileError, match="a.png: expected an input that no result is written over"):
            check_inputs_stay([tmp_path / "b.png", tmp_path / "a.png"], [tmp_path / "A.PNG", tmp_path / "none.png"])
        check_inputs_stay([tmp_path / "b.png", tmp_path / "none.jpg"], [tmp_path / "A.PNG", tmp_path / "none.png"])

    def test_true_flows(self, checkpoint, tmp_path, capsys):
        folders(tmp_path / "data/CT", label=True)
        table = with_flows(tmp_path / "data/CT")
        path = tmp_path / "data/CT/flow/001.npy"
        self.check(capsys, checkpoint, tmp_path / "data", path, "--csv", str(table), "--save-flow")
        assert run_command(checkpoint, tmp_path / "data", "--csv", str(table)) == 0

    def test_volumes(self, checkpoint, tmp_path, capsys):
        paths = [tmp_path / "fixed.nii.gz", tmp_path / "out/CT/aligned.nii.gz"]
        paths[1].parent.mkdir(parents=True)
        for seed, path in enumerate(paths):
            nib.save(nib.Nifti1Image(2000 * picture(seed)[..., None] - 1000, np.eye(4)), path)
        options = ["--modality", "CT", "--fixed", str(paths[0]), "--moving", str(paths[1])]
        self.check(capsys, checkpoint, tmp_path / "out", paths[1], *options)


def test_keep_going_leaves_out_what_cannot_be_read(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=3)
    (tmp_path / "moving/002.png").write_bytes(b"")
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "003", "mean"]
    last = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert "left out" in last and str(tmp_path / "moving/002.png") in last


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_keep_going_leaves_out_what_has_no_partner(checkpoint, tmp_path, capsys, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3, label=True)]
    (tmp_path / role / "002.png").unlink()
    assert run_command(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "003", "mean"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert all(f"{tmp_path / role}: expected a {role} image" in line and "none for 002" in line for line in lines)
    assert len(lines) == (2 if role == "fixed" else 1)  # two other folders have it


def test_keep_going_leaves_out_rows_that_cannot_be_used(checkpoint, tmp_path, capsys):
    folders(tmp_path, pairs=5)
    (tmp_path / "moving/002.png").unlink()
    others = {2: "moving/002.png", 3: "", 4: "../004.png"}
    rows = [f"fixed/00{i}.png,{others.get(i, f'moving/00{i}.png')},CT" for i in range(1, 6)]
    csv = tmp_path / "pairs.csv"
    others = ["fixed/001.png,moving/001.png,MRI", "fixed/001.png,moving/005.png,CT"]
    csv.write_text("\n".join(["fixed,moving,modality", *rows, *others]))
    assert run_command(checkpoint, tmp_path / "out", "--csv", str(csv), "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "005", "mean"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    expected = [(7, "'MRI'"), (3, "002.png"), (4, "an empty cell"), (5, "../004.png"), (8, "'001' in lines 2 and 8")]
    for line, (place, actual) in zip(lines, expected, strict=True):
        assert f"{csv}: expected" in line and str(place) in line and actual in line
    for row, actual in ((rows[1], "002.png"), (f"{rows[0]}R", "'CTR'")):
        csv.write_text(f"fixed,moving,modality\n{row}\n")
        assert run_command(checkpoint, tmp_path / "none", "--csv", str(csv), "--keep-going", "--modality", "CT") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{csv}: expected at least one row that can be used" in line and actual in line
        assert not (tmp_path / "none").exists()


def test_keep_going_with_nothing_left(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=1)
    (tmp_path / "moving/001.png").write_bytes(b"")
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--keep-going") == 2
    shown = capsys.readouterr()
    reason, verdict = shown.err.splitlines()
    assert "left out: " in reason and "001.png: expected" in reason
    assert verdict.endswith("expected at least one pair that can be used, found none")
    assert not (tmp_path / "out").exists() and "mean" not in shown.out


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="one file there")
def test_names_must_differ_in_more_than_capitals(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    for folder in (options[3], options[5]):
        shutil.copy(Path(folder, "001.png"), Path(folder, "P1.png"))
        shutil.copy(Path(folder, "001.png"), Path(folder, "p1.png"))
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.png: expected a name that differs from " in line and " in more than capitals" in line
    assert run_command(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert len(list((tmp_path / "out/CT/fused").iterdir())) == 3


@pytest.mark.parametrize("name", ["CONIN$", "conout$.a", "con ", "LPT1 .b"])
def test_all_names_of_devices_are_refused(name):
    assert lacking_in_name(name) == "a name that Windows does not keep for devices"


@pytest.mark.parametrize("mark", ["\x85", "\x9b", "\u2066", "\u2069"])
def test_all_characters_that_control_the_line_are_refused(mark):
    assert lacking_in_name(f"a{mark}b") == "a name without characters that control the line"


@pytest.mark.parametrize("name", ["console", "icon", "com", "a\u00e9", "a\u00a0b"])
def test_names_like_those_are_no_devices(name):
    assert lacking_in_name(name) is None


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names cannot be made there")
@pytest.mark.parametrize(("name", "expected"), [
    (os.fsdecode(b"caf\xe9"), "a name in UTF-8"), ("x" * 201, "a name of at most 200 bytes"),
    ("e\u0301" * 80, None), ("Aux", "a name that Windows does not keep for devices"),
    ("com1.t2", "a name that Windows does not keep for devices"), ("ends with.", None), ("a b", None),
    ("COM\u00b9", "a name that Windows does not keep for devices"),
    ("a\nb", "a name without characters that control the line"),
    ("a\u202eb", "a name without characters that control the line"),
], ids=["no-UTF-8", "201-bytes", "accents-apart", "device", "device-with-suffix", "final-dot", "blank", "device-1",
        "newline", "right-to-left"])  # fmt: skip
def test_names_that_result_files_cannot_have(checkpoint, tmp_path, capsys, name, expected):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    for role in ("fixed", "moving"):
        (tmp_path / role / "002.png").rename(tmp_path / role / f"{name}.png")
    if expected is None:
        assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow") == 0
        assert len(read_table(tmp_path / "out/CT/metrics.csv")) == 3
        return
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"expected {expected}, found" in line and not (tmp_path / "out").exists()
    assert run_command(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "mean"]


def test_names_must_differ_in_more_than_the_form_of_their_accents(checkpoint, tmp_path, capsys):
    folders(tmp_path, pairs=2)
    names = ["\u00e9", "e\u0301"]
    rows = [f"fixed/00{n}.png,moving/00{n}.png,{name}" for n, name in enumerate(names, 1)]
    (tmp_path / "pairs.csv").write_text("\n".join(["fixed,moving,name", *rows]), encoding="utf-8")
    options = ["--modality", "CT", "--csv", str(tmp_path / "pairs.csv")]
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "002.png: expected a name that differs from \u00e9 in more than capitals or accents' forms" in line


def test_what_is_no_image_by_its_name_is_named(tmp_path, caplog):
    folder = Path(folders(tmp_path, pairs=1)[1])
    for name in ("Thumbs.db", ".hidden", "notes.txt"):
        (folder / name).write_bytes(b"x")
    list_images(folder)
    assert not caplog.messages
    (folder / "002.jp2").write_bytes(b"x")
    (folder / "003").symlink_to("nowhere")
    list_images(folder)
    assert caplog.messages == [f"{folder}: no images by their names, left out: 002.jp2, 003"]
