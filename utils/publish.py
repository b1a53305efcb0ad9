"""Weights for passing on: a run's checkpoint in half precision, without its training state and without your paths.

python -m utils.publish runs/all-001/last.safetensors mine.safetensors --average --passes 2
"""

import argparse
import os
import sys
from pathlib import Path

from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.image_io import ImageError
from utils.metrics import positive

PATHS = ("root", "csv", "output", "resume", "init")
"""Options of a training run that name places on the machine where it ran."""


def publish(
    source: str | os.PathLike, target: str | os.PathLike, average: bool | None = None, passes: int | None = None
) -> None:
    """Write the model of a checkpoint, with how it was trained, small enough to pass on.

    Weights go to float16 on disk, which moves displacements by some thousandths of a pixel; they come back as float32.

    Args:
        source: checkpoint of a training run.
        target: file to write.
        average: whether the test command is to average the estimates of both directions and of the mirrored pair;
            None leaves it as the source says.
        passes: how often it is to make the registration; None leaves it as the source says.

    Raises:
        CheckpointError: the source cannot be used, or is the target.
        ImageError: the target cannot be written.
    """
    checkpoint = load_checkpoint(source)
    if Path(target).exists() and Path(target).samefile(source):
        raise CheckpointError.at(target, "another file than the run's own, which --resume needs", "the same")
    known = checkpoint.training
    training = {name: known[name] for name in ("step", "seconds", "history") if name in known}
    options = known.get("options", {})
    training["options"] = {name: value for name, value in options.items() if name not in PATHS}
    wanted = {"average": average, "passes": passes}
    inference = known.get("inference", {}) | {name: value for name, value in wanted.items() if value is not None}
    if inference:
        training["inference"] = inference
    model = checkpoint.model.half()
    save_checkpoint(target, model, modality=checkpoint.modality, training=training, metrics=checkpoint.metrics)


def main(arguments: list[str] | None = None) -> int:
    """``python -m utils.publish``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("source", metavar="CHECKPOINT", help="of a training run")
    parser.add_argument("target", metavar="FILE", help="to write")
    parser.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        help="what the test command does by default with these weights (default: as the checkpoint says)",
    )
    parser.add_argument("--passes", type=positive, metavar="N", help="likewise")
    options = parser.parse_args(arguments)
    try:
        publish(options.source, options.target, options.average, options.passes)
    except ImageError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"{options.target}: {Path(options.target).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
