"""Kill the training script at random moments and resume it each time: the end must be that of an uninterrupted run.

    python -m tests.kill_training --kills 20
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.examples import ONE_THREAD, REPOSITORY, SAMPLE, sample_table

SHORT = (
    "--preset", "tiny", "--batch-size", "2", "--epochs", "4", "--val-every", "2", "--save-minutes", "0.001",
    "--second-pass", "0.4", "--dropout", "0.2", "--own-offset", "0.7", "--fusion-share", "0.4",
)  # fmt: skip
"""Options of a run of 8 steps of registration and 4 of fusion, 3 an epoch, that saves after about every step."""


class StopAfter(threading.Event):
    """Breaks a run off after some steps, as Ctrl-C would: the run asks once before each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def command(table: Path, *options: str | Path, processes: int = 1) -> list[str]:
    """Command line of a training run on the sample, on the CPU: sums on a GPU differ in their last bits, too."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    data = ("--csv", table, "--root", SAMPLE, "--device", "cpu")
    return [*start, str(REPOSITORY / "EDARFusion_train.py"), *map(str, (*data, *options))]


def resume(folder: Path) -> list[str]:
    """Command line that goes on with a run."""
    return [sys.executable, str(REPOSITORY / "EDARFusion_train.py"), "--resume", str(folder)]


def kill_and_resume(line: list[str], folder: Path, kills: int, seed: int) -> int:
    """Start a run, kill it at random moments after its first checkpoint, resume each time; returns the kills made."""
    generator = random.Random(seed)
    made = 0
    while True:
        process = subprocess.Popen(
            line, cwd=REPOSITORY, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if made == kills:
            errors = process.communicate(timeout=500)[1]
            assert process.returncode == 0, errors[-2000:]
            return made
        before = progress(folder)
        while process.poll() is None and progress(folder) == before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.4))
        if process.poll() is not None:
            return made
        process.kill()
        process.wait()
        made += 1
        line = resume(folder)


def progress(folder: Path) -> int:
    """Steps in the last checkpoint of a run, -1 before there is one; nothing but its metadata is read."""
    path = folder / "last.safetensors"
    if not path.exists():
        return -1
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["training"])["step"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=30, help="length of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = sample_table(Path(name, "pairs.csv"))
        whole, killed = Path(name, "whole"), Path(name, "killed")
        length = (*SHORT, "--epochs", str(options.epochs))
        line = command(table, "--output", whole, *length)
        subprocess.run(line, cwd=REPOSITORY, env=ONE_THREAD, check=True, stdout=subprocess.DEVNULL)
        made = kill_and_resume(command(table, "--output", killed, *length), killed, options.kills, options.seed)
        first, second = (load_file(folder / "last.safetensors") for folder in (whole, killed))
        differing = [name for name in first if not torch.equal(first[name], second[name])]
    print(f"{made} kills; {len(first) - len(differing)} of {len(first)} tensors equal those of the uninterrupted run")
    return 1 if differing or made < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
