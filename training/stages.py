"""The stages of a training run: what each one trains, and how fast."""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from losses.steps import FusionStep, RegistrationStep
from models.edarfusion import EDARFusion
from models.layers import UNet
from training.muon import Muon

STAGES = ("registration", "fusion")


def stages(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Each stage with the shares of the run at which it begins and ends."""
    if options.stage != "all":
        return {options.stage: (0.0, 1.0)}
    return {"registration": (0.0, 1 - options.fusion_share), "fusion": (1 - options.fusion_share, 1.0)}


def begin_stage(
    stage: str, model: EDARFusion, options: argparse.Namespace, teacher: EDARFusion | None = None
) -> tuple[RegistrationStep | FusionStep, torch.optim.Optimizer]:
    """What a stage trains, and its optimizer."""
    for network in model.modules():
        if isinstance(network, UNet):
            network.dropout = options.dropout if stage == "registration" else 0.0
    if stage == "registration":
        module = RegistrationStep(model, teacher)
        dtype = torch.bfloat16 if options.amp else torch.float32
        return module, Muon(module, options.lr, weight_decay=1e-3, dtype=dtype)
    module = FusionStep(model, "consistency" not in options.without, teacher)
    # Muon's steps of one length upset the few small kernels of the fusion, whose head corrects grey values directly.
    return module, torch.optim.AdamW(module.parameters(), options.lr, weight_decay=1e-3)


def learning_rate(highest: float, step: int, progress: float) -> float:
    """Short warm-up, then half a cosine down to a fiftieth: `step` and `progress` (0 to 1) are the stage's own."""
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return highest * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * cosine)


def running_mean(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Exponential mean of weights, in place, that forgets the first, untrained ones faster."""
    return lambda means, new, n: torch._foreach_lerp_(means, new, max(1 - decay, 9 / (10 + int(n))))
