"""EDARFusion_train.py says at once that it starts, also into a pipe, whatever loading PyTorch takes."""

import os
import subprocess
import sys

from tests.examples import REPOSITORY


def start(*options: str, **variables: str) -> subprocess.Popen:
    line = [sys.executable, "EDARFusion_train.py", *options]
    return subprocess.Popen(line, cwd=REPOSITORY, env=os.environ | variables, stderr=subprocess.PIPE, text=True)


def test_the_first_line_comes_before_pytorch_is_loaded():
    with start("--root", "nowhere", "--epochs", "1") as process:
        try:
            assert process.stderr.readline() == "EDARFusion_train: loading PyTorch\n"
            assert process.poll() is None
        finally:
            process.kill()
