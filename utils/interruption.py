"""Ctrl-C and SIGTERM as a wish that is granted at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal(second_breaks_in: bool) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event instead of breaking in anywhere.

    Args:
        second_breaks_in: a second one raises KeyboardInterrupt. Not under torchrun, which passes Ctrl-C on to processes
            that have it already.
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
