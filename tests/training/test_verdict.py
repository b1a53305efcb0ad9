"""training/verdict.py and training/progress.py: what a user reads of a run, and when."""

import io
import logging
import math
import sys
from pathlib import Path

import pytest

from training.options import Options
from training.progress import Progress, log, show_log
from training.record import Record
from training.verdict import describe_validation, early_warning, verdict


def row(epoch: int, stage: str = "registration", **values: float) -> dict:
    """A row of the history with a validation; 4 px of zero flow."""
    return {"epoch": epoch, "stage": stage, "epe_CT": 2.0, "zero_CT": 4.0, "epe_PET": 3.0, "zero_PET": 4.0} | values


def ended(*rows: dict, stage: str = "registration", **options: str) -> tuple[str, str]:
    record = Record(Options(epochs=9, **options), stage, step=40, seconds=90.0, history=list(rows))
    return tuple("\n".join(lines) for lines in verdict(record, Path("runs/all-001"), broken_off=False))


def test_what_was_reached_is_said_against_zero_flow():
    messages, warnings = ended(row(9, score=0.625), stage="registration")
    assert "finished (40 steps, 1.5 minutes)" in messages and "runs/all-001" in messages
    assert "CT 2.00 px of 4.00, PET 3.00 px of 4.00" in messages and "38% below that of zero flow" in messages
    assert "weights to use" in messages and "last.safetensors" in messages
    assert "no step was left for fusion" in warnings


def test_a_run_that_ends_no_better_than_zero_flow_is_warned_of():
    messages, warnings = ended(row(9, epe_CT=4.1, epe_PET=4.2, score=1.04), stage="registration")
    assert "below that of zero flow" not in messages
    assert "no better than zero flow" in warnings and "do not use these weights" in warnings


@pytest.mark.parametrize(("scores", "used"), [
    ((0.5, 0.9), "best.safetensors, of epoch 1"), ((0.9, 0.5), "last.safetensors"), ((0.5, 0.505), "last.safetensors"),
    ((math.nan, 0.9), "last.safetensors"),
])  # fmt: skip
def test_best_or_last(scores, used):
    assert used in ended(*(row(n, score=x) for n, x in enumerate(scores, start=1)))[0]


def test_scores_of_another_stage_do_not_compare():
    messages, warnings = ended(row(3, score=0.1), row(9, "fusion", qabf_CT=0.5, score=0.5), stage="fusion")
    assert "last.safetensors" in messages and not warnings


@pytest.mark.parametrize(("share", "error", "warned"), [(0.1, 4.0, False), (0.5, 4.0, True), (0.5, 3.0, False)])
def test_a_registration_that_does_not_learn_is_warned_of_early(share, error, warned):
    assert bool(early_warning(row(5, epe_CT=error, epe_PET=error), share)) is warned


def test_a_validation_is_one_line_without_what_is_nothing():
    line = describe_validation(row(2, folding_CT=0.0, folding_PET=0.02, qabf_CT=0.5123, qabf_PET=0.7))
    assert "Q^AB/F: CT 0.512, PET 0.700" in line and line.endswith("folded pixels: PET 2.00%") and "\n" not in line


def test_a_file_gets_the_first_progress_at_once_and_then_now_and_then(monkeypatch, caplog):
    caplog.set_level(logging.INFO, log.name)
    now = 100.0
    monkeypatch.setattr("training.progress.time.monotonic", lambda: now)
    progress = Progress("registration", shown=True)
    seconds = []
    for now in range(101, 301):
        before = len(caplog.messages)
        progress.update(8, 0.5, 1.5)
        if len(caplog.messages) > before:
            seconds.append(now - 100)
    assert seconds == [1, 10, 30, 90, 150]
    assert caplog.messages[0].strip() == "registration, 50.0% of the run: loss 1.500, 8.0 pairs/s"
    Progress("registration", shown=False).update(8, 0.5, 1.5)
    assert len(caplog.messages) == 5


def test_a_log_that_nobody_reads_ends_no_training(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    show_log()
    log.info("first")
    log.warning("second")
