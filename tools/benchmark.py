"""Time the network stage by stage and measure its memory. Writes benchmark.md and benchmark.json.

    python -m tools.benchmark --checkpoint checkpoints/edarfusion.safetensors
    python -m tools.benchmark --preset fast --sizes 256x256 512x512 --output results

Times are medians over repeats after a warm-up. The stages of one size take turns, so a machine that slows down slows
all of them. One 3 x 3 convolution is timed in the same way and makes times of different machines comparable.
"""

import argparse
import copy
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from data.deformation import BENCHMARK, random_flow
from evaluation.metrics import folding_share, fusion_metrics, registration_metrics
from losses.registration import registration_loss
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from models.layers import to_device
from models.outputs import Output
from models.presets import PRESETS
from training.muon import Muon
from utils.arguments import ENGINES, OneLineParser, add_device, positive, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import InputError, write_bytes
from utils.geometry.warp import invert, resize_flow, warp
from utils.imaging.images import MIN_SIDE, write_image
from utils.messages import markdown_table

SIZES = ((256, 256), (512, 512), (1024, 1024), (200, 312))
BATCHES = (1, 8)
REFERENCE_SIZE = (256, 256)
WARM_UP = 2
SECONDS = 10
"""Repeats of one group of stages end after this time, but not before the third."""

HEADINGS = {
    "features": "features",
    "registration": "registration",
    "fusion": "fusion",
    "forward": "whole network",
    "pairs_per_second": "pairs/s",
    "metrics": "metrics",
    "writing": "writing",
    "peak_memory": "peak memory",
    "multiply_adds": "multiply-adds",
}


def time_stages(
    stages: dict[str, Callable[[], Any]], device: torch.device, repeats: int, seconds: float = SECONDS
) -> dict[str, float]:
    """Time each stage and return its median.

    Args:
        stages: name -> what to run; they run in turns.
        device: where they run; each is waited for.
        repeats: at most, after `WARM_UP` rounds.
        seconds: after which no further round begins once three are done.

    Returns:
        name -> seconds.
    """
    for _ in range(WARM_UP):
        for stage in stages.values():
            stage()
    _wait(device)
    times: dict[str, list[float]] = {name: [] for name in stages}
    began = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - began > seconds:
            break
        for name, stage in stages.items():
            start = time.perf_counter()
            stage()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def peak_memory(stage: Callable[[], Any], device: torch.device) -> float | None:
    """Measure the peak memory of tensors while `stage` runs, beyond what they took before.

    Returns:
        MiB; None on devices other than CPUs and CUDA.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        stage()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would report its start and stop on the terminal
    # The process's resident memory would say little: the C library keeps freed blocks and hands them out again.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        stage()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0)) / 2**20


def multiply_adds(stage: Callable[[], Any]) -> int:
    """Count the multiply-adds of the convolutions and matrix products of `stage`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops() // 2


def network_stages(model: EDARFusion, fixed: Tensor, moving: Tensor) -> dict[str, Callable[[], Any]]:
    """Make the functions that run each stage of the network.

    Args:
        model: in evaluation mode.
        fixed, moving: (B, 1, H, W) in [0, 1], on the model's device.

    Returns:
        ``features`` (both encoders), ``registration`` (`EDARFusion.register`, features included), ``fusion`` (warp and
        `EDARFusion.fuse`) and ``forward`` (the whole network with padding and full-size maps).
    """
    _, (inside, outside), seen = model.prepare(fixed, moving)
    inputs = []
    hook = model.encoders.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    registration = model.register(*seen)
    flow = resize_flow(registration.flow, inside.shape[2:])
    hook.remove()
    return {
        "features": lambda: model.encoders(*inputs),
        "registration": lambda: model.register(*seen),
        "fusion": lambda: model.fuse(inside, warp(outside, flow), registration),
        "forward": lambda: model(fixed, moving),
    }


def scoring_stages(fixed: Tensor, moving: Tensor, output: Output, folder: Path) -> dict[str, Callable[[], Any]]:
    """Make the functions that run the stages after the network: ``metrics`` (all) and ``writing`` (PNGs).

    Args:
        fixed, moving: (1, 1, H, W) in [0, 1].
        output: of the network.
        folder: to write to.
    """
    fields = {"fixed": fixed, "moving": moving, "fused": output.fused, "aligned": output.aligned, "flow": output.flow}
    arrays = {name: field[0].cpu().numpy() for name, field in fields.items()}
    grey = {name: 255 * array[0].astype("float64") for name, array in arrays.items() if name != "flow"}

    def metrics() -> None:
        fusion_metrics(grey["fixed"], grey["aligned"], grey["fused"])
        registration_metrics(grey["aligned"], grey["moving"])
        folding_share(arrays["flow"])

    def writing() -> None:
        for name in ("fused", "aligned"):
            write_image(folder / f"{name}.png", arrays[name][0])

    return {"metrics": metrics, "writing": writing}


def training_step(model: EDARFusion, size: tuple[int, int], batch: int) -> Callable[[], None]:
    """Make the function that trains a copy of the model for one step: forward, loss, backward, optimiser.

    Args:
        model: on the device to train on.
        size: height and width, multiples of the model's stride.
        batch: pairs a step.
    """
    model = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    applied = torch.cat([random_flow(size, BENCHMARK, generator) for _ in range(batch)])
    true_flow, applied = invert(applied).to(device), applied.to(device)
    fixed, moving, aligned = (torch.rand(batch, 1, *size, generator=generator).to(device) for _ in range(3))
    optimizer = Muon(model, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        registration = model.register(fixed, moving, both=True)
        registration_loss(registration, moving, aligned, fixed, true_flow, applied).total.backward()
        optimizer.step()

    return step


def measure_size(
    model: EDARFusion, size: tuple[int, int], batch: int, repeats: int, *, scoring: bool
) -> dict[str, Any]:
    """Measure times (s), peak memory (MiB) and multiply-adds of one size and batch; None where memory runs out."""
    device = next(model.parameters()).device
    row: dict[str, Any] = {"size": f"{size[0]}x{size[1]}", "batch": batch} | dict.fromkeys(HEADINGS)
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (torch.rand(batch, 1, *size, generator=generator).to(device) for _ in range(2))
    try:
        with torch.inference_mode():
            stages = network_stages(model, fixed, moving)
            row |= time_stages(stages, device, repeats)
            row["peak_memory"] = peak_memory(stages["forward"], device)
            if scoring:
                with tempfile.TemporaryDirectory() as folder:
                    after = scoring_stages(fixed, moving, model(fixed, moving), Path(folder))
                    row |= time_stages(after, torch.device("cpu"), repeats)
    except torch.OutOfMemoryError:
        return row | dict.fromkeys(HEADINGS)
    return row | {
        "pairs_per_second": batch / row["forward"],
        "multiply_adds": multiply_adds(lambda: model(fixed, moving)),
    }


def measure_training(model: EDARFusion, size: tuple[int, int], batch: int, repeats: int) -> dict[str, Any]:
    """Measure seconds per step, pairs per second and peak memory (MiB) of training at `size`, padded to the stride."""
    device = next(model.parameters()).device
    size = tuple(side + -side % model.stride for side in size)
    step = training_step(model, size, batch)
    seconds = time_stages({"step": step}, device, repeats)["step"]
    return {
        "size": f"{size[0]}x{size[1]}",
        "batch": batch,
        "seconds": seconds,
        "pairs_per_second": batch / seconds,
        "peak_memory": peak_memory(step, device),
    }


def measure_ratio(model: EDARFusion, repeats: int) -> dict[str, float]:
    """Time registration + fusion of one 256 x 256 pair against one convolution, 64 to 64 channels, 3 x 3, of that size.

    Returns:
        ``registration``, ``fusion``, ``convolution`` in seconds and ``ratio`` = (registration + fusion) / convolution;
        on a CPU also the seconds of the whole network, padding and full-size maps included, by OpenVINO in bfloat16,
        under the name of the engine, where the package is installed and the processor computes so.
    """
    device = next(model.parameters()).device
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(device)
    image = torch.rand(1, 64, *REFERENCE_SIZE, device=device)
    fixed, moving = torch.rand(2, 1, 1, *REFERENCE_SIZE, device=device)
    with torch.inference_mode():
        stages = network_stages(model, fixed, moving)
        stages = {name: stages[name] for name in ("registration", "fusion")}
        stages["convolution"] = lambda: convolution(image)
        times = time_stages(stages, device, repeats)
        # Not in turns with the others: their threads stay awake for a while and would slow down what comes next.
        with suppress(ImportError, InputError):
            if device.type == "cpu":
                from inference.openvino_model import OpenVINOModel

                times |= time_stages({ENGINES[1]: partial(OpenVINOModel(model), fixed, moving)}, device, repeats)
    return times | {"ratio": (times["registration"] + times["fusion"]) / times["convolution"]}


def benchmark_report(results: dict[str, Any]) -> str:
    """Format the results of `main` as Markdown."""
    model, machine, ratio, training = (results[name] for name in ("model", "machine", "ratio", "training"))
    rows = results["rows"]
    table = [[row["size"], str(row["batch"]), *(_text(row[name], name) for name in HEADINGS)] for row in rows]
    paragraphs = [
        f"# Benchmark of {model['name']}",
        f"{model['parameters']:,} parameters. {machine['device']}, {machine['threads']} threads, "
        f"torch {machine['torch']}. Medians of up to {results['repeats']} repeats.",
        markdown_table(["size", "batch", *HEADINGS.values()], table),
        "Times are of the whole batch, in ms; metrics and writing are of one pair. Registration includes the features; "
        "the whole network includes registration and fusion, padding and full-size maps. Peak memory is what tensors "
        "of the whole network take beside its weights and inputs.",
        f"Training of the registration (forward, loss, backward, optimiser), {training['size']}, "
        f"batch {training['batch']}: {training['pairs_per_second']:.2f} pairs/s, {1e3 * training['seconds']:.0f} ms "
        f"a step, peak memory {_text(training['peak_memory'], 'peak_memory')}.",
        "(Registration + fusion) / convolution at 256x256, batch 1: "
        "({registration} + {fusion}) / {convolution} ms".format(**{name: _text(ratio[name], name) for name in ratio})
        + f" = **{ratio['ratio']:.2f}** (one torch.nn.Conv2d, 64 to 64 channels, 3 x 3, default memory format).",
    ]
    paragraphs += [
        f"Whole network by `--engine {engine}`: {_text(ratio[engine], engine)} ms = "
        f"**{ratio[engine] / ratio['convolution']:.2f}** of that convolution."
        for engine in ENGINES
        if engine in ratio
    ]
    return "\n\n".join(paragraphs) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.benchmark``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.benchmark", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="FILE", help="checkpoint of a trained network to time")
    source.add_argument("--preset", choices=PRESETS, default="small",
                        help="size of an untrained network to time (default: %(default)s)")
    add_device(parser)
    parser.add_argument(
        "--sizes",
        metavar="HxW",
        nargs="+",
        type=_size,
        default=SIZES,
        help=f"sizes of the images, height x width (default: {' '.join(f'{h}x{w}' for h, w in SIZES)}); "
             "training is timed at the first one",
    )
    parser.add_argument("--batches", metavar="N", nargs="+", type=positive, default=BATCHES,
                        help="numbers of pairs in a batch (default: 1 8)")
    parser.add_argument("--training-batch", metavar="N", type=positive, default=8,
                        help="batch size of the training step (default: %(default)s)")
    parser.add_argument("--repeats", metavar="N", type=positive, default=20,
                        help="largest number of measurements, whose median counts (default: %(default)s)")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("results"),
                        help="folder to write to (default: %(default)s)")
    return run_command(parser.prog, run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Time the network of the options, write both files and print the report.

    Raises:
        InputError: checkpoint or device cannot be used, or a file cannot be written.
    """
    torch.manual_seed(0)
    device = choose_device(options.device)
    model = load_checkpoint(options.checkpoint).model if options.checkpoint else EDARFusion(options.preset)
    model = to_device(model, device).eval()
    cases = [(size, batch) for size in options.sizes for batch in options.batches]
    results = {
        "model": {
            "name": Path(options.checkpoint).name if options.checkpoint else f"preset {options.preset}, untrained",
            "arguments": model.arguments,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "repeats": options.repeats,
        "ratio": measure_ratio(model, options.repeats),
        "training": measure_training(model, options.sizes[0], options.training_batch, options.repeats),
        "rows": [
            measure_size(model, size, batch, options.repeats, scoring=batch == options.batches[0])
            for size, batch in tqdm(cases, desc="sizes", leave=False)
        ],
    }
    report = benchmark_report(results)
    write_bytes(options.output / "benchmark.json", json.dumps(results, indent=2).encode())
    write_bytes(options.output / "benchmark.md", report.encode())
    print(report)
    print(f"Wrote {options.output / 'benchmark.md'} and {options.output / 'benchmark.json'}")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _processor() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _text(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if name == "multiply_adds":
        return f"{value / 1e9:.2f} G"
    if name == "peak_memory":
        return f"{value:.0f} MiB"
    return f"{value:.1f}" if name == "pairs_per_second" else f"{1e3 * value:.1f}"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH with sides from {MIN_SIDE}, found {text!r}")
    return size


if __name__ == "__main__":
    sys.exit(main())
