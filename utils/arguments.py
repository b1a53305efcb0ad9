"""What command lines share: the weights and the sample that come with the project, a parser of few words, names and
numbers as `type` of an argument, and output that any console takes.

What is out of range is named in argparse's own message.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import NoReturn

from utils.imaging.images import MIN_SIDE

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "edarfusion.safetensors"
"""The weights that come with the project."""

SAMPLE_ROOT = Path(__file__).parents[1] / "data" / "sample"
"""The simulated pairs that come with the project, made by `tools.make_sample`."""

ENGINES = ("torch", "openvino", "openvino-bf16")
"""What a network can be computed with; the others than torch need the package openvino."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """A positive whole number from the command line."""
    return _whole(text, 1)


def positive_float(text: str) -> float:
    """A finite number above 0 from the command line."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return float(text)


def natural(text: str) -> int:
    """A whole number from 0 from the command line."""
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"expected a number from {low}, found {text}")
    return value


def side(text: str) -> int:
    """A height or width that images may have, px, from the command line."""
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected a side of at least {MIN_SIDE} px, found {text!r}")
    return int(text)


def share(text: str) -> float:
    """A share from the command line."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return float(text)


def print_anywhere() -> None:
    """From now on print ? for a sign that the output's encoding lacks, such as an arrow in a log file on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
