"""EDARFusion_train.py says at once that it starts, also into a pipe, whatever loading PyTorch takes."""

import subprocess
import sys

from tests.examples import REPOSITORY


def test_the_first_line_comes_before_pytorch_is_loaded():
    line = [sys.executable, "EDARFusion_train.py", "--root", "nowhere", "--epochs", "1"]
    with subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == "EDARFusion_train: loading PyTorch\n"
            assert process.poll() is None
        finally:
            process.kill()
