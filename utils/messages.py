"""Numbers and lists in messages, and what several of them say."""

import sys
from collections.abc import Sequence

from utils.processes import rank

PROGRAM = "EDARFusion_test_val"


OTHER_RENDERING = "luma is compared with another rendering, so that rmse, ssim and ncc say little"
"""What is wrong with scoring a grey image against a coloured one."""


def counted(number: int, what: str) -> str:
    """A number with its noun, singular or plural."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Lines of a Markdown table; the first column stands left, the others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def say(what: str) -> None:
    """What is no error but should be known; once, however many processes there are."""
    if rank() == 0:
        print(f"{PROGRAM}: {what}", file=sys.stderr)
