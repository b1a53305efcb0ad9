"""Shared parts of the command lines: default files, a parser with errors of one line, and types of arguments.

A type raises an error that argparse prints with the name of the option.
"""

import argparse
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from utils.imaging.colormaps import palette
from utils.imaging.images import MIN_SIDE

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "edarfusion.safetensors"
"""The weights that come with the project."""

SAMPLE_ROOT = Path(__file__).parents[1] / "data" / "sample"
"""The simulated pairs that come with the project, made by `tools.make_sample`."""

ENGINES = ("torch", "openvino-bf16")
"""Engines that can compute a network. All but torch need the package openvino (requirements-openvino.txt)."""

COLOR_MODES = ("keep", "luma")
"""How a fused image shows the tracer's colours: see `inference.pair_fuser.PairFuser`."""

FLOW_FORMATS = ("npy", "itk", "ants", "nifti")
"""How displacement fields are written: see `utils.imaging.flows`."""
DEVICES = ("auto", "cpu", "cuda", "mps")
"""Values of `--device`."""

VERSION = "0.1.0"
"""Version of the project, as `--version` of every command prints it."""


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal, to 100 columns at most. A paragraph with indented lines keeps its lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns - 2, 100))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width, break_on_hyphens=False)
            for paragraph in paragraphs
        )


class OneLineParser(argparse.ArgumentParser):
    """Parser with `--version`. Commands in its description keep their lines, its errors are one line without usage.

    An unknown option is named with the known one that is spelt most like it.
    """

    _texts: Sequence[str] = ()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _HelpFormatter} | settings)
        self.add_argument("--version", action="version", version=f"EDARFusion {VERSION}")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does, and keep what was given for `error`. An empty text is an error.

        An unset variable of a shell leaves one, which would otherwise count as not given.
        """
        self._texts = sys.argv[1:] if args is None else args
        for before, text in zip(("the first argument", *self._texts), self._texts, strict=False):
            if not text or re.fullmatch(r"--[\w-]+=", text):
                self.error(f"{text.rstrip('=') or before}: expected a value, found an empty text (an unset variable?)")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        names = [text[2:].partition("=")[0] for text in self._texts if text.startswith("--")]
        # Without its end an option is known as well.
        unknown = [option for option in names if not any(other.startswith(option) for other in known)]
        alike = [match for option in unknown for match in get_close_matches(option, known, 1, 0.7)]
        hint = f"; is --{alike[0]} meant?" if alike else ""
        self.exit(2, f"{self.prog}: {message}{hint}\n")


def add_checkpoint(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --checkpoint, by default the weights that come with the project."""
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, default=DEFAULT_CHECKPOINT,
                        help="checkpoint of the trained network (default: checkpoints/edarfusion.safetensors)")


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --device."""
    parser.add_argument("--device", choices=DEVICES, default="auto",
                        help="where to compute; auto takes a GPU if there is one (default: %(default)s)")


def add_workers(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --workers of the commands that score in several processes."""
    parser.add_argument("--workers", metavar="N", type=positive,
                        help="number of processes that score (default: one per core)")


def positive(text: str) -> int:
    """Parse a positive whole number."""
    return _number(text, int, "a whole number from 1", lambda value: value >= 1)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _number(text, int, "a whole number from 0", lambda value: value >= 0)


def share(text: str) -> float:
    """Parse a share from 0 to 1."""
    return _number(text, float, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, kind: type, expected: str, fits: Callable[[float], bool]) -> Any:
    """Parse a number of this kind that `fits`."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")
    return value


def side(text: str) -> int:
    """Parse the height or width of an image, px; raise `ArgumentTypeError` for another text."""
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected a side of at least {MIN_SIDE} px, found {text!r}")
    return int(text)


def colormap_name(text: str) -> str:
    """Check the name of a colour scale; raise `ArgumentTypeError` for another text."""
    try:
        palette(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def print_anywhere() -> None:
    """Print ? for characters that the output cannot encode, such as an arrow in a log file on Windows.

    Outputs that are closed, as ``>&- 2>&-`` leaves them, lead to nowhere from now on.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a result would take the number of a closed output, and what libraries print would go into it
    os.close(number)
    sys.stdout, sys.stderr = (
        open(number, "w") if stream is None else stream for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
