import pytest
import torch

from models.consensus import (
    AGREEMENT,
    CAUTION,
    FAINT,
    LARGE,
    LOCAL_CAUTION,
    FaintPart,
    HeldBack,
    mean_spread,
    spread_of,
)
from tests.examples import constant_flow

SIZE = (6, 10)
held_back, faint_part = HeldBack(), FaintPart()


def everywhere(value: float) -> torch.Tensor:
    return torch.full((1, 1, *SIZE), float(value))


def test_spread_by_hand():
    shifts = ((3, 0), (-3, 0), (0, 4), (0, -4))
    estimates = torch.stack([constant_flow(x, y, SIZE) for x, y in shifts])
    estimates[:, :, :, 0] += 7  # what all have in common
    assert torch.allclose(spread_of(estimates), torch.full((1, 1, *SIZE), (9 + 9 + 16 + 16) / 4), atol=1e-5)


def test_mean_spread_is_that_of_the_head():
    spread, head = torch.full((2, 1, *SIZE), 7.0), torch.zeros(2, 1, *SIZE)
    head[..., :5] = 1
    spread[0, ..., :5], spread[1, ..., :5] = 1, 3
    actual = mean_spread(spread, head)
    assert actual.shape == (2, 1, 1, 1)
    assert torch.allclose(actual.flatten(), torch.tensor([1.0, 3.0]), atol=1e-3)
    assert torch.allclose(mean_spread(spread, 0 * head).flatten(), torch.tensor([4.0, 5.0]))


@pytest.mark.parametrize(("doubt", "share"), [(0, 0), (AGREEMENT, 0), (AGREEMENT + 25 / CAUTION, 0.5)])
def test_share_that_is_held_back(doubt, share):
    flow = constant_flow(3, 4, SIZE)  # of a mean square of 25
    taken = held_back(flow, everywhere(doubt), torch.ones(1, 1, *SIZE))
    assert torch.allclose(taken, share * flow, atol=1e-5)


def test_a_large_displacement_is_held_back_less():
    flow = constant_flow(0, 2 * LARGE**0.5, SIZE)  # of a mean square of 4 LARGE
    taken = held_back(flow, everywhere(AGREEMENT + 4 * LARGE / CAUTION), torch.ones(1, 1, *SIZE))
    assert torch.allclose(taken, flow / (1 + 4), atol=1e-4)


def test_only_the_head_counts():
    flow, head = constant_flow(3, 4, SIZE), torch.zeros(1, 1, *SIZE)
    head[..., :5] = 1
    flow[..., 5:] = 20
    taken = held_back(flow, everywhere(AGREEMENT + 25 / CAUTION), head)
    assert torch.allclose(taken[..., :5], 0.5 * flow[..., :5], rtol=1e-2)


def ripple() -> torch.Tensor:
    """A local flow of mean square 0.6 in each component, orthogonal to all that is affine."""
    return torch.tensor([1.0, -1, -1, 1, 0, 0, 1, -1, -1, 1]).repeat(1, 2, SIZE[0], 1)[..., :10] * (6 / 10 / 0.6) ** 0.5


def test_estimates_that_agree_leave_all_as_it_is():
    flow = constant_flow(3, 4, SIZE) + ripple()
    assert held_back(flow, everywhere(AGREEMENT), torch.ones(1, 1, *SIZE)).abs().max() < 1e-6


def test_what_is_local_is_held_back_by_a_share_of_its_own():
    local_square = ripple().square().sum(dim=1).mean()
    spread = everywhere(AGREEMENT + local_square / LOCAL_CAUTION)
    error = CAUTION * local_square / LOCAL_CAUTION
    flow = constant_flow(3, 4, SIZE)
    taken = held_back(flow + ripple(), spread, torch.ones(1, 1, *SIZE))
    mean_square = (flow + ripple()).square().sum(dim=1).mean()
    assert torch.allclose(taken, error / (error + mean_square) * flow + 0.5 * ripple(), atol=1e-3)


def test_what_is_local_is_held_back_where_the_estimates_disagree():
    spread, size = torch.zeros(1, 1, 32, 32), (32, 32)
    spread[..., 24:] = 200.0
    local = torch.zeros(1, 2, *size)
    local[:, 0, ::2], local[:, 0, 1::2] = 1.0, -1.0
    taken = held_back(local, spread, torch.ones(1, 1, *size))
    assert taken[..., :8].abs().max() < 0.15 and (taken - local)[..., 26:].abs().max() < 0.15


def test_no_flow_and_no_head():
    nothing = torch.zeros(1, 1, *SIZE)
    assert held_back(constant_flow(0, 0, SIZE), everywhere(5), nothing + 1).abs().max() == 0
    taken = held_back(constant_flow(3, 4, SIZE), everywhere(AGREEMENT + 25 / CAUTION), nothing)
    assert torch.allclose(taken, constant_flow(1.5, 2, SIZE))


def test_a_head_in_a_single_row():
    head = torch.zeros(1, 1, *SIZE)
    head[..., 2, :] = 1
    taken = held_back(constant_flow(3, 4, SIZE), everywhere(AGREEMENT + 25 / CAUTION), head)
    assert torch.allclose(taken, constant_flow(1.5, 2, SIZE), atol=1e-3)


@pytest.mark.parametrize(("length", "share"), [(0.0, 1), (FAINT[0], 1), (sum(FAINT) / 2, 0.5), (FAINT[1], 0), (30, 0)])
def test_share_that_is_dropped(length, share):
    flow = constant_flow(0.6 * length, -0.8 * length, SIZE)
    assert torch.allclose(faint_part(flow, torch.ones(1, 1, *SIZE)), share * flow, atol=1e-5)


def test_a_local_displacement_stays_and_little_elsewhere_is_dropped():
    flow = constant_flow(0.3, 0, (8, 64))
    flow[..., 40:] = 3.0
    left = flow - faint_part(flow, torch.ones(1, 1, 8, 64))
    assert torch.equal(left[..., 40:], flow[..., 40:])
    assert left[..., :24].abs().max() == 0


def test_what_is_found_outside_the_head_keeps_nothing_alive():
    flow, head = constant_flow(0.3, 0, SIZE), torch.zeros(1, 1, *SIZE)
    head[..., :5], flow[..., 5:] = 1, 30
    assert torch.allclose(faint_part(flow, head)[..., :5], flow[..., :5], atol=1e-5)
    assert faint_part(flow, 0 * head).abs().max() == 0  # without a head all places count
