"""Write a trained network as an ONNX file for images of one size, and check it with onnxruntime.

    python -m tools.export --output edarfusion.onnx --size 256 256

Inputs of the graph are `fixed` and `moving`, float32 (1, 1, H, W) in [0, 1]. Outputs are `fused` and `aligned`
(1, 1, H, W) and `flow` (1, 2, H, W) in px: aligned(p) = moving(p + flow(p)), channel 0 is x. Passes and averaging are
those of the checkpoint by default. Needs the packages onnx, onnxscript and onnxruntime.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load_checkpoint
from models.edarfusion import AtSettings
from utils.arguments import SAMPLE_ROOT, OneLineParser, natural, print_anywhere, side
from utils.command import run_command
from utils.files import FileError, InputError, check_inputs_stay, write_bytes
from utils.imaging.images import read_image

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = {"fused": 1e-4, "aligned": 1e-4, "flow": 1e-3}
"""Largest accepted difference between the file's outputs and the network's: grey value in [0, 1], px of flow.

Rounding alone moves the flow by some 1e-4 px, as another number of threads does."""


class Exported(NamedTuple):
    """Outputs of the graph, in its order."""

    fused: Tensor
    aligned: Tensor
    flow: Tensor


def to_onnx(graph: AtSettings, size: tuple[int, int], metadata: dict[str, str] | None = None) -> bytes:
    """Convert a network to an ONNX file for images of one size.

    Args:
        graph: what it is to compute, with the outputs of `Exported`.
        size: height and width, from `MIN_SIDE` up.
        metadata: name -> text that is kept in the file.
    """
    pair = tuple(torch.rand(2, 1, 1, *size, generator=torch.Generator().manual_seed(0)))
    # The exporter warns of its own deprecated calls and of operators of packages that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, pair, dynamo=True, verbose=False, input_names=["fixed", "moving"],
            output_names=list(Exported._fields),
        )  # fmt: skip
    program.model.metadata_props.update(metadata or {})
    return program.model_proto.SerializeToString()


def run_onnx(data: bytes, fixed: Tensor, moving: Tensor) -> Exported:
    """Run an ONNX file of `to_onnx` by onnxruntime on the CPU, on images (1, 1, H, W) in [0, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    outputs = session.run(list(Exported._fields), {"fixed": fixed.numpy(), "moving": moving.numpy()})
    return Exported(*map(torch.from_numpy, outputs))


def sample_pair(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Read a pair of the embedded sample as (1, 1, *size). Noise instead would magnify the rounding to be compared."""
    paths = (SAMPLE_ROOT / "CT" / role / "simulated_090.png" for role in ("fixed", "moving"))
    images = (torch.from_numpy(read_image(path))[None, None] for path in paths)
    return tuple(F.interpolate(image, size, mode="bilinear", antialias=True) for image in images)


@contextmanager
def accurate_means(model: nn.Module) -> Iterator[None]:
    """Make the network normalise groups of channels from copies in the memory order that PyTorch averages accurately.

    As convolutions leave them, PyTorch on a CPU adds up their values one by one, the longer the fewer its threads. What
    that rounds off grows to more than the 1e-4 of a grey value that an exported file is allowed to differ by.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous()) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_differences(data: bytes, graph: AtSettings, fixed: Tensor, moving: Tensor) -> dict[str, float]:
    """Measure the largest difference of each output between the ONNX file and the network: grey value, or px.

    Args:
        data: the ONNX file.
        graph: the network.
        fixed, moving: (B, 1, H, W) in [0, 1].
    """
    with torch.inference_mode(), accurate_means(graph):
        expected = graph(fixed, moving)
    exported = run_onnx(data, fixed, moving)
    return {name: (a - b).abs().max().item() for name, a, b in zip(Exported._fields, exported, expected, strict=True)}


def export(options: argparse.Namespace) -> None:
    """Write the ONNX file of the options and say how far it differs from the network.

    Raises:
        InputError: a package is missing, the checkpoint cannot be used, or the outputs differ by more than `TOLERANCE`.
    """
    size = tuple(options.size)
    check_inputs_stay([options.checkpoint], [options.output], "--output FILE")
    checkpoint = load_checkpoint(options.checkpoint)
    settings = checkpoint.inference(options.passes, options.average)
    graph = AtSettings(checkpoint.model, **settings, names=Exported._fields)
    metadata = {"modality": checkpoint.modality, "arguments": json.dumps(checkpoint.model.arguments)}
    try:
        data = to_onnx(graph, size, metadata | {"inference": json.dumps(settings)})
        differences = largest_differences(data, graph, *sample_pair(size))
    except ImportError as error:
        raise InputError(f"expected the packages {', '.join(PACKAGES)}, found: {error}") from error
    described = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    if not all(differences[name] <= limit for name, limit in TOLERANCE.items()):
        limits = ", ".join(f"{name} {limit:.0e}" for name, limit in TOLERANCE.items())
        raise FileError.at(options.checkpoint, f"outputs of the ONNX file within {limits}", described)
    write_bytes(options.output, data)
    made = f"{size[0]} x {size[1]}, {settings['passes']} passes{', averaged' * settings['average']}"
    print(f"{options.output}: {len(data) / 2**20:.1f} MiB, {made}; largest difference: {described}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.export``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.export", description=__doc__)
    parser.add_argument("--checkpoint", metavar="FILE", required=True, help="trained network to convert")
    parser.add_argument("--output", metavar="FILE", required=True, type=Path, help="file to write, such as NAME.onnx")
    parser.add_argument("--size", metavar=("H", "W"), nargs=2, type=side, default=(256, 256),
                        help="height and width of the images, px (default: 256 256)")
    parser.add_argument("--passes", type=natural, metavar="N",
                        help="number of registrations of a pair (default: that of the checkpoint)")
    parser.add_argument("--average", action=argparse.BooleanOptionalAction,
                        help="average the estimates of both directions and of the mirrored pair (default: that of the "
                             "checkpoint)")
    return run_command(parser.prog, export, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
