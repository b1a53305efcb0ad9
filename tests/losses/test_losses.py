"""losses/: zero for the truth, hand-computed values elsewhere, finite gradients, and gradients stopped where due."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.metrics import ssim
from torch import Tensor

from data.dataset import Pair
from data.deformation import BENCHMARK, random_flow
from data.table import MODALITIES
from evaluation.metrics import qabf, qcv, viff
from losses.fusion import (
    Fused,
    FusionWeights,
    edge_loss,
    for_pairs,
    fusion_loss,
    imitation_loss,
    information_loss,
    intensity_error,
    lesion_loss,
    saturation_loss,
    structure_loss,
    tone_error,
    visibility_loss,
)
from losses.registration import (
    RegistrationLoss,
    RegistrationWeights,
    edge_error,
    edge_strength,
    inverse_error,
    matching_error,
    registration_loss,
    smoothness,
)
from losses.steps import without_own_offset
from models.eda_flowreg import CELL, FlowStep
from models.edarfusion import EDARFusion
from models.fusion import plain_fusion
from models.outputs import Registration
from models.room import in_color, room_of
from tests.examples import constant_flow, displacements, noise
from utils.filters import box_mean
from utils.geometry.affine import affine_flow
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import read_image
from utils.imaging.pairing import pair_files

SAMPLE = Path(__file__).parents[2] / "data/sample"
EDGE_FLOOR = 1 - 0.9994 / (1 + math.exp(-15 * 0.5)) * 0.9879 / (1 + math.exp(-22 * 0.2))
"""What the sigmoids of Q^AB/F leave even where every edge is kept: 0.025."""


def sample_pairs() -> list[tuple[Tensor, Tensor]]:
    """Fixed and truly aligned moving image, (1, 1, 256, 256), one pair a modality."""
    pairs = [pair_files(fixed=SAMPLE / m / "fixed", label=SAMPLE / m / "label")[0] for m in ("CT", "PET", "SPECT")]
    return [tuple(torch.from_numpy(read_image(p[role]))[None, None] for role in ("fixed", "label")) for p in pairs]


ONES = torch.ones(1, 1, 8, 8)


# --- registration ---------------------------------------------------------------------------------------------


def test_edge_error_counts_across_edges_only():
    stripes = (torch.arange(64) // 8 % 2).float().expand(2, 1, 64, 64)
    across, along = constant_flow(3, 0).expand(2, 2, 8, 8), constant_flow(0, 3).expand(2, 2, 8, 8)
    # Every cell holds the same vertical edges, so the mean is the displacement itself.
    assert edge_error(across, edge_strength(stripes, (8, 8))).item() == pytest.approx(3, rel=0.05)
    assert edge_error(along, edge_strength(stripes, (8, 8))).item() < 0.02
    assert edge_error(along, edge_strength(stripes.transpose(2, 3), (8, 8))).item() == pytest.approx(3, rel=0.05)
    # Relative to the image's edges, however weak.
    assert edge_error(across, edge_strength(0.1 * stripes, (8, 8))).item() == pytest.approx(3, rel=0.05)
    both = torch.cat((stripes[:1], 0.1 * stripes[:1]))
    assert edge_error(across, edge_strength(both, (8, 8))).item() == pytest.approx(3, rel=0.05)


def test_edge_error_of_slanting_edges():
    places = torch.arange(64.0)
    waves = (0.5 + 0.5 * ((places + places[:, None]) * (2 * math.pi / 16)).sin())[None, None]
    inner = edge_strength(waves, (8, 8))[..., 1:-1, 1:-1]  # the border is repeated, which bends them
    assert edge_error(constant_flow(3, -3, (6, 6)), inner).item() < 0.02
    assert edge_error(constant_flow(3, 3, (6, 6)), inner).item() == pytest.approx(math.hypot(3, 3), rel=0.05)


def test_edge_error_counts_where_the_edges_are():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 16:24, 16:24] = 1
    near, far = torch.zeros(2, 1, 2, 8, 8)
    near[..., 1:4, 1:4], far[..., 6:, 6:] = 2, 2
    edges = edge_strength(image, (8, 8))
    assert edge_error(near, edges) > 10 * edge_error(far, edges)


def test_edge_error_of_a_flat_image_is_finite_with_its_gradient():
    error = constant_flow(3, 4).requires_grad_()
    loss = edge_error(error, edge_strength(torch.full((1, 1, 64, 64), 0.3), (8, 8)))
    loss.backward()
    assert loss.item() < 0.02 and error.grad.isfinite().all()


@pytest.mark.parametrize("index", range(9))
def test_matching_error_is_smallest_where_the_scores_peak_at_the_truth(index):
    x, y = displacements(1)[index]
    errors = []
    for peak in range(9):
        scores = torch.zeros(1, 9, 8, 8)
        scores[:, peak] = 6
        errors.append(matching_error(scores, constant_flow(x, y), ONES, 1).item())
    assert int(np.argmin(errors)) == index
    # Cross-entropy against one candidate by hand: log(e^6 + 8) less the score there.
    total = math.log(math.exp(6) + 8)
    assert errors[index] == pytest.approx(total - 6, abs=0.02)
    assert errors[(index + 1) % 9] == pytest.approx(total, abs=0.02)


def test_matching_error_spreads_over_the_neighbours_of_the_truth():
    probability = torch.softmax(noise(9, seed=3), dim=0)
    scores = probability.log().view(1, 9, 1, 1).expand(1, 9, 8, 8)
    # (1, -3) px is a quarter of the way from column 0 to 4 px, three quarters from row 0 to -4 px.
    shares = {1: 0.75 * 0.75, 2: 0.75 * 0.25, 4: 0.25 * 0.75, 5: 0.25 * 0.25}
    expected = -sum(share * math.log(probability[k]) for k, share in shares.items())
    assert matching_error(scores, constant_flow(1, -3), ONES, 1).item() == pytest.approx(expected, rel=1e-4)


def test_matching_error_beyond_the_candidates_counts_as_the_nearest():
    scores = noise(1, 25, 8, 8)
    near, far = (matching_error(scores, constant_flow(d, -d), ONES, 2).item() for d in (8, 500))
    assert near == pytest.approx(far, rel=1e-3) and math.isfinite(far)


def test_smoothness_of_affine_flows_is_zero_and_of_a_parabola_is_not():
    matrix = torch.tensor([[[0.9, 0.1], [-0.2, 1.1]]])
    assert smoothness(affine_flow((12, 16), matrix, torch.tensor([[2.0, 3]]))).item() == pytest.approx(0, abs=1e-10)
    x = torch.arange(16.0).expand(12, 16)
    # Second difference of x^2 is 2 in one of two components along one axis.
    assert smoothness(torch.stack((x**2, x))[None]).item() == pytest.approx(4 / 2)
    assert smoothness(torch.stack((x, x**2)).transpose(1, 2)[None]).item() == pytest.approx(4 / 2)


def test_inverse_error_by_hand():
    assert inverse_error(constant_flow(2, -1), constant_flow(-2, 1), ONES).item() == pytest.approx(0, abs=1e-5)
    assert inverse_error(constant_flow(3, 0), constant_flow(0, 4), ONES).item() == pytest.approx(5, rel=1e-5)
    deformation = random_flow((256, 256), BENCHMARK, torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:-8, 8:-8] = 1
    assert inverse_error(deformation, invert(deformation), mask).item() < 1e-3
    assert inverse_error(deformation, deformation, mask).item() > 0.5


def true_case() -> tuple[Registration, tuple[Tensor, ...]]:
    """A registration that found the truth, and the further arguments of `registration_loss`."""
    moving_aligned, fixed = noise(2, 1, 16, 16), noise(2, 1, 16, 16, seed=1)
    enlarge = torch.nn.Upsample(scale_factor=8, mode="bilinear")
    moving_aligned, fixed = enlarge(moving_aligned), enlarge(fixed)
    # On the grid of 4 px: two steps of matching to the right and one down, exactly.
    deformation = constant_flow(-2, -1, (32, 32)).expand(2, 2, 32, 32)
    moving = warp(moving_aligned, resize_flow(deformation, (128, 128)))
    forward = constant_flow(8, 4, (16, 16)).expand(2, 2, 16, 16)
    flow = torch.cat((forward, -forward))
    scores = torch.zeros(4, 25, 16, 16)
    scores[:2, 3 * 5 + 4] = scores[2:, 1 * 5 + 0] = 50
    full = resize_flow(flow / CELL, (128, 128))
    step = FlowStep(flow, torch.zeros_like(flow), [scores], 2)
    maps = [torch.ones(2, 1, 16, 16)] * 5
    registration = Registration(full[:2], full[2:], [step], forward, *maps)
    return registration, (moving, moving_aligned, fixed, -deformation, deformation)


def test_registration_loss_of_the_truth_is_near_zero():
    registration, arguments = true_case()
    loss = registration_loss(registration, *arguments)
    assert loss.flow.item() == pytest.approx(0, abs=1e-5)
    assert loss.refined_flow.item() == pytest.approx(0, abs=1e-5)
    # Their rounding at zero.
    assert loss.edges.item() == pytest.approx(0.01, abs=1e-4)
    assert loss.refined_edges.item() == pytest.approx(0.01, abs=1e-4)
    assert loss.smoothness.item() == pytest.approx(0, abs=1e-8)
    assert loss.matching.item() < 0.1  # the largest displacement is held 0.001 steps inside the candidates
    assert loss.similarity.item() < 0.01 and loss.inverse.item() < 1e-3
    moving, moving_aligned = arguments[:2]
    assert (moving - moving_aligned).abs().mean() > 0.05


def test_registration_loss_sees_swapped_directions_and_axes():
    registration, arguments = true_case()
    (step,) = registration.steps
    backward = registration._replace(steps=[step._replace(flow=-step.flow)])
    transposed = registration._replace(steps=[step._replace(flow=step.flow.flip(1))])
    misled = registration._replace(refined=-registration.refined)
    # L1: 8 and 4 px off by twice that, and by their difference.
    assert registration_loss(backward, *arguments).flow.item() == pytest.approx((16 + 8) / 2, rel=1e-4)
    assert registration_loss(transposed, *arguments).flow.item() == pytest.approx(4, rel=1e-4)
    assert registration_loss(misled, *arguments).refined_flow.item() == pytest.approx((16 + 8) / 2, rel=1e-4)
    assert registration_loss(misled, *arguments).similarity > 0.05


def test_each_direction_counts_where_its_image_has_tissue():
    # The aligned image fills the left half, the fixed one the right; deep in the black any flow will do.
    registration, (moving, moving_aligned, fixed, *flows) = true_case()
    moving_aligned, fixed = moving_aligned.clamp_min(0.2), fixed.clamp_min(0.2)
    moving_aligned[..., 64:] = fixed[..., :64] = 0
    (step,) = registration.steps
    left, right = slice(4), slice(12, None)

    def loss_of_errors(there: slice, back: slice) -> RegistrationLoss:
        flow, scores = step.flow.clone(), step.scores[0].clone()
        flow[:2, 0, :, there] += 8
        flow[2:, 0, :, back] += 8
        scores[:2, :, :, there] = scores[2:, :, :, back] = 0
        wrong = registration._replace(steps=[step._replace(flow=flow, scores=[scores])], refined=flow[:2])
        return registration_loss(wrong, moving, moving_aligned, fixed, *flows)

    in_black, in_tissue = loss_of_errors(right, left), loss_of_errors(left, right)
    assert in_black.flow < 0.1 and in_black.refined_flow < 0.1 and in_black.matching < 0.2
    assert in_tissue.flow > 1 and in_tissue.refined_flow > 1 and in_tissue.matching > 1


def test_matching_is_held_against_what_the_earlier_scales_left():
    registration, arguments = true_case()
    (step,) = registration.steps
    # Half of the 8 px along x is found already: one step there is left, and the whole of the 4 px along y.
    actual = constant_flow(4, 0, (16, 16))
    actual = torch.cat((actual, actual, -actual, -actual))
    rest = torch.zeros_like(step.scores[0])
    rest[:2, 3 * 5 + 3] = rest[2:, 1 * 5 + 1] = 50
    for scores, is_right in ((rest, True), (step.scores[0], False)):
        later = registration._replace(steps=[step._replace(before=actual, scores=[scores])])
        matching = registration_loss(later, *arguments).matching.item()
        assert matching < 1e-3 if is_right else matching > 10


def test_every_scale_counts_in_px_and_the_last_one_alone_is_held_smooth_and_invertible():
    registration, arguments = true_case()
    (step,) = registration.steps
    early = step._replace(flow=step.flow + 8)
    assert registration_loss(registration._replace(steps=[early, step]), *arguments).flow.item() == pytest.approx(8)
    # Without a way back all of 8 and 4 px is left.
    one_way = step._replace(flow=torch.cat((step.flow[:2], torch.zeros(2, 2, 16, 16))))
    loss = registration_loss(registration._replace(steps=[early, one_way]), *arguments)
    assert loss.inverse.item() == pytest.approx(math.hypot(8, 4), rel=1e-4)
    # A second difference of 2 px in one of two components, of the matched flow and of the refined one.
    bend = torch.zeros(1, 2, 16, 16)
    bend[:, 0] = torch.arange(16.0) ** 2
    matched = registration._replace(steps=[step._replace(flow=step.flow + bend)])
    refined = registration._replace(refined=registration.refined + bend)
    assert registration_loss(matched, *arguments).smoothness.item() == pytest.approx(2)
    assert registration_loss(refined, *arguments).smoothness.item() == pytest.approx(2)


def test_matching_does_not_pull_the_flow_that_it_starts_from():
    registration, arguments = true_case()
    (step,) = registration.steps
    scores, before = step.scores[0].requires_grad_(), torch.zeros_like(step.flow).requires_grad_()
    later = registration._replace(steps=[step._replace(before=before, scores=[scores])])
    registration_loss(later, *arguments).matching.backward()
    assert scores.grad.any() and before.grad is None


def test_edge_errors_are_those_across_the_edges_at_the_flows_own_place():
    # Vertical edges where the forward flow ends, in the aligned image, horizontal ones where the way back ends.
    registration, (_, _, fixed, *flows) = true_case()
    stripes = (torch.arange(128) // 8 % 2).float().expand(2, 1, 128, 128)
    (step,) = registration.steps

    def loss_of_errors(*errors: Tensor) -> RegistrationLoss:
        flow = step.flow + torch.cat(errors).repeat_interleave(2, dim=0)
        wrong = registration._replace(steps=[step._replace(flow=flow)], refined=flow[:2])
        return registration_loss(wrong, stripes.mT, stripes, fixed, *flows)

    none, along_x, along_y = (constant_flow(x, y, (16, 16)) for x, y in ((0, 0), (3, 0), (0, 3)))
    for errors in ((along_x, none), (none, along_y)):
        assert loss_of_errors(*errors).edges.item() == pytest.approx(3 / 2, rel=0.05)
    for errors in ((along_y, none), (none, along_x)):
        assert loss_of_errors(*errors).edges < 0.02
    assert loss_of_errors(along_x, none).refined_edges.item() == pytest.approx(3, rel=0.05)
    assert loss_of_errors(along_y, none).refined_edges < 0.02


def test_registration_loss_is_the_weighted_sum_with_finite_gradients():
    model = EDARFusion("tiny")
    _, (moving, moving_aligned, fixed, true_flow, true_inverse) = true_case()
    moving = moving.clone()
    moving[1] = moving_aligned[1] = 0  # a constant image in the batch
    weights = RegistrationWeights(flow=1.5, edges=3, matching=0.25, similarity=7, smoothness=0.75, inverse=2)
    registration = model.register(fixed, moving, both=True)
    loss = registration_loss(registration, moving, moving_aligned, fixed, true_flow, true_inverse, weights)
    assert loss._fields[1:] == weights._fields
    expected = sum(w * part.item() for w, part in zip(weights, loss[1:], strict=True))
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    loss.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if not name.startswith("fusion.")}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert any(g.abs().max() > 0 for name, g in gradients.items() if name.startswith("encoders"))


# --- fusion ---------------------------------------------------------------------------------------------------


def test_intensity_error_by_hand():
    wanted = torch.tensor([[[[0.5, 0.9]]]])
    assert intensity_error(wanted, wanted).item() == 0
    errors = intensity_error(wanted, torch.tensor([[[[0.4, 0.6]]]]), wanted)
    assert errors.flatten().tolist() == pytest.approx([0.2, 0])


def test_edge_loss_of_identical_images_is_its_floor():
    image = noise(2, 1, 64, 64)
    assert edge_loss(image, image, image).tolist() == [pytest.approx([EDGE_FLOOR] * 2, abs=1e-4)]


def test_edge_loss_is_high_for_lost_and_turned_edges():
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 1, 64, 64)
    assert edge_loss(stripes, stripes, torch.full_like(stripes, 0.5)).item() > 0.95
    assert edge_loss(stripes, stripes, stripes.transpose(2, 3)).item() > 0.9
    assert edge_loss(stripes, stripes, 1 - stripes).item() == pytest.approx(EDGE_FLOOR, abs=1e-3)


def test_edge_loss_agrees_with_the_metric_on_the_sample():
    for fixed, label in sample_pairs():
        for fused in (torch.maximum(fixed, label), (fixed + label) / 2, fixed, label):
            images = [255 * image[0, 0].double().numpy() for image in (fixed, label, fused)]
            assert 1 - edge_loss(fixed, label, fused).item() == pytest.approx(qabf(*images), abs=0.05)


def test_structure_loss_of_identical_images_is_zero():
    image = noise(1, 1, 64, 64)
    assert structure_loss(image, image, image).item() == pytest.approx(0, abs=1e-5)
    assert structure_loss(image, image, 1 - image).item() > 1


def test_structure_loss_follows_the_image_that_varies():
    # The moving image is flat: keeping the fixed image's structure costs next to nothing, the opposite nearly all.
    textured, flat = noise(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.5)
    assert structure_loss(textured, flat, textured).item() < 0.02
    assert structure_loss(flat, textured, textured).item() < 0.02
    assert structure_loss(textured, flat, flat).item() > 0.9


def test_information_loss_agrees_with_the_metric_on_the_sample():
    for fixed, label in sample_pairs():
        for fused in (torch.maximum(fixed, label), (fixed + label) / 2, fixed, label):
            images = [255 * image[0, 0].double().numpy() for image in (fixed, label, fused)]
            assert 1 - information_loss(fixed, label, fused).item() == pytest.approx(viff(*images), abs=0.03)


@pytest.mark.parametrize("size", [(256, 256), (200, 120)])
def test_visibility_loss_is_the_root_of_the_metric(size):
    for fixed, label in sample_pairs():
        fixed, label = (torch.nn.functional.interpolate(image, size, mode="bilinear") for image in (fixed, label))
        for fused in (torch.maximum(fixed, label), (fixed + label) / 2, label):
            # The metric stretches every image to 0..255; here all fill that range by themselves.
            images = [image.clone() for image in (fixed, label, fused)]
            for image in images:
                image[..., 0, :2] = torch.tensor([0.0, 1.0])
            expected = qcv(*(255 * image[0, 0].double().numpy() for image in images)) ** 0.5 / 255
            assert visibility_loss(*images).item() == pytest.approx(expected, rel=1e-3, abs=2e-3)


def test_visibility_loss_survives_images_without_edges():
    flat, fused = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.75, requires_grad=True)
    loss = visibility_loss(flat, flat, fused)
    loss.backward()
    assert 0 < loss.item() < 0.25 and fused.grad.isfinite().all()


def test_tone_is_of_places_and_not_of_pixels():
    grey = torch.full((1, 1, 64, 64), 0.5)
    pattern = torch.tensor([0.1, -0.1]).repeat(32)
    assert intensity_error(grey, grey + pattern).item() == pytest.approx(0.1)
    assert tone_error(grey, grey + pattern).item() < 0.01
    assert tone_error(grey, grey - 0.2).item() == pytest.approx(0.2)


def test_an_outline_has_not_the_tone_of_bone():
    bone, outline = torch.zeros(2, 1, 1, 64, 64)
    bone[..., 20:44, 20:44] = outline[..., 20:44, 20:44] = 1
    outline[..., 22:42, 22:42] = 0.5
    lost, less = (tone_error(bone, image).item() for image in (outline, 0.9 * bone))
    assert tone_error(bone, bone).item() == 0
    assert 0.5 * 400 / 64**2 == pytest.approx(lost, rel=0.01) and less == pytest.approx(0.1 * 576 / 64**2, rel=0.01)


def test_matrices_of_the_losses_do_not_depend_on_who_asks_first():
    images = noise(3, 1, 1, 40, 72).unbind()  # of a size that no other test has
    with torch.autocast("cpu", torch.bfloat16):
        information_loss(*images)
    assert information_loss(*images).dtype == torch.float32


def test_information_loss_wants_contrast():
    image = 0.25 + noise(1, 1, 64, 64) / 2
    losses = [information_loss(image, image, 0.5 + gain * (image - 0.5)).item() for gain in (0.0, 0.5, 1.0, 1.5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(1, abs=0.01) and losses[2] == pytest.approx(0, abs=0.01)


def fused_of(fused: Tensor, true: Tensor | None = None) -> Fused:
    return Fused(fused, fused if true is None else true, fused)


def fused_pair(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise as fixed and moving image, the room of the latter, and no lesion."""
    fixed, label = (noise(count, 1, 64, 64, seed=seed) for seed in range(2))
    return fixed, label, room_of(label), torch.zeros_like(fixed)


def test_fusion_loss_is_the_weighted_sum_of_its_parts():
    fixed, label, room, lesion = fused_pair(2)
    room[:, 1:] = torch.tensor([0.7, 1]).view(2, 1, 1)  # as of a coloured image
    fused, fused_true, with_lesion = (noise(2, 1, 64, 64, seed=s) for s in range(2, 5))
    lesion[:, :, 20:30, 20:30] = 0.3
    weights = FusionWeights(2, 5, 0.5, 3, 0.7, 1.1, 1.3, 1.7, 7)
    loss = fusion_loss(fixed, label, room, lesion, Fused(fused, fused_true, with_lesion), weights)
    assert loss._fields[1:] == weights._fields
    expected = sum(w * part.item() for w, part in zip(weights, loss[1:], strict=True))
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.consistency.item() == pytest.approx((fused - fused_true).abs().mean().item())
    assert loss.lesion.item() == pytest.approx(lesion_loss(lesion, fused, with_lesion).mean().item())
    assert loss.saturation.item() == pytest.approx(saturation_loss(room, fused).mean().item())
    wanted = plain_fusion(fixed, label, room)
    assert loss.intensity.item() == pytest.approx((fused - wanted).abs().mean().item(), rel=1e-5)
    for name, function in (("gradient", edge_loss), ("information", information_loss), ("visibility", visibility_loss)):
        assert getattr(loss, name).item() == pytest.approx(function(fixed, label, fused).mean().item(), rel=1e-5)


def test_each_pair_may_have_weights_of_its_own():
    images = fused_pair(6)
    fused, fused_true = (noise(6, 1, 64, 64, seed=s) for s in range(2, 4))
    modality = torch.arange(len(MODALITIES)).repeat_interleave(2)
    weights = for_pairs(FusionWeights(), modality, torch.tensor([False, True] * 3))
    usual = FusionWeights()
    # CT, PET, SPECT, each grey and in colours.
    expected = {
        "information": [1, 1, 1.5, 7, 1.5, 0.4],
        "visibility": [1, 1, 1, 3.5, 1, 5],
        "saturation": [1, 1, 1, 0.35, 1, 1],
        "gradient": [1, 1, 1, 1, 1, 2],
        "tone": [1, 1, 1, 1, 1, 0.5],
        "lesion": [1, 0.25, 2.5, 0.25, 2.5, 0.25],
    }
    for component, factors in expected.items():
        shares = getattr(weights, component) / getattr(usual, component)
        assert shares.tolist() == pytest.approx(factors), component
    assert weights.intensity == usual.intensity
    whole = fusion_loss(*images, fused_of(fused, fused_true), weights)
    each = [FusionWeights(*(x if isinstance(x, float) else x[i].item() for x in weights)) for i in range(6)]
    singly = []
    for i, own in enumerate(each):
        one = (image[i : i + 1] for image in (*images, fused, fused_true))
        *sources, predicted, true = one
        singly.append(fusion_loss(*sources, fused_of(predicted, true), own).total.item())
    assert whole.total.item() == pytest.approx(sum(singly) / 6, rel=1e-5)


def test_losses_first_taken_in_inference_mode_still_train():
    # The windows are kept by size; this size is no other test's.
    fixed, label, fused = noise(3, 1, 1, 44, 52)
    with torch.inference_mode():
        before = structure_loss(fixed, label, fused)
    fused = fused.clone().requires_grad_()
    after = structure_loss(fixed, label, fused)
    after.sum().backward()
    assert torch.equal(after.detach(), before) and fused.grad.abs().max() > 0


def test_structure_loss_is_one_minus_kornias_ssim():
    image, fused = noise(2, 1, 64, 64), noise(2, 1, 64, 64, seed=1)
    flat = torch.full_like(image, 0.5)
    # Beside a flat image the other one has all of the weight, but for 1e-4 of variance.
    actual, expected = structure_loss(image, flat, fused), (1 - ssim(image, fused, 11)).mean(dim=(1, 2, 3))
    assert actual.flatten().tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_consistency_does_not_pull_the_true_branch():
    images = fused_pair(1)
    fused, fused_true = (noise(1, 1, 64, 64, seed=seed).requires_grad_() for seed in (2, 3))
    weights = FusionWeights(**dict.fromkeys(FusionWeights._fields, 0) | {"consistency": 1})
    fusion_loss(*images, fused_of(fused, fused_true), weights).total.backward()
    assert fused_true.grad is None and fused.grad.abs().sum() > 0


def test_lesion_loss_does_not_see_rounding():
    fused = noise(2, 1, 32, 32)
    lesion = torch.zeros_like(fused)
    lesion[1, :, 4:8, 4:8] = 0.2
    rounded = (fused * (1 + 1e-6 * noise(2, 1, 32, 32, seed=1))).requires_grad_()
    loss = lesion_loss(lesion, fused, rounded)
    loss.sum().backward()
    assert loss[0, 0] == 0 and not rounded.grad[0].any()  # no lesion in the first one
    far = rounded.grad[1, 0, 12:].abs()
    assert far.max() < 0.01 * rounded.grad[1, 0, 4:8, 4:8].abs().min()


def test_saturation_loss_is_the_share_of_saturation_that_luma_takes():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    room = room_of(red)
    bright, dark = (torch.full((1, 1, 16, 16), luma) for luma in (0.6, 0.2))
    shown = in_color(bright, red)
    kept = 1 - (shown.amin() / shown.amax()).item()
    losses = saturation_loss(room, bright, dark).flatten().tolist()
    assert losses == pytest.approx([1 - kept, 0], abs=1e-3) and 0.5 < kept < 0.6
    # Half of the image has no tracer, which takes and gives nothing.
    half = room_of(red * (torch.arange(16) < 8))
    assert saturation_loss(half, bright).item() == pytest.approx(1 - kept, abs=1e-3)
    assert saturation_loss(room_of(bright), bright).item() == 0


def test_lesion_loss_by_hand():
    lesion = torch.zeros(1, 1, 16, 16)
    lesion[..., 4:8, 4:8] = -0.2
    before = torch.full_like(lesion, 0.5)
    assert lesion_loss(lesion, before, before + 0.9 * lesion).item() == pytest.approx(0, abs=1e-6)
    assert lesion_loss(lesion, before, before + 2 * lesion).item() == pytest.approx(0, abs=1e-6)  # more is no fault
    assert lesion_loss(lesion, before, before + 0.4 * lesion).item() == pytest.approx(0.5, rel=1e-3)
    assert lesion_loss(lesion, before, before).item() == pytest.approx(0.9, rel=1e-3)
    assert lesion_loss(lesion, before, before - lesion).item() == pytest.approx(1.9, rel=1e-3)  # bright instead of dark
    # One of 16 px beside it that changes as much as the lesion.
    beside = before + 0.9 * lesion
    beside[..., 12, 12] += 0.2
    assert lesion_loss(lesion, before, beside).item() == pytest.approx(0.3 / 16, rel=1e-2)
    assert lesion_loss(torch.zeros_like(lesion), before, before).item() == 0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_on_constant_images_are_finite(value):
    flat = torch.full((2, 1, 64, 64), value)
    for fixed, label in ((flat, flat), (flat, noise(2, 1, 64, 64)), (noise(2, 1, 64, 64), flat)):
        for start in (flat, torch.zeros_like(flat), noise(2, 1, 64, 64, seed=4)):
            fused = start.clone().requires_grad_()
            loss = fusion_loss(fixed, label, room_of(label), torch.zeros_like(flat), fused_of(fused))
            loss.total.backward()
            assert all(part.isfinite() for part in loss) and fused.grad.isfinite().all()


def test_imitation_by_hand():
    taught = torch.full((1, 1, 20, 30), 0.4)
    ramp = 0.01 * torch.arange(30.0).expand(1, 1, 20, 30)
    for ours, grey, slope in ((taught, 0, 0), (taught + 0.1, 0.1, 0), (taught + ramp, 0.145, 0.005)):
        loss = imitation_loss(ours, taught)
        assert loss.intensity.item() == pytest.approx(grey, abs=1e-6)
        # Half of a slope at the two borders, where the outermost pixels are repeated.
        assert loss.gradient.item() == pytest.approx(slope * 29 / 30, abs=1e-6)
        assert loss.total.item() == pytest.approx(40 * loss.intensity.item() + 160 * loss.gradient.item(), rel=1e-5)
        assert loss.tone == loss.consistency == loss.visibility == loss.lesion == 0


@pytest.mark.parametrize(("share", "left"), [(1.0, 0.0), (0.5, 1.0)])
def test_an_offset_that_both_answers_share_is_no_error(share, left):
    size, cells = (128, 128), (16, 16)
    image = box_mean(noise(1, 1, *size, seed=3), 7)
    draws = torch.cat([random_flow(size, BENCHMARK, torch.Generator().manual_seed(seed)) for seed in (1, 2)] * 2)
    truth, offset = invert(draws), constant_flow(2 / 4, 0, (32, 32))
    moving = warp(image.repeat(4, 1, 1, 1), resize_flow(draws, size))
    # Pairs 0 and 1 are one, 2 and 3 another one, which is exact.
    exact = torch.tensor([False, False, True, True])
    aligned = image.repeat(4, 1, 1, 1)
    fields = dict(fixed=image, moving=moving, moving_aligned=aligned, flow=truth, inverse_flow=draws)
    pair = Pair(**fields, modality=0, color=image, lesion=image, number=0, exact=exact)
    answer = compose(truth, offset.expand_as(truth))
    corrected = without_own_offset(pair, CELL * resize_flow(answer, cells), share)
    inside = (..., slice(6, -6), slice(6, -6))
    error = (4 * (corrected.flow - answer))[inside].norm(dim=1).mean(dim=(1, 2))
    assert error[:2].tolist() == pytest.approx([left, left], abs=0.2)
    assert error[2:].tolist() == pytest.approx([2, 2], abs=0.2)
    for name in ("flow", "inverse_flow", "moving_aligned"):
        assert torch.equal(getattr(corrected, name)[exact], fields[name][exact]), name
    # The inverse of a constant offset is the opposite one.
    back = (4 * (corrected.inverse_flow - draws - constant_flow(-share * 2 / 4, 0, (32, 32))))[inside]
    assert back[:2].norm(dim=1).mean() < 0.2
    assert 4 * compose(corrected.flow, corrected.inverse_flow)[inside].norm(dim=1).mean() < 0.2
    # What is aligned by the corrected truth lies beside the fixed image by the offset.
    expected = warp(image, constant_flow(2 * share, 0, size))[0, 0, 24:-24, 24:-24]
    aligned = corrected.moving_aligned[0, 0, 24:-24, 24:-24]
    assert (aligned - expected).abs().mean() < 0.5 * (aligned - image[0, 0, 24:-24, 24:-24]).abs().mean()
