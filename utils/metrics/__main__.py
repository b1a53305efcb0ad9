"""``python -m utils.metrics``: see `utils.scoring`."""

import sys

from utils.scoring import main

if __name__ == "__main__":
    sys.exit(main())
