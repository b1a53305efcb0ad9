"""Numbers from the command line, as `type` of an argument: what is out of range is named in argparse's own message."""

import argparse


def positive(text: str) -> int:
    """A positive whole number from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, found {text}")
    return value


def share(text: str) -> float:
    """A share from the command line."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return float(text)
