"""utils/arguments.py: numbers from the command line, errors of one line, and output that any console takes."""

import argparse
import importlib
import io
import sys

import pytest

from data.table import modality_name, split_name
from EDARFusion_train import parse_arguments
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
