"""Shared parts of the command lines: default files, a parser with errors of one line, and types of arguments.

A type raises an error that argparse prints with the name of the option.
"""

import argparse
import io
import shutil
import sys
import textwrap
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
    """Parser with `--version`. Commands in its description keep their lines, its errors are one line without usage."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _HelpFormatter} | settings)
        self.add_argument("--version", action="version", version=f"EDARFusion {VERSION}")

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


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
    return _whole(text, 1)


def positive_float(text: str) -> float:
    """Parse a finite number above 0; raise `ArgumentTypeError` or `ValueError` for another text."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return float(text)


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"expected a number from {low}, found {text}")
    return value


def side(text: str) -> int:
    """Parse the height or width of an image, px; raise `ArgumentTypeError` for another text."""
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected a side of at least {MIN_SIDE} px, found {text!r}")
    return int(text)


def share(text: str) -> float:
    """Parse a share from 0 to 1; raise `ArgumentTypeError` for another text."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return float(text)


def colormap_name(text: str) -> str:
    """Check the name of a colour scale; raise `ArgumentTypeError` for another text."""
    try:
        palette(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def print_anywhere() -> None:
    """Print ? for characters that the output cannot encode, such as an arrow in a log file on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
