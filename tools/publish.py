"""Write weights to pass on: a checkpoint in half precision, without training state and without paths of this machine.

    python -m tools.publish runs/all-001/last.safetensors mine.safetensors \\
        --average --passes 2
    python -m tools.publish runs/all-002/last.safetensors mine.safetensors \\
        --blend mine_before.safetensors --share 0.5
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from utils.arguments import OneLineParser, positive, print_anywhere, share
from utils.command import run_command
from utils.files import check_inputs_stay

PATHS = ("root", "csv", "output", "resume", "init", "teacher")
"""Options of a training run that name places on the machine where it ran."""


def publish(
    source: str | os.PathLike,
    target: str | os.PathLike,
    average: bool | None = None,
    passes: int | None = None,
    blend: tuple[str | os.PathLike, float] | None = None,
) -> None:
    """Write the model of a checkpoint, with how it was trained, small enough to pass on.

    Weights go to float16 on disk, which moves displacements by some thousandths of a pixel; they come back as float32.

    Args:
        source: checkpoint of a training run.
        target: file to write.
        average: whether the test command is to average the estimates of both directions and of the mirrored pair;
            None leaves it as the source says.
        passes: how often it is to make the registration; None leaves it as the source says.
        blend: another checkpoint of the same network and the share, 0 to 1, with which its weights count. The mean of
            a network and the one it was trained from (`--init`) can be better than both, as each has learned other
            pairs by heart (Wortsman et al., Model soups, ICML 2022).

    Raises:
        CheckpointError: the source or the one to blend in cannot be used, or they differ in their networks.
        FileError: the target cannot be written, or is one of the two.
    """
    check_inputs_stay([source, *([blend[0]] if blend else [])], [target], "another FILE")
    checkpoint = load_checkpoint(source)
    known = checkpoint.training
    training = {name: known[name] for name in ("step", "seconds", "history", "expected_error") if name in known}
    options = known.get("options", {})
    training["options"] = {name: value for name, value in options.items() if name not in PATHS}
    settings = {"average": average, "passes": passes}
    inference = known.get("inference", {}) | {name: value for name, value in settings.items() if value is not None}
    if inference:
        training["inference"] = inference
    metrics = checkpoint.metrics
    if blend:
        blend_in(checkpoint, *blend)
        metrics = {}  # they were those of the source
    save_checkpoint(target, checkpoint.model.half(), modality=checkpoint.modality, training=training, metrics=metrics)


def blend_in(checkpoint: Checkpoint, path: str | os.PathLike, portion: float) -> None:
    """Move the weights of a checkpoint's model towards those of another one, by a share of the way.

    Raises:
        CheckpointError: the other one cannot be read, or is of another network.
    """
    other = load_checkpoint(path).model
    if other.arguments != checkpoint.model.arguments:
        raise CheckpointError.at(path, f"a network with {checkpoint.model.arguments}", f"one with {other.arguments}")
    weights = zip(checkpoint.model.parameters(), other.parameters(), strict=True)
    with torch.no_grad():
        for weight, target in weights:
            weight.lerp_(target, portion)


def run(options: argparse.Namespace) -> None:
    """Write the weights and say how large the file is.

    Raises:
        FileError: as `publish`.
    """
    blend = (options.blend, 0.5 if options.share is None else options.share) if options.blend else None
    publish(options.source, options.target, options.average, options.passes, blend)
    print(f"{options.target}: {Path(options.target).stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.publish``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.publish", description=__doc__)
    parser.add_argument("source", metavar="CHECKPOINT", help="checkpoint of a training run")
    parser.add_argument("target", metavar="FILE", help="file to write")
    parser.add_argument("--average", action=argparse.BooleanOptionalAction,
                        help="whether the test command averages estimates (default: that of the checkpoint)")
    parser.add_argument("--passes", type=positive, metavar="N",
                        help="number of registrations that the test command makes (default: that of the checkpoint)")
    parser.add_argument("--blend", metavar="FILE",
                        help="second checkpoint, whose weights are averaged with those of the first one")
    parser.add_argument("--share", type=share, metavar="SHARE",
                        help="weight of the second checkpoint, 0 to 1 (default: 0.5)")
    options = parser.parse_args(arguments)
    if options.share is not None and not options.blend:
        parser.error("--share: expected --blend FILE with it, found none")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
