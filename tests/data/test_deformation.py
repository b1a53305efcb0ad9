"""data/deformation.py: the benchmark's statistics, repeatable draws, exact inverses, affine maps by hand."""

import pytest
import torch
from torch import Tensor

from data.deformation import BENCHMARK, GRID_STRIDE, WIDE, DeformationRange, random_flow
from utils.geometry.warp import compose, invert, resize_flow
from utils.maps import jacobian_determinant

FIELD = DeformationRange(amplitude=(2.606, 2.606), sigma=(16.0, 16.0))
"""The benchmark's random field without its translation."""


def draws(ranges: DeformationRange, count: int, size: tuple[int, int] = (256, 256)) -> Tensor:
    """(count, 2, H / 4, W / 4), in px of the full image."""
    generator = torch.Generator().manual_seed(0)
    return GRID_STRIDE * torch.cat([random_flow(size, ranges, generator) for _ in range(count)])


def test_benchmark_displacements_have_the_measured_size():
    length = draws(BENCHMARK, 300).norm(dim=1)
    # The benchmark: mean 3.5 to 3.9 px in the head, 95th percentile about 7, maximum about 10.
    assert 3.4 < length.mean() < 4.0
    assert 6.5 < length.flatten()[::37].quantile(0.95) < 8
    assert 8 < length.amax(dim=(1, 2)).mean() < 11


def test_field_has_the_deviation_and_smoothness_of_blurred_noise():
    field = draws(FIELD, 300)
    assert field.std().item() == pytest.approx(2.606, rel=0.03)
    assert abs(field.mean().item()) < 0.1
    # A Gaussian blur of sigma correlates points d apart with exp(-d^2 / (4 sigma^2)).
    for steps, expected in ((2, 0.939), (4, 0.779), (8, 0.368)):
        for near, far in (
            (field[..., steps:], field[..., :-steps]),
            (field[..., steps:, :], field[..., :-steps, :]),
        ):
            assert ((near * far).mean() / field.square().mean()).item() == pytest.approx(expected, abs=0.04)


def test_the_border_moves_as_much_as_the_middle():
    field = draws(FIELD, 300)
    assert field[..., 0].std().item() == pytest.approx(2.606, rel=0.06)
    assert field[..., 0, 0].std().item() == pytest.approx(2.606, rel=0.15)


def test_the_two_components_are_independent():
    field = draws(FIELD, 300)
    assert abs((field[:, 0] * field[:, 1]).mean().item()) < 0.05 * 2.606**2


def test_draws_repeat_under_a_seed():
    def draw(seed: int) -> Tensor:
        return random_flow((128, 96), WIDE, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    generator = torch.Generator().manual_seed(3)
    first, second = (random_flow((128, 96), WIDE, generator) for _ in range(2))
    assert torch.equal(first, draw(3)) and not torch.equal(first, second)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_flow((64, 64), WIDE, torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("size", "grid"), [((256, 256), (64, 64)), ((64, 200), (16, 50)), ((70, 91), (17, 22))])
def test_grid_has_a_quarter_of_the_resolution(size, grid):
    flow = random_flow(size, WIDE, torch.Generator().manual_seed(0))
    assert flow.shape == (1, 2, *grid) and flow.dtype == torch.float32 and flow.isfinite().all()


def test_lengths_scale_with_the_image():
    assert draws(FIELD, 60, (512, 512)).std().item() == pytest.approx(2 * 2.606, rel=0.06)
    assert draws(FIELD, 60, (128, 128)).std().item() == pytest.approx(2.606 / 2, rel=0.06)
    shift = DeformationRange(amplitude=(0, 0), sigma=(16, 16), translation=10)
    small, big = draws(shift, 1, (128, 128)), draws(shift, 1, (512, 512))
    # The same draw of a shift, four times as long; constant over the image.
    assert torch.allclose(4 * small[..., 0, 0], big[..., 0, 0], atol=1e-5)
    assert torch.allclose(big, big[..., :1, :1].expand_as(big), atol=1e-5)
    assert big.abs().max() <= 20


def test_each_axis_is_shifted_either_way_by_itself():
    shifts = draws(DeformationRange(amplitude=(0, 0), sigma=(16, 16), translation=10), 40)[..., 0, 0]
    assert {(x > 0, y > 0) for x, y in shifts.tolist()} == {(a, b) for a in (True, False) for b in (True, False)}


def test_lengths_scale_with_the_mean_side():
    # Of 128 x 384 px that is 256 px.
    assert draws(FIELD, 60, (128, 384)).std().item() == pytest.approx(2.606, rel=0.06)
    assert draws(FIELD, 60, (384, 128)).std().item() == pytest.approx(2.606, rel=0.06)


def test_smoothness_scales_with_the_image():
    field = draws(FIELD, 60, (512, 512))
    # 32 px at 512 x 512 is 16 px at 256 x 256.
    correlation = (field[..., 8:] * field[..., :-8]).mean() / field.square().mean()
    assert correlation.item() == pytest.approx(0.779, abs=0.05)


def test_rotation_and_scale_stay_within_their_ranges():
    turn = DeformationRange(amplitude=(0, 0), sigma=(16, 16), rotation=(-12, 12), scale=0.08)
    flows = draws(turn, 50) / GRID_STRIDE
    area = jacobian_determinant(flows)
    assert area.min() >= 0.92**2 - 1e-4 and area.max() <= 1.08**2 + 1e-4 and area.std() > 0.02
    # Larger and smaller, and turned either way: the sine of the angle is how fast y moves along x.
    assert area.min() < 0.95**2 and area.max() > 1.05**2
    sine = flows[:, 1].diff(dim=2).mean(dim=(1, 2))
    assert sine.min() < -0.15 and sine.max() > 0.15
    # Nothing moves at the centre, between the four middle points.
    assert flows[..., 31:33, 31:33].mean(dim=(2, 3)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(256, 256), (128, 200)])
def test_misalignment_is_the_inverse(size):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        deformation = random_flow(size, BENCHMARK, generator)
        flow = invert(deformation)
        there_and_back = GRID_STRIDE * compose(deformation, flow)[..., 4:-4, 4:-4].norm(dim=1)
        assert there_and_back.max() < 0.05 < 0.5 < GRID_STRIDE * deformation.norm(dim=1).mean()
        # The other way round adds what a grid of 4 px costs in resolution.
        back_and_there = GRID_STRIDE * compose(flow, deformation)[..., 4:-4, 4:-4].norm(dim=1)
        assert back_and_there.mean() < 0.12 and back_and_there.max() < 0.6


def test_the_grid_costs_little_against_an_inverse_at_full_resolution():
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        deformation = random_flow((256, 256), BENCHMARK, generator)
        full = invert(resize_flow(deformation, (256, 256)), 20)
        error = (resize_flow(invert(deformation), (256, 256)) - full)[..., 16:-16, 16:-16].norm(dim=1)
        assert error.mean() < 0.05 and error.max() < 0.5


def test_benchmark_does_not_fold():
    assert (jacobian_determinant(draws(BENCHMARK, 100) / GRID_STRIDE) > 0).all()
