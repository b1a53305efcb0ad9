"""The stages of a training run: what each one trains, how fast, and one step of it."""

import math
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.dataset import Pair
from losses.fusion import make_matrices
from losses.steps import FusionStep, RegistrationStep
from models.edarfusion import EDARFusion
from models.layers import UNet
from training.muon import Muon
from training.options import Options


class StageTrainer:
    """The network of one stage in training, with its loss and its optimiser.

    Args:
        stage: one of `training.options.STAGES`.
        model: network to train, on its device.
        averaged: network that becomes the running mean of its weights.
        options: of the run.
        teacher: network to imitate, in evaluation mode; None learns from the truth.
        world: number of processes that train together.
        compiled: whether to compile the step.
    """

    def __init__(
        self,
        stage: str,
        model: EDARFusion,
        averaged: EDARFusion,
        options: Options,
        teacher: EDARFusion | None = None,
        world: int = 1,
        compiled: bool = False,
    ) -> None:
        self.stage, self.model, self.averaged, self.world = stage, model, averaged, world
        self.decay = options.averaging
        device = next(model.parameters()).device
        self.precision = torch.autocast(device.type, torch.bfloat16) if options.amp else nullcontext()
        self.module, self.optimizer = begin_stage(stage, model, options, teacher)
        loss = self.module
        if world > 1:
            # No buffer changes in training, and a gradient that is a view of its bucket is not copied into it.
            loss = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.compiled, self.loss = compiled, torch.compile(loss) if compiled else loss
        self.columns: tuple[str, ...] = ()
        """Names of the losses that `step` returns."""

    def step(self, pair: Pair, rate: float, steps: int, second_pass: bool) -> Tensor:
        """Make one step. Nothing here waits for the device.

        Args:
            pair: batch, on the device.
            rate: learning rate.
            steps: steps that the stage has made before this one.
            second_pass: whether the network first aligns the pairs and then trains on what is left.

        Returns:
            (len(columns) + 1,): the losses summed over all processes, in the order of `columns`, then the gradient's
            norm times the number of processes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if second_pass:
            with torch.no_grad(), self.precision:
                estimate = self.model.register(pair.fixed, pair.moving)
                pair = pair.aligned_by(estimate.flow, estimate.inverse_flow)
        if self.compiled and self.stage == "fusion":
            make_matrices(tuple(pair.fixed.shape[2:]), pair.fixed.device)
        loss = self.loss(pair, self.precision)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        average_weights(self.averaged, self.model, steps, self.decay)
        self.columns = loss._fields
        values = torch.stack([*(part.detach() for part in loss), norm])
        if self.world > 1:
            # Each process has seen pairs of its own.
            dist.all_reduce(values)
        return values


def begin_stage(
    stage: str, model: EDARFusion, options: Options, teacher: EDARFusion | None = None
) -> tuple[RegistrationStep | FusionStep, torch.optim.Optimizer]:
    """Build what a stage trains and its optimiser."""
    for network in model.modules():
        if isinstance(network, UNet):
            network.dropout = options.dropout if stage == "registration" else 0.0
    if stage == "registration":
        module = RegistrationStep(model, teacher, options.own_offset)
        dtype = torch.bfloat16 if options.amp else torch.float32
        return module, Muon(module, options.lr, weight_decay=1e-3, dtype=dtype)
    module = FusionStep(model, "consistency" not in options.without, teacher, remember=options.repeat_after is not None)
    # Muon's steps of one length upset the few small kernels of the fusion, whose head corrects grey values directly.
    fused = next(module.parameters()).device.type == "cuda" or None
    return module, torch.optim.AdamW(module.parameters(), options.lr, weight_decay=1e-3, fused=fused)


def learning_rate(highest: float, step: int, progress: float) -> float:
    """Return the rate after a short warm-up along half a cosine down to a fiftieth.

    Args:
        highest: rate at the top of the cosine.
        step: steps that the stage has made.
        progress: share of the stage that is done, 0 to 1.
    """
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return highest * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * cosine)


@torch.no_grad()
def average_weights(averaged: nn.Module, model: nn.Module, steps: int, decay: float) -> None:
    """Move the exponential mean of a network's weights on by one step, in place.

    Args:
        averaged: network of the mean weights.
        model: network in training.
        steps: steps before this one. The first one replaces the mean, and the next ones are forgotten faster than later
            ones, as they are of an untrained network.
        decay: of the mean, 0 to 1.
    """
    share = max(1 - decay, 9 / (10 + steps)) if steps else 1.0
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)
