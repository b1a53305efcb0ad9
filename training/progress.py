"""What a training tells its user: a log on the standard output and the progress within a stage."""

import logging
import os
import sys
import threading
import time

from tqdm import tqdm

log = logging.getLogger("EDARFusion.training")
"""Messages of the training; silent below warnings until `show_log`."""

FIRST_LINES = (0.0, 10.0, 30.0)
"""Seconds after which a log file gets its first lines of progress; afterwards it gets one every `SECONDS`."""
SECONDS = 60.0


class _AboveBars(logging.Handler):
    """Print messages on the standard output, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record))
            sys.stdout.flush()
        except OSError:
            # Nobody reads any more (a closed pipe or terminal). That is no reason to lose the training.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class _Plain(logging.Formatter):
    """The message alone, with the level before a warning."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


def show_log() -> None:
    """Print the messages of the training from now on."""
    handler = _AboveBars()
    handler.setFormatter(_Plain())
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    threading.excepthook = _leave_out_lost_files


def _leave_out_lost_files(arguments: threading.ExceptHookArgs) -> None:
    """Print what ends a thread, but for the OSError of TensorBoard's: the run folder says that in a line."""
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


class Progress:
    """Progress within a stage: a bar on a terminal, otherwise a line in the log now and then.

    Args:
        stage: name of the stage.
        shown: False in all processes but the first.
    """

    def __init__(self, stage: str, shown: bool) -> None:
        self.stage = stage
        self.bar = tqdm(desc=stage, unit="pair", disable=None if shown else True, dynamic_ncols=True)
        self.in_log = shown and self.bar.disable
        self.began, self.lines, self.pairs, self.next_line = time.monotonic(), 0, 0, 0.0

    def update(self, pairs: int, done: float, loss: float) -> None:
        """Count the pairs of one step.

        Args:
            pairs: number of pairs.
            done: share of the run, 0 to 1.
            loss: latest total loss.
        """
        self.bar.update(pairs)
        self.bar.set_postfix(loss=f"{loss:.3f}", done=f"{done:.1%}", refresh=False)
        self.pairs += pairs
        seconds = time.monotonic() - self.began
        if self.in_log and seconds >= self.next_line:
            log.info(f"  {self.stage}, {done:.1%} of the run: loss {loss:.3f}, {self.pairs / seconds:.1f} pairs/s")
            self.lines += 1
            self.next_line = FIRST_LINES[self.lines] if self.lines < len(FIRST_LINES) else seconds + SECONDS

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
