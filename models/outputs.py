"""What the network gives: the result of one registration, of all passes over a pair, and of the whole network."""

from typing import NamedTuple

from torch import Tensor

from models.eda_flowreg import FlowStep


class Registration(NamedTuple):
    """What the registration finds, for images (B, 1, H, W); maps are (B, 1, h, w) at a lower resolution.

    Attributes:
        flow: (B, 2, H, W), px: `warp(moving, flow)` lies on the fixed image.
        inverse_flow: (B, 2, H, W), px: `warp(fixed, inverse_flow)` lies on the moving image; without gradient.
        steps: a `FlowStep` a scale, coarse to fine. Of a registration both ways the batch entries B.. are the inverse
            direction; of an averaged one the entries are pair and mirror image, then the inverse direction of both.
        refined: (B, 2, h, w), px, on the grid of cells: `flow` before it was enlarged.
        spread: mean square distance of the matches that `flow` is the mean of, px^2; 0 for a single one.
        reliability: R of FRG-PreReg, in [0, 1].
        gate: W, in [0, 1].
        entropy_fixed, entropy_moving: local entropy, bits.
    """

    flow: Tensor
    inverse_flow: Tensor
    steps: list[FlowStep]
    refined: Tensor
    spread: Tensor
    reliability: Tensor
    gate: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor


MAP_FIELDS = ("reliability", "gate", "entropy_fixed", "entropy_moving")
"""Maps of a `Registration`."""


class Alignment(NamedTuple):
    """Result of all passes over a pair, at the scale of the registration.

    Attributes:
        first: the registration of the first pass; its maps are those of the pair as it lies.
        flow, inverse_flow: (B, 2, H, W), px.
        disagreement, expected_error: as in `Output`; the expected error is (B, 1, h, w), on the grid of cells.
    """

    first: Registration
    flow: Tensor
    inverse_flow: Tensor
    disagreement: Tensor
    expected_error: Tensor | None = None


class Output(NamedTuple):
    """Result of `EDARFusion`; every map is (B, 1, H, W), flows are (B, 2, H, W) in px.

    Attributes:
        fused: in [0, 1].
        aligned: the moving image warped with `flow`, in [0, 1].
        flow: `aligned(p) = moving(p + flow(p))`.
        inverse_flow: the way back, from the fixed to the moving image.
        entropy_fixed, entropy_moving: local entropy in bits; that of the moving image before alignment.
        entropy_difference: |entropy_fixed - entropy_moving|, bits.
        gate: W in [0, 1], how far the entropies let an increment of the flow pass.
        reliability: R in [0, 1], how much a place speaks in the matching.
        consistency: C in [0, 1], where edges of both images may be joined.
        disagreement: (B,), root mean square in the head of how far the estimates that the flow is the mean of lie from
            it, px at the scale of the training (`TRAINED_SIDE`): the larger, the larger the endpoint error is likely
            to be. 0 without averaging. Of a registration that began anew (`inference.multistart`) it is that of
            its first start.
        expected_error: the endpoint error that is to be expected at each place, px of the image. None where the
            network has no such part, and without averaging.
    """

    fused: Tensor
    aligned: Tensor
    flow: Tensor
    inverse_flow: Tensor
    entropy_fixed: Tensor
    entropy_moving: Tensor
    entropy_difference: Tensor
    gate: Tensor
    reliability: Tensor
    consistency: Tensor
    disagreement: Tensor
    expected_error: Tensor | None = None
