"""Load the network of the test script."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from data.table import modality_of
from inference.options import Options
from models.checkpoint import load_checkpoint
from models.outputs import Output
from utils.device import choose_device
from utils.files import InputError
from utils.messages import log
from utils.processes import local_rank

BARELY = 0.85
"""Share of zero flow's endpoint error from which on a network counts as barely trained. The shipped ones leave 0.57 and
0.66."""


class Network(NamedTuple):
    """A network and its settings.

    Attributes:
        model: a PyTorch module, or an OpenVINO model in its place.
        device: device of the model.
        settings: arguments of `inference.pair_fuser.PairFuser`.
        trained_for: modality of the checkpoint, or all.
        barely_trained: whether it was left with more than `BARELY` of the displacement on its validation pairs.
        bound_ratio: of the `Checkpoint`.
    """

    model: Callable[..., Output]
    device: torch.device
    settings: dict[str, int | bool]
    trained_for: str
    barely_trained: bool = False
    bound_ratio: float | None = None


def load_network(options: Options, kinds: list[str]) -> Network:
    """Load the checkpoint for pairs of these modalities.

    Raises:
        InputError: the device or the engine is missing, or the checkpoint does not fit these pairs.
    """
    by_openvino = options.engine != "torch"
    device = choose_device("cpu" if by_openvino else options.device, local_rank())
    checkpoint = load_checkpoint(options.checkpoint, modality=modality_of(kinds), device=device)
    model = checkpoint.model
    if by_openvino:
        try:
            from inference.openvino_model import OpenVINOModel

            model = OpenVINOModel(model)
        except ImportError as error:
            expected = "the package openvino (pip install -r requirements-openvino.txt)"
            raise InputError(f"--engine {options.engine}: expected {expected}, found none") from error
    # The weights start at zero. The record does not tell whether --init brought a trained fusion.
    if not checkpoint.model.fusion.head.weight.any():
        state = "an untrained one (stage registration only, or a run broken off before its fusion)"
        shown = "the fused images show hardly more than the brighter of both"
        log.warning(f"{options.checkpoint}: expected a trained fusion, found {state}: {shown}")
    settings = checkpoint.inference(options.passes, options.average)
    barely_trained = left_of_displacement(checkpoint.metrics) > BARELY
    if barely_trained:
        state = f"one that left {100 * left_of_displacement(checkpoint.metrics):.0f} % of it on its validation pairs"
        log.warning(
            f"{options.checkpoint}: expected a network trained to remove displacement, found {state}: train it longer; "
            "its disagreement says nothing about the images, and no other poses are tried"
        )
    settings["multistart"] = settings["average"] and options.multistart and not barely_trained
    bound_ratio = None if by_openvino else checkpoint.bound_ratio
    return Network(model, device, settings, checkpoint.modality, barely_trained, bound_ratio)


def left_of_displacement(metrics: Mapping[str, float]) -> float:
    """Tell how much of the displacement a network left on its validation pairs, as a share of zero flow's error.

    Args:
        metrics: of a checkpoint, such as epe_CT and zero_CT, px.

    Returns:
        The mean over the modalities; 0 where the metrics do not say.
    """
    kinds = [name.removeprefix("epe_") for name in metrics if name.startswith("epe_")]
    shares = [metrics[f"epe_{kind}"] / metrics[f"zero_{kind}"] for kind in kinds if metrics.get(f"zero_{kind}")]
    return sum(shares) / len(shares) if shares else 0.0
