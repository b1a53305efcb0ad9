"""inference/multistart.py: pairs that lie far apart are aligned from the start whose estimates agree best."""

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from data.pairs import read_pair, sample_pairs
from inference.multistart import register_from_afar
from inference.pair_fuser import PairFuser
from models.checkpoint import load_checkpoint
from models.outputs import Output
from utils.arguments import DEFAULT_CHECKPOINT
from utils.geometry.affine import flow_of, turn_about
from utils.geometry.warp import compose, warp

SIZE = (256, 256)


def ellipse(x: float = 128, y: float = 128, degrees: float = 0) -> Tensor:
    """A bright ellipse about (x, y), longer from top to bottom, turned from the x to the y axis."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in SIZE), indexing="ij")
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, along = c * (columns - x) + s * (rows - y), c * (rows - y) - s * (columns - x)
    return (0.8 * (((across / 50) ** 2 + (along / 80) ** 2) < 1).float())[None, None]


def moments(image: Tensor) -> tuple[Tensor, float]:
    """Centre (x, y) and turn in degrees of an ellipse."""
    rows, columns = (image[0, 0] > 0.4).nonzero(as_tuple=True)
    places = torch.stack((columns, rows)).float()
    (xx, xy), (_, yy) = torch.cov(places)
    return places.mean(dim=1), math.degrees(0.5 * torch.atan2(-2 * xy, yy - xx))


class Moments(torch.nn.Module):
    """Stands in for the network: finds a share of shift and turn, of a turn beyond `limit` degrees nothing."""

    def __init__(self, share: float = 1.0, limit: float = 20.0) -> None:
        super().__init__()
        self.share, self.limit, self.calls = share, limit, 0

    def forward(self, fixed: Tensor, moving: Tensor, passes: int = 1, average: bool = True) -> Output:
        self.calls += 1
        if not passes:
            still = flow_of(torch.eye(3), SIZE)
            return Output(moving, moving, still, still, *[torch.zeros_like(fixed)] * 6, torch.zeros(1))
        (start, before), (goal, after) = moments(fixed), moments(moving)
        turned = abs(after - before)
        matrix = torch.eye(3)
        if turned < self.limit:
            matrix = turn_about(fixed, self.share * (after - before))
            matrix[:2, 2] += self.share * (goal - start)
        flow, inverse = flow_of(matrix, SIZE), flow_of(torch.linalg.inv(matrix), SIZE)
        blank = torch.zeros_like(fixed)
        doubt = 0.4 + 0.005 * turned + 0.02 * float((goal - start).norm())
        disagreement = torch.tensor([doubt if turned < self.limit else 2.0])
        return Output(blank, warp(moving, flow), flow, inverse, *[blank] * 6, disagreement)


def register(model: Moments, moving: Tensor, fixed: Tensor | None = None) -> tuple[Output, Output]:
    """What the model makes of a pair at first, and from afar."""
    fixed = ellipse() if fixed is None else fixed
    first = model(fixed, moving)
    model.calls = 0
    return first, register_from_afar(model, fixed, moving, first)


def overlap(a: Tensor, b: Tensor) -> float:
    """Dice coefficient of two ellipses."""
    a, b = a > 0.4, b > 0.4
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_pair_that_lies_near_is_aligned_once():
    model = Moments()
    first, actual = register(model, ellipse(133, 125, 3))
    assert actual is first and model.calls == 0


@pytest.mark.parametrize("scale", [1, 2])
def test_a_pair_that_lies_far_is_aligned_on_from_where_the_first_estimate_led(scale):
    fixed, moving = (torch.nn.functional.interpolate(x, scale_factor=scale) for x in (ellipse(), ellipse(168, 118, 10)))
    half = Moments(share=0.6)
    # Twice as large images displaced by twice as many px are the same to the model.
    model = half if scale == 1 else lambda f, m: _enlarged(half(f[..., ::2, ::2], m[..., ::2, ::2]))
    first = model(fixed, moving)
    half.calls = 0
    actual = register_from_afar(model, fixed, moving, first)
    assert overlap(first.aligned, fixed) < 0.9 and half.calls in (2, 3)
    assert overlap(warp(moving, actual.flow), fixed) > 0.97
    assert overlap(warp(fixed, actual.inverse_flow), moving) > 0.97
    inside = (slice(None), slice(None), slice(80 * scale, 170 * scale), slice(80 * scale, 170 * scale))
    assert compose(actual.flow, actual.inverse_flow)[inside].norm(dim=1).max() < 0.1 * scale


def _enlarged(output: Output) -> Output:
    """Of images twice as large."""
    aligned = torch.nn.functional.interpolate(output.aligned, scale_factor=2)
    flows = (2 * torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear") for x in output[2:4])
    return Output(output.fused, aligned, *flows, *output[4:])


@pytest.mark.parametrize("degrees", [-45, -33, 33, 45])
def test_a_head_that_is_turned_too_far_is_found_from_a_turned_start(degrees):
    model, moving = Moments(), ellipse(140, 120, degrees)
    first, actual = register(model, moving)
    assert not first.flow.any()
    assert overlap(warp(moving, actual.flow), ellipse()) > 0.97
    assert overlap(warp(ellipse(), actual.inverse_flow), moving) > 0.97
    assert actual.disagreement == first.disagreement == 2.0


@pytest.mark.parametrize("left_out", [None, "multistart", "average"])
def test_a_pair_is_fused_as_it_was_found_from_afar(left_out):
    fixed, moving = ellipse()[0, 0].numpy(), ellipse(168, 118, 10)
    options = {name: name != left_out for name in ("average", "multistart")}
    fuse = PairFuser(Moments(share=0.6), torch.device("cpu"), **options)
    result = fuse(fixed, moving[0, 0].numpy())
    once = warp(moving, torch.from_numpy(result.flow)[None])[0, 0].numpy()
    assert np.array_equal(result.aligned, once)
    actual = left_out is None
    # Sampled once, whatever the number of starts, and fused as it is.
    assert (overlap(torch.from_numpy(once), torch.from_numpy(fixed)) > 0.97) == actual
    assert np.array_equal(result.fused, once) == actual


def test_the_seconds_of_a_pair_do_not_count_what_a_model_needs_to_be_ready():
    model, met = Moments(share=0.6), []

    def slow_at_first(fixed: Tensor, moving: Tensor, passes: int, average: bool) -> Output:
        if passes not in met:
            met.append(passes)
            time.sleep(3)
        if not moving.any():  # nothing to find the moments of
            passes = 0
        return model(fixed, moving, passes, average)

    fixed, far = ellipse()[0, 0].numpy(), ellipse(168, 118, 10)[0, 0].numpy()
    fuse = PairFuser(slow_at_first, torch.device("cpu"), average=True)
    seconds = fuse(fixed, far).seconds
    assert sorted(met) == [0, 1] and 0 < seconds < 3
    assert fuse(fixed, far).seconds < 3


def test_what_beginning_anew_finds_is_kept_even_if_the_first_estimate_missed_it():
    fixed, moving = ellipse(), ellipse(160, 120, 12)
    missed = Moments(limit=0.0)(fixed, moving)
    actual = register_from_afar(Moments(), fixed, moving, missed)
    assert not missed.flow.any()
    assert overlap(warp(moving, actual.flow), fixed) > 0.97


def test_a_turned_start_whose_estimates_agree_no_better_is_not_kept():
    model = Moments(limit=0.0)
    first, actual = register(model, ellipse(degrees=40))
    assert actual is first and model.calls > 4


def register_scripted(
    shift: float, disagreement: float, script: list[tuple[float, float]], degrees: float = 0
) -> tuple[str, list, Output]:
    """What is kept of estimates whose shifts along x, px, and disagreements are given: first, settled or turned; what
    of the script was not asked for; and the output.
    """
    left, blank, moving = list(script), torch.zeros(1, 1, *SIZE), ellipse()

    def estimate(shift: float, disagreement: float, degrees: float = 0) -> Output:
        matrix = turn_about(torch.ones_like(blank), degrees)
        matrix[0, 2] += shift
        flow, inverse = flow_of(matrix, SIZE), flow_of(torch.linalg.inv(matrix), SIZE)
        return Output(blank, moving, flow, inverse, *[blank] * 6, torch.tensor([disagreement]))

    first = estimate(shift, disagreement, degrees)
    actual = register_from_afar(lambda fixed, moving: estimate(*left.pop(0)), moving, moving, first)
    if actual is first:
        return "first", left, actual
    turned = actual.flow.std(dim=(2, 3)).max() > 1
    return "turned" if turned else "settled", left, actual


@pytest.mark.parametrize(("shift", "disagreement", "settled", "start", "end", "kept"), [
    # Of a pair that lies near, doubt 0.25 * 1.2 + 0.9 = 1.2: the turned start's must be below 0.75 * 1.2 = 0.9.
    (0, 1.2, 0.9, 1.0, 0.64, "turned"), (0, 1.2, 0.9, 1.0, 0.66, "first"),
    (0, 1.2, 0.9, 0.3, 0.72, "first"),  # 0.795, but what it ends at is 0.7 or more
    # Of one that lies far, below 0.9 * 1.2 = 1.08.
    (20, 1.2, 0.9, 1.6, 0.67, "turned"), (20, 1.2, 0.9, 1.6, 0.69, "settled"),
    # Nothing is turned where settled estimates agree to 0.6, and nothing is begun where the first ones do to 1.
    (20, 1.2, 0.59, 0.1, 0.1, "settled"), (20, 1.05, 0.59, 0.1, 0.1, "settled"), (20, 1.0, 0.59, 0.1, 0.1, "first"),
    (9.5, 1.2, 0.59, 0.1, 0.1, "first"), (10.5, 1.2, 0.59, 0.1, 0.1, "settled"),
])  # fmt: skip
def test_which_start_is_kept(shift, disagreement, settled, start, end, kept):
    actual, left, _ = register_scripted(shift, disagreement, [(0, settled), *[(0, start), (0, end)] * 4])
    assert actual == kept
    calls = 0 if disagreement <= 1 else 1 if settled < 0.6 else 9
    assert len(left) == 9 - calls


@pytest.mark.parametrize(("disagreement", "kept"), [(0.65, "settled"), (0.75, "first")])
def test_a_large_displacement_found_late_must_be_agreed_on(disagreement, kept):
    script = [(20, 1.0), (0, disagreement), *[(0, 9.0), (0, 9.0)] * 4]
    assert register_scripted(0, 1.2, script)[:2] == (kept, [])


@pytest.mark.parametrize(("shifts", "asked"), [([2.9], 1), ([3.2, 2.9], 2), ([5.0] * 4, 4)])
def test_it_begins_anew_until_little_is_found(shifts, asked):
    script = [*((shift, 0.5) for shift in shifts), *[(0, 0.5)] * 4]
    assert len(register_scripted(20, 1.2, script)[1]) == len(script) - asked


def test_the_way_back_undoes_what_was_found_before_the_start():
    _, _, actual = register_scripted(20, 1.2, [(2.5, 0.5)], degrees=60)
    inside = (slice(None), slice(None), slice(100, 156), slice(100, 156))
    for forward, back in ((actual.flow, actual.inverse_flow), (actual.inverse_flow, actual.flow)):
        assert compose(forward, back)[inside].norm(dim=1).max() < 0.05


@pytest.mark.parametrize("modality", ["CT", "PET", "SPECT"])
def test_the_sample_turned_by_thirty_degrees(modality):
    """The part that only a turned start finds; its first estimate leaves most of the turn."""
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    images = read_pair(sample_pairs(modality)[modality][0], modality)
    moving = torch.from_numpy(np.atleast_3d(images.moving)).permute(2, 0, 1)[None].float()
    turn = turn_about(torch.ones(1, 1, *moving.shape[2:]), 30)
    turned = warp(moving, flow_of(turn, tuple(moving.shape[2:])))[0].permute(1, 2, 0).squeeze(-1).numpy()
    device, left = torch.device("cpu"), {}
    for multistart in (False, True):
        fuse = PairFuser(checkpoint.model, device, **checkpoint.inference(), multistart=multistart)
        near, far = fuse(images.fixed, images.moving), fuse(images.fixed, turned)
        # The way back turns by as much the other way.
        whole = compose(flow_of(turn, near.flow.shape[1:]), torch.from_numpy(far.flow)[None])
        middle = (whole[0] - torch.from_numpy(near.flow))[:, 64:192, 64:192]
        left[multistart] = middle.norm(dim=0).mean().item()
    assert left[True] < 2 and left[True] < 0.5 * left[False]


def test_a_start_from_which_the_images_tell_each_other_less_is_not_kept():
    fixed, blank, still = ellipse(), torch.zeros(1, 1, *SIZE), flow_of(torch.eye(3), SIZE)

    def estimate(aligned: Tensor, disagreement: float) -> Output:
        return Output(blank, aligned, still, still, *[blank] * 6, torch.tensor([disagreement]))

    far = flow_of(torch.tensor([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]), SIZE)
    first = estimate(fixed, 2.0)._replace(flow=far)
    worse, as_good = (lambda *_, aligned=x: estimate(aligned, 0.1) for x in (ellipse(150, 150, 40), fixed))
    assert register_from_afar(worse, fixed, fixed, first) is first
    assert register_from_afar(as_good, fixed, fixed, first) is not first
