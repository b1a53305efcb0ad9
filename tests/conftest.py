"""Two processes share the tests (see pyproject.toml; ``-n 0`` for one): each computes on one thread."""

import logging
import os
import threading
from collections.abc import Iterator

import pytest

# Before anything imports torch, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_log(monkeypatch) -> Iterator[None]:
    """Take back how a test's commands log, so that no later test writes to a stream that is closed."""
    # Set to itself, so that it is restored whatever the test sets.
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    logs = [logging.getLogger(name) for name in ("EDARFusion", "EDARFusion.training")]
    states = [(list(log.handlers), log.level, log.propagate, log.disabled) for log in logs]
    yield
    for log, (handlers, level, propagate, disabled) in zip(logs, states, strict=True):
        log.handlers, log.propagate, log.disabled = handlers, propagate, disabled
        log.setLevel(level)
