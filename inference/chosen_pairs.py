"""List the pairs of images for the test command, from folders or a table, and check them.

Nothing here imports torch: errors in the input and the number of pairs are printed before it is loaded.
"""

from dataclasses import replace
from pathlib import Path

from data.pairs import PairFiles, folder_pairs, sample_pairs, table_pairs
from inference.checks import check_pairs
from inference.modality import guess_of_images
from inference.options import Options
from utils.files import InputError
from utils.imaging.volumes import check_no_volumes
from utils.messages import counted, log

Chosen = dict[str, list[PairFiles]]
"""Modality -> pairs."""


def choose_pairs(options: Options) -> tuple[Chosen, list[str]]:
    """Find the pairs of images that the options name and check them.

    Returns:
        The pairs that can be used; and what --keep-going has left out, and why.

    Raises:
        InputError: pairs that cannot be found or used.
    """
    left_out: list[str] = []
    return check_chosen(options, find_pairs(options, left_out), left_out)


def find_pairs(options: Options, left_out: list[str]) -> Chosen:
    """List the pairs that the options name, by modality. With --keep-going, `left_out` gets the incomplete ones."""
    skipped = left_out if options.keep_going else None
    if options.is_sample:
        return sample_pairs(options.modality)
    if options.fixed:
        folders = options.fixed, options.moving, options.label
        marks = options.marks
        check_no_volumes(filter(None, (*folders, *(marks[role] for role in marks if "landmarks" not in role))))
        chosen = folder_pairs(options.modality, *folders, skipped, **marks)
    else:
        root = options.root or Path(options.csv).parent
        chosen = table_pairs(options.csv, root, options.modality, options.split, skipped)
        images = (pair.paths for pairs in chosen.values() for pair in pairs)
        check_no_volumes(path for paths in images for role, path in paths.items() if role != "flow")
    if chosen.get("all"):  # neither an option nor a table says
        chosen = {guess_of_images([pair.moving for pair in chosen["all"]]): chosen["all"]}
    return _to_be_fitted(chosen) if options.fit == "heads" else chosen


def check_chosen(options: Options, chosen: Chosen, left_out: list[str]) -> tuple[Chosen, list[str]]:
    """Check all pairs, and add what --keep-going leaves out to what is left out already.

    Raises:
        InputError: without --keep-going, for the first pair that cannot be used; with it, if none is left.
    """
    checked = {modality: check_pairs(pairs, modality, options.keep_going) for modality, pairs in chosen.items()}
    reasons = left_out + [reason for _, unreadable in checked.values() for reason in unreadable]
    if not any(pairs for pairs, _ in checked.values()):
        say_what_is_left_out(reasons)
        raise InputError("expected at least one pair that can be used, found none")
    return {modality: pairs for modality, (pairs, _) in checked.items()}, reasons


def say_what_is_left_out(reasons: list[str]) -> None:
    """Say what --keep-going has left out, and why, a line each."""
    for reason in reasons:
        log.warning(f"left out: {reason}")


def counted_pairs(chosen: Chosen) -> str:
    """Say how many pairs there are, such as "CT 1 pair, PET 3 pairs"."""
    return ", ".join(f"{modality} {counted(len(pairs), 'pair')}" for modality, pairs in chosen.items())


def _to_be_fitted(chosen: Chosen) -> Chosen:
    return {modality: [replace(pair, fit=True) for pair in pairs] for modality, pairs in chosen.items()}
