"""The documents keep step with the code: their commands, options, imports, links and pictures exist."""

import ast
import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/*.md", "[!.]*/README.md", "data/*/README.md")
DOCUMENTS = sorted(path for pattern in PLACES for path in ROOT.glob(pattern))
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")
PROGRAMS = {f"-m tools.{name}": f"tools.{name}" for name in TOOLS}
PROGRAMS |= {f"{name}.py": name for name in ("EDARFusion_train", "EDARFusion_test_val", "app")}
WITHOUT_IMPORT = {"app.py"}
"""Programs whose options are read from the source, as they need further packages."""
FOREIGN = {"--nproc_per_node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--shm-size", "--logdir", "--inplace",
           "--help"}  # fmt: skip
"""Options of torchrun, docker, TensorBoard and Jupyter, and the one that all programs have."""


@cache
def options_of(program: str) -> frozenset[str]:
    """The long options in the help of one of `PROGRAMS`, those of its sub-commands included."""
    if program in WITHOUT_IMPORT:
        return frozenset(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', (ROOT / program).read_text(encoding="utf-8")))
    text = help_of(program)
    sub_commands = re.search(r"^positional arguments:\n +\{([a-z,]+)\}", text, flags=re.M)
    texts = [text, *(help_of(program, name) for name in (sub_commands[1].split(",") if sub_commands else ()))]
    return frozenset(option for text in texts for option in re.findall(r"--[a-z][a-z-]*", text))


def help_of(program: str, *words: str) -> str:
    """What a program prints for --help."""
    module, printed = importlib.import_module(PROGRAMS[program]), io.StringIO()
    with patch("sys.argv", ["", *words, "--help"]), contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        module.main()
    return printed.getvalue()


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(document: Path) -> list[tuple[str, set[str]]]:
    """Program and long options of each command line of a document that runs one of `PROGRAMS`."""
    actual = []
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                own, _, passed_on = part.partition(" -- ")
                if named := re.search(r"-m tools\.\w+|\b(?:EDARFusion_\w+|app)\.py", own):
                    actual.append((named[0], long_options(own)))
                if passed_on:
                    actual.append(("EDARFusion_train.py", long_options(passed_on)))
    return actual


def long_options(command: str) -> set[str]:
    """The long options of a command line."""
    return {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")}


def anchors(document: Path) -> set[str]:
    """The fragments by which the headings of a document can be reached, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.*?) *$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestDocument:
    def test_its_commands_exist_with_their_options(self, document: Path) -> None:
        for program, options in commands(document):
            assert program in PROGRAMS
            assert not options - options_of(program) - FOREIGN, program

    def test_options_in_its_text_exist(self, document: Path) -> None:
        prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
        named = {option for code in re.findall(r"`([^`]+)`", prose) for option in re.findall(r"--[a-z][\w-]*", code)}
        assert not named - FOREIGN - frozenset().union(*map(options_of, PROGRAMS))

    def test_its_programs_and_python_names_exist(self, document: Path) -> None:
        text = document.read_text(encoding="utf-8")
        assert {f"-m {name}" for name in re.findall(r"-m (tools\.\w+)", text)} <= PROGRAMS.keys()
        for block in blocks(document, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    for name in (alias.name for alias in node.names):
                        assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")

    def test_its_links_lead_somewhere(self, document: Path) -> None:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if re.match(r"https?://", link):
                continue
            path, _, fragment = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), link
            assert not fragment or fragment in anchors(target), link

    def test_folders_and_files_of_the_code_that_it_names_exist(self, document: Path) -> None:
        named = re.findall(r"`((?:utils|data|models|evaluation|losses|inference|training|tools)/[\w/.]*)`",
                           document.read_text(encoding="utf-8"))
        missing = [path for path in named if not (ROOT / path).exists()]
        assert not missing
