"""utils/maps.py: entropy, gate, agreement and Jacobian determinant by hand, and no NaN on flat images."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.examples import noise
from utils.filters import gradient_magnitude, min_max
from utils.geometry.affine import affine_flow
from utils.maps import entropy_difference, gate, gradient_agreement, jacobian_determinant, local_entropy


def halves(height: int = 32, width: int = 40) -> Tensor:
    """Black on the left, white on the right."""
    image = torch.zeros(1, 1, height, width)
    image[..., width // 2 :] = 1
    return image


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -7.5])
def test_constant_image_has_no_entropy(value):
    assert torch.allclose(local_entropy(torch.full((2, 1, 24, 30), value)), torch.zeros(2, 1, 24, 30), atol=1e-4)


def test_window_of_two_halves_has_one_bit():
    stripes = torch.zeros(1, 1, 30, 30)
    stripes[..., ::2] = 1
    # Every block of 2 x 2 px, and so every window of blocks, is half black and half white.
    assert torch.allclose(local_entropy(stripes, window=3, stride=2), torch.ones(1, 1, 15, 15), atol=0.01)
    # Of nine columns four or five are white.
    expected = -(4 / 9) * math.log2(4 / 9) - (5 / 9) * math.log2(5 / 9)
    assert torch.allclose(local_entropy(stripes), torch.full((1, 1, 30, 30), expected), atol=0.01)


def test_entropy_of_an_edge_is_that_of_the_shares_in_the_window():
    entropy = local_entropy(halves(32, 40))
    for column in range(40):
        window = range(column - 4, column + 5)
        # Reflection at columns 0 and 39 stays within one half.
        share = sum(x >= 20 for x in window) / 9
        expected = 0 if share in (0, 1) else -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        assert entropy[0, 0, :, column].tolist() == pytest.approx([expected] * 32, abs=0.01)


def test_entropy_is_blind_to_gain_offset_and_inversion():
    image = noise(1, 1, 40, 40)
    entropy = local_entropy(image)
    assert torch.allclose(local_entropy(0.3 * image + 5), entropy, atol=1e-3)
    assert torch.allclose(local_entropy(-image), entropy, atol=1e-3)


def test_entropy_of_random_levels_is_bounded_by_their_number():
    # Memberships of neighbouring levels overlap, so that many levels tell less than their logarithm.
    for levels, least in ((2, 0.95), (4, 1.7), (8, 1.6), (256, 1.5)):
        entropy = local_entropy((noise(1, 1, 64, 64) * levels).floor())
        assert entropy.mean() > least and entropy.max() <= min(math.log2(levels), 4) + 1e-3


def test_entropy_stride_keeps_places_and_values():
    # Flat left half, noise in the right half: the same map at a quarter of the places.
    image = noise(1, 1, 64, 96)
    image[..., :48] = 0.5
    full, coarse = local_entropy(image), local_entropy(image, window=3, stride=4)
    assert coarse.shape == (1, 1, 16, 24)
    assert coarse[..., :8].abs().max() < 1e-3 and coarse[..., 16:].min() > 1.5
    pooled = torch.nn.functional.avg_pool2d(full, 4)
    assert np.corrcoef(coarse.flatten(), pooled.flatten())[0, 1] > 0.95
    assert torch.equal(local_entropy(image, stride=1), full)


def test_equal_images_have_no_entropy_difference():
    entropy = local_entropy(noise(2, 1, 32, 32))
    assert torch.equal(entropy_difference(entropy, entropy), torch.zeros_like(entropy))
    assert entropy_difference(torch.tensor(1.0), torch.tensor(3.5)).item() == 2.5


def test_gate_is_high_where_both_are_informative_and_agree():
    # Four quarters: both informative, fixed only, moving only, neither.
    fixed, moving = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    fixed[..., :16, :] = 3
    moving[..., :, :16] = 3
    w = gate(fixed, moving)
    both, only_fixed, only_moving, neither = (w[0, 0, y, x].item() for y, x in ((6, 6), (6, 24), (24, 6), (24, 24)))
    assert both == pytest.approx(1, abs=1e-5)
    # 0.15 + 0.85 exp(-0.5 * 3 / 0.6) * 0.5, by hand
    assert only_fixed == only_moving == pytest.approx(0.15 + 0.85 * math.exp(-2.5) / 2, abs=1e-5)
    assert neither == pytest.approx(0.15, abs=1e-5)


def test_gate_stays_between_floor_and_one():
    a, b = 4 * noise(3, 1, 40, 24), 4 * noise(3, 1, 40, 24, seed=1)
    for floor in (0.15, 0.4):
        w = gate(a, b, floor=floor)
        assert w.shape == a.shape and w.min() >= floor - 1e-6 and w.max() <= 1 + 1e-6
    assert torch.equal(gate(a, b), gate(b, a))


def test_gate_is_a_mean_of_three_by_three():
    entropy = torch.zeros(1, 1, 16, 16)
    entropy[..., 8, 5] = 2
    expected = torch.full((16, 16), 0.15)
    expected[7:10, 4:7] += 0.85 / 9
    assert torch.allclose(gate(entropy, entropy)[0, 0], expected, atol=1e-6)


def bars(vertical: bool, size: int = 40) -> Tensor:
    wave = 0.5 + 0.5 * torch.sin(torch.arange(size) * (2 * math.pi / 8))
    image = wave.expand(size, size) if vertical else wave[:, None].expand(size, size)
    return image[None, None]


def test_agreement_of_equal_and_inverted_images_is_one():
    image = noise(2, 1, 40, 48)
    for other in (image, 1 - image, 0.4 * image + 0.1):
        assert torch.allclose(gradient_agreement(image, other), torch.ones_like(image), atol=1e-4)


def test_agreement_of_perpendicular_edges_is_low():
    agreement = gradient_agreement(bars(True), bars(False))
    assert agreement[..., 4:-4, 4:-4].max() < 0.01
    assert torch.allclose(gradient_agreement(bars(True), bars(True)), torch.ones(1, 1, 40, 40), atol=1e-4)


def test_agreement_of_edges_at_45_degrees_is_half():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    agreement = gradient_agreement((x / 40)[None, None] * 4, ((x + y) / 80)[None, None] * 8)
    assert torch.allclose(agreement[..., 4:-4, 4:-4], torch.full((1, 1, 32, 32), 0.5), atol=0.01)


def test_flat_places_agree():
    flat = torch.full((1, 1, 32, 32), 0.4)
    assert torch.allclose(gradient_agreement(flat, bars(True, 32)), torch.ones(1, 1, 32, 32), atol=1e-5)
    assert torch.allclose(gradient_agreement(flat, flat), torch.ones(1, 1, 32, 32), atol=1e-5)


def test_faint_edges_count_by_the_noise_and_as_far_as_the_window():
    # Slopes of 0.02 that cross, as strong as the noise: (0 + noise^4) / (0.02^4 + noise^4).
    ramp = (0.02 * torch.arange(24.0)).expand(1, 1, 24, 24)
    assert torch.allclose(gradient_agreement(ramp, ramp.mT)[..., 4:-4, 4:-4], torch.tensor(0.5), atol=1e-3)
    # Edges that cross from row 12 on (the filter sees them there first) count two rows before.
    below = (0.5 * (torch.arange(24.0) - 12).clamp_min(0))[:, None].expand(1, 1, 24, 24)
    agreement = gradient_agreement(25 * ramp, below)[..., 4:-4]
    assert torch.allclose(agreement[..., :10, :], torch.ones(())) and agreement[..., 10, :].max() < 0.01


def test_jacobian_of_zero_flow_and_of_shifts_is_one():
    assert torch.equal(jacobian_determinant(torch.zeros(2, 2, 9, 13)), torch.ones(2, 1, 9, 13))
    assert torch.equal(jacobian_determinant(torch.full((1, 2, 9, 13), 3.0)), torch.ones(1, 1, 9, 13))


def test_jacobian_of_scaling_shear_and_rotation_by_hand():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(13.0), indexing="ij")
    still = torch.zeros_like(x)

    def determinant(u: Tensor, v: Tensor) -> Tensor:
        return jacobian_determinant(torch.stack((u, v))[None])

    assert torch.allclose(determinant(0.5 * x, still), torch.full((1, 1, 9, 13), 1.5))
    assert torch.allclose(determinant(0.5 * x, -0.25 * y), torch.full((1, 1, 9, 13), 1.5 * 0.75))
    assert torch.allclose(determinant(0.5 * y, still), torch.ones(1, 1, 9, 13))
    assert torch.allclose(determinant(0.5 * y, 0.5 * x), torch.full((1, 1, 9, 13), 0.75))
    turn = torch.tensor([[[0.8, -0.6], [0.6, 0.8]]])
    assert torch.allclose(
        jacobian_determinant(affine_flow((9, 13), turn, torch.zeros(1, 2))), torch.ones(1, 1, 9, 13), atol=1e-5
    )


def test_jacobian_of_a_mirror_and_of_a_fold_is_not_positive():
    x = torch.arange(13.0).expand(9, 13)
    mirror = torch.stack((-2 * x, torch.zeros(9, 13)))[None]
    assert torch.allclose(jacobian_determinant(mirror), torch.full((1, 1, 9, 13), -1.0))
    fold = torch.zeros(1, 2, 9, 13)
    fold[:, 0, :, 6:] = -4  # columns from 6 on look where columns from 2 on look
    determinant = jacobian_determinant(fold)
    assert (determinant[..., 5:7] <= 0).all() and (determinant[..., :5] == 1).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_images_give_finite_maps_and_gradients(value):
    fixed = torch.full((1, 1, 32, 32), value, requires_grad=True)
    moving = torch.full((1, 1, 32, 32), 0.5, requires_grad=True)
    entropies = local_entropy(fixed), local_entropy(moving)
    maps = (*entropies, gate(*entropies), gradient_agreement(fixed, moving), gradient_magnitude(fixed))
    sum(m.sum() for m in maps).backward()
    for tensor in (*maps, fixed.grad, moving.grad):
        assert tensor.isfinite().all()


def test_one_bright_pixel_gives_finite_maps():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 0, 0] = 1
    entropy = local_entropy(image)
    for tensor in (entropy, gate(entropy, entropy), gradient_agreement(image, 1 - image), min_max(image)):
        assert tensor.isfinite().all()
