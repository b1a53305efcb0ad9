"""A training step's loss as a module, in the form that DistributedDataParallel wraps.

With a teacher, a network learns what that trained one makes of the same pairs instead of the truth (knowledge
distillation, Hinton et al. 2015), so that what cannot be known from the images is no longer part of the task.
Experiments 78, 104 and 105 in docs/experiments.md say what it brings.
"""

from contextlib import nullcontext

import torch
from torch import nn

from data.dataset import Pair
from losses.fusion import FusionLoss, FusionWeights, for_modalities, fusion_loss, imitation_loss
from losses.registration import RegistrationLoss, registration_loss
from models.edarfusion import EDARFusion
from utils.geometry.warp import warp

Autocast = torch.autocast | nullcontext


class RegistrationStep(nn.Module):
    """Loss of the registration for one batch."""

    def __init__(self, model: EDARFusion, teacher: EDARFusion | None = None) -> None:
        super().__init__()
        parts = [model.encoders, model.frg_prereg, model.eda_flowreg, model.refinement]
        self.parts = nn.ModuleList(part for part in parts if part is not None)
        self.register_pair = model.register
        self.teacher_registers = teacher and teacher.register_averaged  # no part of this module, which learns

    def forward(self, pair: Pair, amp: Autocast) -> RegistrationLoss:
        """A batch with its true flows -> `RegistrationLoss` of scalars; `amp` is for the networks, not for the loss."""
        if self.teacher_registers:
            with torch.no_grad(), amp:
                found = self.teacher_registers(pair.fixed, pair.moving)
                pair = pair.with_truth(found.flow, found.inverse_flow)
        with amp:
            registration = self.register_pair(pair.fixed, pair.moving, both=True)
        return registration_loss(
            registration, pair.moving, pair.moving_aligned, pair.fixed, pair.flow, pair.inverse_flow
        )


class FusionStep(nn.Module):
    """Loss of the fusion for one batch; the registration stays as it is.

    With the alignment-consistency constraint the predicted alignment is in the loop; without it (ablation) only truly
    aligned pairs are fused.
    """

    def __init__(self, model: EDARFusion, consistency: bool, teacher: EDARFusion | None = None) -> None:
        super().__init__()
        self.part, self.consistency = model.fusion, consistency
        self.register_pair, self.fuse = model.register, model.fuse
        self.teacher_fuses = teacher and teacher.fuse

    def forward(self, pair: Pair, amp: Autocast) -> FusionLoss:
        """A batch with its true alignment -> `FusionLoss` of scalars; `amp` is for the registration alone."""
        with torch.no_grad(), amp:
            registration = self.register_pair(pair.fixed, pair.moving)
            aligned = warp(pair.moving, registration.flow) if self.consistency else pair.moving_aligned
        both = aligned, pair.moving_aligned
        # Grey values want more digits than bfloat16 has.
        fused, fused_true = (self.fuse(pair.fixed, image, registration).fused for image in both)
        if self.teacher_fuses:
            with torch.no_grad():
                taught, taught_true = (self.teacher_fuses(pair.fixed, image, registration).fused for image in both)
            return imitation_loss(fused, fused_true, taught, taught_true)
        weights = for_modalities(FusionWeights(), pair.modality)
        return fusion_loss(pair.fixed, pair.moving_aligned, fused, fused_true, weights)
