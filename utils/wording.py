"""Numbers and lists in messages, and what several of them say."""

from collections.abc import Sequence

OTHER_RENDERING = "luma is compared with another rendering, so that rmse, ssim and ncc say little"
"""What is wrong with scoring a grey image against a coloured one."""


def counted(number: int, what: str) -> str:
    """A number with its noun, singular or plural."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
