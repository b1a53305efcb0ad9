"""A training step's loss as a module, in the form that DistributedDataParallel wraps.

With a teacher, a network learns what that trained one makes of the same pairs instead of the truth (knowledge
distillation, Hinton et al. 2015), so that what cannot be known from the images is no longer part of the task.
Experiments 78, 104 and 105 in docs/experiments.md say what it brings.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.dataset import Pair
from losses.fusion import Fused, FusionLoss, FusionWeights, for_pairs, fusion_loss, imitation_loss
from losses.registration import RegistrationLoss, registration_loss
from models.eda_flowreg import CELL
from models.edarfusion import EDARFusion
from models.room import room_of
from utils.geometry.warp import compose, invert, resize_flow, warp

Autocast = torch.autocast | nullcontext


class Registered(NamedTuple):
    """What the fusion needs of a registration; see `models.outputs.Registration`."""

    flow: Tensor
    reliability: Tensor
    gate: Tensor


def has_colors(color: Tensor) -> Tensor:
    """Return which images (B, 3, H, W) have colours, (B, 1, 1, 1); those of grey images are all 0."""
    return color.amax(dim=(1, 2, 3), keepdim=True) > 0


def colored_room(color: Tensor, grey: Tensor) -> Tensor:
    """Compute `models.room.room_of` colours (B, 3, H, W), or of grey values (B, 1, H, W) where there are none."""
    return torch.where(has_colors(color), room_of(color), room_of(grey))


class RegistrationStep(nn.Module):
    """Loss of the registration for one batch.

    Args:
        model: whose registration learns.
        teacher: network to learn from instead of the truth.
        own_offset: share of `without_own_offset`, for batches as it takes them; 0 leaves the truth as it is.
    """

    def __init__(self, model: EDARFusion, teacher: EDARFusion | None = None, own_offset: float = 0.0) -> None:
        super().__init__()
        self.own_offset = own_offset
        parts = [model.encoders, model.frg_prereg, model.eda_flowreg, model.refinement]
        self.parts = nn.ModuleList(part for part in parts if part is not None)
        self.register_pair = model.register
        self.teacher_registers = teacher and teacher.register_averaged  # no part of this module, which learns

    def forward(self, pair: Pair, amp: Autocast) -> RegistrationLoss:
        """Compute the loss of a batch with its true flows. `amp` is for the networks, not for the loss."""
        if self.teacher_registers:
            with torch.no_grad(), amp:
                taught = self.teacher_registers(pair.fixed, pair.moving)
                pair = pair.with_truth(taught.flow, taught.inverse_flow)
        with amp:
            registration = self.register_pair(pair.fixed, pair.moving, both=True)
        if self.own_offset:
            pair = without_own_offset(pair, registration.refined, self.own_offset)
        return registration_loss(
            registration, pair.moving, pair.moving_aligned, pair.fixed, pair.flow, pair.inverse_flow
        )


@torch.no_grad()
def without_own_offset(pair: Pair, estimate: Tensor, share: float) -> Pair:
    """Take the common part of two errors for an offset of the pair itself, and correct the truth by it.

    A real pair counts as aligned, but it hardly ever is. To find the known deformation alone, a network must learn the
    offset of each pair by heart. No other patient gains from that. Two deformations of a pair share the offset. Other
    errors of the network differ between them.

    Args:
        pair: a batch in which every second pair shows the one before it in another deformation.
        estimate: (B, 2, h, w), px of the full image, on the grid of cells: what the network answers.
        share: of the mean of both errors, 0 to 1, that counts as the offset b.

    Returns:
        The batch with the truth (id + u) o (id + b) instead of id + u. Exact pairs stay as they are.
    """
    size, grid, image_size = (tuple(x.shape[2:]) for x in (estimate, pair.flow, pair.fixed))
    errors = estimate.float() / CELL - resize_flow(pair.flow, size)
    common = ((errors[::2] + errors[1::2]) / 2).repeat_interleave(2, dim=0)
    offset = resize_flow(torch.where(pair.exact.view(-1, 1, 1, 1), 0, share * common), grid)
    return pair._replace(
        flow=compose(pair.flow, offset),
        inverse_flow=compose(invert(offset), pair.inverse_flow),
        moving_aligned=warp(pair.moving_aligned, resize_flow(offset, image_size)),
    )


class FusionStep(nn.Module):
    """Loss of the fusion for one batch; the registration stays as it is.

    With the alignment-consistency constraint the predicted alignment is in the loop; without it (ablation) only truly
    aligned pairs are fused.

    Args:
        model: whose fusion learns.
        consistency: False leaves the constraint out.
        teacher: network to learn from instead of the losses.
        remember: keep what the registration makes of each draw, for draws that come again.
    """

    def __init__(
        self, model: EDARFusion, consistency: bool, teacher: EDARFusion | None = None, remember: bool = False
    ) -> None:
        super().__init__()
        self.part, self.consistency = model.fusion, consistency
        self.register_pair, self.fuse = model.register, model.fuse
        self.remembered: dict[int, tuple[Tensor, ...]] | None = {} if remember else None
        self.teacher_fuses = teacher and teacher.fuse

    def forward(self, pair: Pair, amp: Autocast) -> FusionLoss:
        """Compute the loss of a batch with its true alignment. `amp` is for the registration alone."""
        registration = self.registered(pair, amp)
        room_true = colored_room(pair.color, pair.moving_aligned)
        aligned, room = pair.moving_aligned, room_true
        if self.consistency:
            aligned = warp(pair.moving, registration.flow)
            room = colored_room(warp(pair.moving_color, registration.flow), aligned)
        # Grey values want more digits than bfloat16 has.
        fused = self.fuse(pair.fixed, aligned, registration, room).fused
        if self.teacher_fuses:
            with torch.no_grad():
                taught = self.teacher_fuses(pair.fixed, aligned, registration, room).fused
            return imitation_loss(fused, taught)
        with torch.no_grad():
            fused_true = self.fuse(pair.fixed, pair.moving_aligned, registration, room_true).fused
        in_fixed, in_moving = pair.lesion.split(1, dim=1)
        images = (pair.fixed + in_fixed).clamp(0, 1), (aligned + in_moving).clamp(0, 1)
        # Of a grey image the room depends on its grey values; into a coloured one no lesion is put.
        colored = has_colors(pair.color)
        room = torch.where(colored, room, room_of(images[1]))
        with_lesion = self.fuse(*images, registration, room).fused
        lesion = images[0] - pair.fixed + images[1] - aligned
        weights = for_pairs(FusionWeights(), pair.modality, colored.flatten())
        fused = Fused(fused, fused_true, with_lesion)
        return fusion_loss(pair.fixed, pair.moving_aligned, room_true, lesion, fused, weights)

    @torch.no_grad()
    def registered(self, pair: Pair, amp: Autocast) -> Registered:
        """Register a batch."""
        numbers = [] if self.remembered is None else pair.number.tolist()
        if numbers and all(number in self.remembered for number in numbers):
            return Registered(*map(torch.stack, zip(*map(self.remembered.get, numbers), strict=True)))
        with amp:
            registered = self.register_pair(pair.fixed, pair.moving)
        registered = Registered(registered.flow, registered.reliability, registered.gate)
        if numbers:
            self.remembered |= zip(numbers, zip(*(field.unbind() for field in registered), strict=True), strict=True)
        return registered
