"""utils/signals.py: signals set the event instead of breaking in, and do what they did before afterwards."""

import signal

import pytest

from utils.signals import STOPPING, stop_on_signal

KINDS = sorted(STOPPING)


@pytest.fixture(autouse=True)
def terminal():
    """A terminal that may hang up, however the tests were started."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_wishes_until_the_end_of_the_block(kind):
    before = signal.getsignal(kind)
    with stop_on_signal(second_breaks_in=False) as stop:
        assert not stop.is_set()
        signal.raise_signal(kind)
        assert stop.is_set()
        # Of torchrun and the terminal both: still no more than a wish.
        signal.raise_signal(kind)
    assert signal.getsignal(kind) is before


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_signal_breaks_in_where_it_may(kind):
    before, reached = signal.getsignal(kind), []
    with pytest.raises(KeyboardInterrupt), stop_on_signal(second_breaks_in=True):
        signal.raise_signal(kind)
        reached.append(1)
        signal.raise_signal(kind)
    assert reached and signal.getsignal(kind) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_closed_terminal_does_not_stop_what_nohup_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(second_breaks_in=True) as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
