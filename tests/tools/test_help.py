"""What every command prints for --help and --version."""

import argparse
import importlib
from pathlib import Path

import pytest

from utils.arguments import VERSION, OneLineParser

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(f"tools.{path.stem}" for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")
COMMANDS = (*TOOLS, "EDARFusion_train", "EDARFusion_test_val")


def parsers_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parser of a command, followed by those of its sub-commands."""
    parsers = []

    def parse(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(OneLineParser, "parse_args", parse)
    with pytest.raises(SystemExit):
        importlib.import_module(command).main()
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    return parsers


@pytest.mark.parametrize("command", COMMANDS)
class TestHelp:
    def test_every_option_is_explained_in_words(self, command, monkeypatch):
        for parser in parsers_of(command, monkeypatch):
            for action in parser._actions:
                if isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
                    continue
                name = action.option_strings or action.dest
                text = (action.help or "").partition("(default")[0]
                assert len(text.split()) >= 3, (name, action.help)
                assert action.option_strings == [] or action.nargs == 0 or action.choices or action.metavar, name

    def test_it_fits_into_a_terminal(self, command, monkeypatch):
        for columns, widest in ((80, 92), (200, 102)):
            monkeypatch.setenv("COLUMNS", str(columns))
            for parser in parsers_of(command, monkeypatch):
                assert max(map(len, parser.format_help().splitlines())) <= widest

    def test_it_begins_with_what_the_command_does_and_shows_an_example(self, command, monkeypatch):
        description = parsers_of(command, monkeypatch)[0].description
        assert description.splitlines()[0].endswith(".") and description[0].isupper()
        program = f"python -m {command}" if command in TOOLS else f"python {command}.py"
        assert f"\n  {program} " in description or f"\n    {program} " in description

    def test_it_names_no_place_of_this_machine(self, command, monkeypatch):
        for parser in parsers_of(command, monkeypatch):
            text = parser.format_help()
            assert str(ROOT) not in text and str(Path.home()) not in text.replace("/root", str(Path.home()))

    def test_it_has_a_version(self, command, monkeypatch, capsys):
        for parser in parsers_of(command, monkeypatch):
            with pytest.raises(SystemExit, match="0"):
                argparse.ArgumentParser.parse_args(parser, ["--version"])
            assert capsys.readouterr().out == f"EDARFusion {VERSION}\n"
