"""utils/arguments.py: numbers from the command line, errors of one line, and output that any console takes."""

import argparse
import importlib
import io
import os
import subprocess
import sys

import pytest

import EDARFusion_test_val
from data.table import modality_name, split_name
from EDARFusion_train import parse_arguments
from tests.examples import REPOSITORY
from utils.arguments import natural, positive, positive_float, print_anywhere, share, side

COMMANDS = (
    "EDARFusion_train", "EDARFusion_test_val", "tools.make_csv", "tools.make_sample", "tools.misalign",
    "tools.score", "tools.apply_flow", "tools.benchmark", "tools.compare", "tools.export", "tools.publish",
    "tools.robustness",
)  # fmt: skip


def test_capitals_make_no_difference_to_names():
    assert [modality_name(text) for text in ("ct", "Pet", "SPECT", "ALL", "mr")] == ["CT", "PET", "SPECT", "all", "mr"]
    assert [split_name(text) for text in ("Val", "train", "TEST", "half")] == ["val", "train", "test", "half"]
    assert parse_arguments(["--modality", "pet", "--root", "r", "--epochs", "1"]).modality == "PET"


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (natural, "0", 0), (positive, "3", 3), (positive_float, "0.5", 0.5), (share, "1", 1.0), (side, "64", 64),
        (natural, "-1", None), (positive, "0", None), (positive_float, "inf", None), (positive_float, "nan", None),
        (share, "1.1", None), (share, "nan", None), (side, "63", None), (side, "6e4", None),
        (natural, "two", None), (positive, "1.5", None), (positive_float, "", None), (share, "half", None),
    ],
)  # fmt: skip
def test_numbers(kind, text, value):
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match=f"found '?{text}"):
            kind(text)
    else:
        assert kind(text) == value


def test_signs_that_a_console_lacks_do_not_end_the_program(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with pytest.raises(UnicodeEncodeError):
        print("1.0 → 2.0")
    print_anywhere()
    print("3.0 → 4.0", flush=True)
    assert b"3.0 ? 4.0" in written.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="closes outputs by a shell of POSIX")
def test_closed_outputs_lead_to_nowhere_and_not_into_results(tmp_path):
    code = ("import os, sys; from utils.arguments import print_anywhere; print_anywhere();"
            "result = open(sys.argv[1], 'w');"
            "print('out'); print('err', file=sys.stderr); os.write(1, b'C'); os.write(2, b'C'); result.write('result')")
    command = f'exec "{sys.executable}" -c "{code}" "{tmp_path / "result"}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=REPOSITORY).returncode == 0
    assert (tmp_path / "result").read_text() == "result"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--modalty", "--modality"), ("--batchsize=2", "--batch-size"), ("--device cpu --save_flow", "--save-flow"),
        ("--zebra", None), ("zebra", None), ("--mod XRAY", None), ("--modality XRAY --outptu out", "--output"),
    ],
)  # fmt: skip
def test_an_option_that_is_spelt_wrong_is_named_with_the_right_one(capsys, given, meant):
    with pytest.raises(SystemExit):
        EDARFusion_test_val.parse_arguments(given.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; is {meant} meant?") if meant else "meant" not in line


@pytest.mark.parametrize(
    ("given", "option"),
    [(["--fixed", "", "--moving", "m"], "--fixed"), (["--csv="], "--csv"), ([""], "the first argument")],
)
def test_an_empty_text_is_no_option_left_out(capsys, given, option):
    with pytest.raises(SystemExit):
        EDARFusion_test_val.parse_arguments(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"EDARFusion_test_val: {option}: expected a value, found an empty text (an unset variable?)"


def test_a_needed_option_that_is_spelt_wrong_is_named_too(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("tools.score").main(["--fixd", "a", "--reference", "b", "--fused", "c", "--csv", "d"])
    assert capsys.readouterr().err.endswith("are required: --fixed; is --fixed meant?\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_in_one_line_what_is_wrong(monkeypatch, capsys, name):
    main = importlib.import_module(name).main
    monkeypatch.setattr(sys, "argv", [name, "--nonsense"])
    with pytest.raises(SystemExit) as end:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    program = name if name.startswith("EDARFusion") else f"python -m {name}"
    assert end.value.code == 2 and line.startswith(f"{program}: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_anywhere(monkeypatch, name):
    main = importlib.import_module(name).main
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and output.errors == "replace"
