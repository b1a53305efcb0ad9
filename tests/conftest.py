"""Two processes share the tests (see pyproject.toml; ``-n 0`` for one): each computes on one thread."""

import os

# Before anything imports torch, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
