"""What a training has reached: figures for the log, a warning where nothing is learned, and which weights to use."""

import math
from collections.abc import Mapping
from pathlib import Path

from training.record import Record
from utils.messages import counted

Row = Mapping[str, float | str]

UNLEARNED = 0.98
"""Mean endpoint error, as a share of zero flow's, above which nothing has been learned."""

EARLY = 0.25
"""Share of the registration stage after which something should have been learned."""

AS_GOOD = 1.02
"""The last weights are as good as the best ones up to this ratio of their scores."""


def relative_error(row: Row) -> float:
    """Average the endpoint error, as a share of zero flow's, over the modalities."""
    kinds = _modalities(row)
    return sum(row[f"epe_{kind}"] / row[f"zero_{kind}"] for kind in kinds) / len(kinds)


def describe_losses(row: Row) -> str:
    """Describe an epoch of training in one line."""
    return f"{row['stage']}, epoch {row['epoch']}, {row['minutes']:.1f} minutes: loss {row['total']:.4g}"


def describe_validation(row: Row) -> str:
    """Describe a validation in one line: errors beside those of zero flow."""
    kinds = _modalities(row)
    parts = [f"{kind} {row[f'epe_{kind}']:.2f} px of {row[f'zero_{kind}']:.2f}" for kind in kinds]
    line = f"  validation, endpoint error beside that of zero flow: {', '.join(parts)}"
    quality = [f"{kind} {row[f'qabf_{kind}']:.3f}" for kind in kinds if f"qabf_{kind}" in row]
    if quality:
        line += f"; Q^AB/F: {', '.join(quality)}"
    folded = [f"{kind} {row[f'folding_{kind}']:.2%}" for kind in kinds if row.get(f"folding_{kind}", 0) > 0]
    return line + (f"; folded pixels: {', '.join(folded)}" if folded else "")


def early_warning(row: Row, share: float) -> str | None:
    """Warn about a registration that does not learn.

    Args:
        row: validation of the registration stage.
        share: share of the stage that is done.
    """
    if share < EARLY or relative_error(row) < UNLEARNED:
        return None
    return (
        f"after {share:.0%} of the registration the endpoint error is still that of zero flow. Are the pairs truly "
        "aligned, and is the run long enough? See docs/training.md"
    )


def verdict(record: Record, folder: Path, broken_off: bool) -> tuple[list[str], list[str]]:
    """Say how a run ended.

    Args:
        record: of the run.
        folder: of the run.
        broken_off: whether it was broken off.

    Returns:
        Messages and warnings.
    """
    messages, warnings = [], []
    length = f"{counted(record.step, 'step')}, {record.seconds / 60:.1f} minutes"
    if broken_off:
        return [f"broken off ({length}); go on with --resume {folder}"], []
    messages.append(f"finished ({length}): {folder}")
    # A stage that made steps has a row, that of an epoch's end or of its own.
    trained = {row["stage"] for row in record.history}
    if idle := [stage for stage in record.options.plan if stage not in trained]:
        stages = " and ".join(idle)
        warnings.append(f"no step was left for {stages}, still as the run began; a longer run trains all stages")
    rows = [row for row in record.history if "score" in row and row["stage"] == record.stage]
    if not rows:
        return messages, warnings
    last = rows[-1]
    messages.append(describe_validation(last).strip())
    error = relative_error(last)
    if error < 1:
        messages.append(f"the endpoint error is {1 - error:.0%} below that of zero flow, which aligns nothing")
    else:
        warnings.append("the registration is no better than zero flow, which aligns nothing: do not use these weights. "
                        "Train longer, or see docs/training.md")  # fmt: skip
    best = min((row for row in rows if not math.isnan(row["score"])), key=lambda row: row["score"], default=last)
    if last["score"] <= AS_GOOD * best["score"]:
        messages.append(f"weights to use: {folder / 'last.safetensors'}")
    else:
        messages.append(f"weights to use: {folder / 'best.safetensors'}, of epoch {best['epoch']}; the validation was "
                    "worse at the end")  # fmt: skip
    return messages, warnings


def _modalities(row: Row) -> list[str]:
    return [name.removeprefix("epe_") for name in row if name.startswith("epe_")]
