"""Ctrl-C, SIGTERM and a closed terminal that end the work at the next good moment; a reader that went away."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as in shells."""


STOPPING = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
"""Signals by which a user, the system or a terminal that is closed asks a command to end."""

READER_GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a pipe that nobody reads any more, and to a terminal that was closed."""


def leave_signals_to_parent(worker: int) -> None:
    """Ignore `STOPPING` in a worker of a DataLoader (`worker_init_fn`).

    The parent saves first. If a signal killed the worker, the parent would fail before it has saved.
    """
    for kind in STOPPING:
        signal.signal(kind, signal.SIG_IGN)


@contextmanager
def stop_on_signal(second_breaks_in: bool) -> Iterator[threading.Event]:
    """Make `STOPPING` set an event instead of interrupting the code; what `nohup` started outlives its terminal.

    Args:
        second_breaks_in: a second signal raises KeyboardInterrupt. False under torchrun, which passes Ctrl-C on to
            processes that got it from the terminal already.
    """
    stop = threading.Event()

    def request(*_: object) -> None:
        if stop.is_set() and second_breaks_in:
            raise KeyboardInterrupt
        stop.set()

    # A shell has jobs in the background ignore Ctrl-C too; a signal that is sent to them is meant all the same.
    hangup = getattr(signal, "SIGHUP", None)
    heard = [kind for kind in STOPPING if kind != hangup or signal.getsignal(kind) is not signal.SIG_IGN]
    before = {kind: signal.signal(kind, request) for kind in heard}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def stop_printing() -> None:
    """Print nowhere from now on: whoever read the output is gone, and Python would complain of that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
