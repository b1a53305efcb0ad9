"""What the project says on stderr beside its results: numbers and lists in messages, and the log that they go to."""

import logging
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

from utils.processes import rank

Item = TypeVar("Item")

PATIENCE = 5.0
"""Seconds of work after which a log file is told how far it is."""

log = logging.getLogger("EDARFusion")
"""For what is no error but should be known. Silent until a command calls `show_messages`, apart from warnings."""

OTHER_RENDERING = "luma is compared with another rendering, so that rmse, ssim and ncc say little"
"""What is wrong with scoring a grey image against a coloured one."""


def show_messages(program: str) -> None:
    """Print what is logged to stderr from now on, a line each behind the name of the program.

    Of several processes that torchrun has started only the first one speaks.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{program}: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.disabled = rank() > 0


def with_progress(items: Iterable[Item], text: str, unit: str = "pair") -> Iterable[Item]:
    """Show how far a loop is: on a terminal as a bar that goes again, in a log every 5 s if it takes that long."""
    waits = {} if sys.stderr.isatty() else {"delay": PATIENCE, "mininterval": PATIENCE}
    return tqdm(items, desc=text, unit=unit, leave=False, disable=rank() > 0, dynamic_ncols=True, **waits)


def counted(number: int, noun: str) -> str:
    """Put a number before its noun, singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Join the first five names of a list that may be long, and say how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def printable(text: str) -> str:
    """Put ? in place of what cannot be written as UTF-8, such as parts of a file name in another encoding."""
    return text.encode(errors="replace").decode()


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
