"""Ctrl-C and SIGTERM that end the work at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as in shells."""


def leave_signals_to_parent(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a worker of a DataLoader (`worker_init_fn`).

    The parent saves first. If a signal killed the worker, the parent would fail before it has saved.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


@contextmanager
def stop_on_signal(second_breaks_in: bool) -> Iterator[threading.Event]:
    """Make Ctrl-C and SIGTERM set an event instead of interrupting the code.

    Args:
        second_breaks_in: a second signal raises KeyboardInterrupt. False under torchrun, which passes Ctrl-C on to
            processes that got it from the terminal already.
    """
    stop = threading.Event()

    def request(*_: object) -> None:
        if stop.is_set() and second_breaks_in:
            raise KeyboardInterrupt
        stop.set()

    before = {kind: signal.signal(kind, request) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
