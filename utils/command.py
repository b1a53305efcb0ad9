"""How the work of a command ends: with an exit status, and with one line where it failed for a reason to be mended."""

import sys
from collections.abc import Callable

from utils.files import FULL, InputError, MachineError
from utils.signals import INTERRUPTED, READER_GONE, stop_printing


def run_command(program: str, work: Callable[..., int | None], *arguments: object, hint: str = "") -> int:
    """Do the work of a command and return its exit status.

    Args:
        program: name that messages begin with.
        work: is called with `arguments`; returns the exit status, or None for 0.
        arguments: of the work.
        hint: follows "interrupted", to say how the work goes on.

    Returns:
        The status of the work; 2 after an `InputError`; 130 after Ctrl-C; 1 after a `MachineError`, if a disk or the
        shared memory is full, or if whoever read the output is gone.
    """
    try:
        return work(*arguments) or 0
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1 if isinstance(error, MachineError) else 2
    except OSError as error:
        if error.errno in FULL:
            place = error.filename or "the output, the temporary folder or /dev/shm (shared memory of processes)"
            print(f"{program}: {place}: expected room to write, found {error.strerror}", file=sys.stderr)
        elif error.errno in READER_GONE:
            stop_printing()
        else:
            raise
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
