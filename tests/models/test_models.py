"""models/: matching against brute force, any size in, ranges kept, no NaN, ablations that do what they say."""

import math
from itertools import cycle

import pytest
import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.eda_flowreg import CELL, STEP, EDAFlowReg, FlowStep, Scale, correlate, expected_displacement, warp_phases
from models.edarfusion import EDARFusion, further_share
from models.encoder import Encoders, EntropyAtQuarter
from models.frg_prereg import FRGPreReg
from models.fusion import FlowGuidedFusion, alignment_consistency, changed_within, plain_fusion
from models.layers import GaussianBlur, UNet, side_by_side
from models.outputs import Output
from models.presets import PRESETS
from models.room import LEAST_BRIGHT, room_of
from tests.examples import constant_flow, displacements, noise
from utils.arguments import DEFAULT_CHECKPOINT
from utils.filters import gradient_magnitude, halved, resize
from utils.geometry.affine import affine_flow
from utils.geometry.warp import compose, warp
from utils.maps import local_entropy, reliability_prior


def images(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth structure on a black background, (batch, 1, height, width) in [0, 1]."""
    coarse = noise(2 * batch, 1, height // 8 + 1, width // 8 + 1, seed=seed)
    both = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    both[..., :8] = 0
    return both[:batch], both[batch:]


def build(preset: str = "tiny", **options) -> EDARFusion:
    torch.manual_seed(0)
    model = EDARFusion(preset, **options).eval()
    # The heads start at zero; a test of what they do must not.
    parts = [*model.eda_flowreg.scales, model.fusion, model.refinement]
    for part in filter(None, parts):
        torch.nn.init.normal_(part.head.weight, std=0.05)
    return model


@pytest.fixture(scope="module")
def tiny() -> EDARFusion:
    return build()


def edges(images: Tensor) -> Tensor:
    """As the network sees them."""
    return gradient_magnitude(halved(images))


def features(batch: int = 2, channels: int = 16, height: int = 8, width: int = 10, seed: int = 0) -> Tensor:
    """(batch, 4, channels, height, width) of unit length."""
    values = torch.randn(batch, 4, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=2)


def check(output: Output, height: int, width: int, batch: int = 1) -> None:
    """Shapes, ranges and finite values of everything that the model returns."""
    for name, field in output._asdict().items():
        if field is None:
            assert name == "expected_error"
            continue
        channels = 2 if name in ("flow", "inverse_flow") else 1
        assert field.shape == ((batch,) if name == "disagreement" else (batch, channels, height, width)), name
        assert field.dtype == torch.float32 and field.isfinite().all(), name
        if name in ("fused", "aligned", "gate", "reliability", "consistency"):
            assert field.min() >= 0 and field.max() <= 1, name
        if name.startswith("entropy"):
            assert field.min() >= 0 and field.max() <= 4, name


# --- matching -------------------------------------------------------------------------------------------------


def fine_grid(values: Tensor) -> Tensor:
    """Features (B, 4, C, h, w) as (B, C, 2 h, 2 w), point by point: phases right, below and both."""
    batch, _, channels, height, width = values.shape
    grid = values.new_zeros(batch, channels, 2 * height, 2 * width)
    for phase, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        grid[:, :, dy::2, dx::2] = values[:, phase]
    return grid


@pytest.mark.parametrize("radius", [1, 4])
def test_the_expected_displacement_is_that_of_the_peak_or_the_mean_of_two(radius):
    places = displacements(radius)
    for k, place in enumerate(places):
        scores = torch.zeros(1, len(places), 2, 3)
        scores[:, k] = 100
        assert torch.allclose(expected_displacement(scores, radius)[0, :, 1, 2], torch.tensor(place))
        scores[:, -1] = 100
        between = (torch.tensor(place) + torch.tensor(places[-1])) / 2
        assert torch.allclose(expected_displacement(scores, radius)[0, :, 0, 0], between, atol=1e-5)


def test_the_expected_displacement_is_as_exact_under_autocast():
    scores = 5 * noise(1, 81, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expected_displacement(scores, 4), expected_displacement(scores.float(), 4))
    assert expected_displacement(scores, 4).dtype == torch.float32


@pytest.mark.parametrize("radius", [1, 3])
def test_correlate_agrees_with_brute_force(radius):
    fixed, moving = features(seed=1), features(seed=2)
    grid = fine_grid(moving)
    expected = torch.zeros(2, (2 * radius + 1) ** 2, 8, 10)
    for k, (dx, dy) in enumerate((int(x) // STEP, int(y) // STEP) for x, y in displacements(radius)):
        for i in range(8):
            for j in range(10):
                y, x = 2 * i + dy, 2 * j + dx
                if 0 <= y < 16 and 0 <= x < 20:
                    expected[:, k, i, j] = (fixed[:, 0, :, i, j] * grid[:, :, y, x]).sum(dim=1)
    assert torch.allclose(correlate(fixed, moving, radius), expected, atol=1e-5)


@pytest.mark.parametrize("tile", [4, 8, 10])
def test_correlate_does_not_depend_on_its_tiles(monkeypatch, tile):
    fixed, moving = features(seed=1), features(seed=2)
    whole = correlate(fixed, moving, 3)
    monkeypatch.setattr("models.eda_flowreg.TILE", tile)
    assert torch.allclose(correlate(fixed, moving, 3), whole, atol=1e-5)


def test_correlate_peaks_at_no_displacement_for_one_image_twice():
    scores = correlate(features(), features(), 2)
    assert (scores.argmax(dim=1) == 12).all() and torch.allclose(scores[:, 12], torch.ones(2, 8, 10), atol=1e-5)


def test_correlate_can_be_differentiated():
    fixed, moving = features().requires_grad_(), features(seed=1).requires_grad_()
    correlate(fixed, moving, 1).square().sum().backward()
    assert fixed.grad[:, 0].abs().sum() > 0 and not fixed.grad[:, 1:].any()
    assert moving.grad.abs().sum() > 0 and moving.grad.isfinite().all()


def test_warp_phases_with_zero_flow_is_the_identity():
    values = features()
    assert torch.equal(warp_phases(values, torch.zeros(2, 2, 8, 10)), values)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, 1), (-1, 2)])
def test_warp_phases_by_whole_and_half_cells(x, y):
    values = features()
    for px in (CELL, STEP):
        flow = constant_flow(x * px, y * px, (8, 10)).expand(2, 2, 8, 10)
        shift = px // STEP
        rolled = fine_grid(values).roll((-y * shift, -x * shift), dims=(2, 3))
        moved = fine_grid(warp_phases(values, flow))
        assert torch.allclose(moved[..., 4:-4, 4:-4], rolled[..., 4:-4, 4:-4], atol=1e-4)


# --- the whole network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(200, 312), (64, 64)])
def test_every_preset_takes_any_size(preset, size):
    with torch.inference_mode():
        check(build(preset)(*images(1, *size)), *size)


@pytest.mark.parametrize("size", [(65, 64), (97, 131)])
def test_odd_sizes(tiny, size):
    with torch.inference_mode():
        check(tiny(*images(2, *size)), *size, batch=2)


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.8)])
def test_constant_images_give_no_nan(tiny, values):
    fixed, moving = (torch.full((1, 1, 64, 96), value) for value in values)
    with torch.inference_mode():
        output = tiny(fixed, moving)
        check(output, 64, 96)
        check(tiny(fixed, images(1, 64, 96)[1]), 64, 96)
    assert torch.allclose(output.aligned, moving)
    assert not output.entropy_difference.gt(1e-3).any()


def test_constant_images_give_finite_gradients():
    model = build()
    output = model(torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.5))
    sum(field.sum() for field in output if field is not None).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("preset", "ablation"),
    [("fast", None), *(("tiny", part) for part in (None, "entropy", "reliability", "aggregation", "refinement"))],
)
def test_every_weight_learns(preset, ablation):
    # Distributed training waits for the gradient of every weight.
    model = build(preset, **({ablation: False} if ablation else {}))
    fixed, moving = images(2, 64, 64)
    registration = model.register(fixed, moving, both=True)
    fused = model.fuse(fixed, moving, registration).fused
    results = (fused, registration.flow, registration.steps[-1].flow)
    sum(result.square().sum() for result in results).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # What adds a constant to a feature channel is taken away again by the normalisation behind it.
    assert all(name.endswith("head.bias") and name.startswith("encoder") for name in without), without


def test_fused_stays_in_range_with_a_gradient_beyond_it():
    fusion = FlowGuidedFusion(16)
    fixed, aligned = images(1, 64, 64)
    ones = torch.ones(1, 1, 8, 8)
    for bias in (-9.7, 0.0, 1.3, 9.7):
        torch.nn.init.constant_(fusion.head.bias, bias)
        fusion.zero_grad()
        fused = fusion(fixed, aligned, ones, ones).fused
        assert fused.min() >= 0 and fused.max() <= 1
        fused.sum().backward()
        assert fusion.head.bias.grad[4:].abs().min() > 0
    black = torch.zeros_like(fixed)
    for bias in (-9.7, 9.7):
        torch.nn.init.constant_(fusion.head.bias, bias)
        assert torch.allclose(fusion(black, black, ones, ones).fused, black, atol=2e-6)  # ground stays black


def test_untrained_fusion_is_near_the_plain_one():
    fixed, aligned = images(1, 64, 64)
    fused = FlowGuidedFusion(16)(fixed, aligned, torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)).fused
    assert (fused - plain_fusion(fixed, aligned, room_of(aligned))).abs().mean() < 0.05


def test_plain_fusion_by_hand():
    def fused(fixed: float, aligned: float, room: tuple[float, float, float]) -> float:
        grey = (torch.full((1, 1, 16, 16), value) for value in (fixed, aligned))
        rooms = torch.tensor(room, dtype=torch.float32).view(1, 3, 1, 1).expand(-1, -1, 16, 16)
        return plain_fusion(*grey, rooms)[0, 0, 8, 8].item()


    assert fused(0.3, 0.4, (0, 1, 0)) == pytest.approx(0.5 - 0.6 * 0.12)  # both show
    assert fused(0.6, 0.0, (0, 1, 0)) == pytest.approx(0.6) and fused(0.0, 1.0, (0.85, 1, 0)) == pytest.approx(1)
    assert fused(0.9, 0.9, (0, 1, 0)) == pytest.approx(0.9 * 2**0.5 - 0.6 * 0.81)  # room for detail
    assert fused(0.3, 0.4, (0, 1, 1)) == pytest.approx(0.3)  # colour shows the tracer
    # Half way between the mean cut off at 0.5 and its place in the room, 0.1 + 0.4 * 0.9.
    assert fused(0.9, 0.4, (0.1, 0.5, 1)) == pytest.approx((0.5 + 0.46) / 2)
    assert fused(0.0, 0.4, (0.1, 0.5, 1)) == pytest.approx(0.1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 1])
def test_plain_fusion_shows_a_lesion_of_one_of_two_bright_images(place, sign):
    rows, columns = torch.meshgrid(torch.arange(96) - 48, torch.arange(96) - 48, indexing="ij")
    lesion = (rows**2 + columns**2 < 3.5**2)[None, None]
    before, after = (torch.full((1, 1, 96, 96), 0.65), torch.full((1, 1, 96, 96), 0.6)), []
    for n, image in enumerate(before):
        after.append(image + sign * 0.25 * lesion if n == place else image)
    room = torch.tensor([0, 1, 0.0]).view(1, 3, 1, 1).expand(-1, -1, 96, 96)
    change = plain_fusion(*after, room) - plain_fusion(*before, room)
    assert (sign * change[lesion]).mean() > 0.7 * 0.25 and change[~lesion].abs().max() < 0.03


def test_a_change_within_the_room_by_hand():
    def changed(image: float, change: float, low: float, high: float) -> float:
        room = torch.tensor([low, high, 0]).view(1, 3, 1, 1)
        return changed_within(torch.full((1, 1, 1, 1), image), torch.full((1, 1, 1, 1), change), room).item()

    assert changed(0.5, 0.01, 0, 1) == pytest.approx(0.51, abs=1e-4)  # little beside the room
    assert changed(0.2, 0.4, 0.1, 0.5) == pytest.approx(0.2 + 0.4 * 0.3 / 0.5)
    assert changed(0.2, -0.1, 0.1, 0.5) == pytest.approx(0.2 - 0.1 / 2**0.5)
    assert changed(0.2, 0.0, 0.1, 0.5) == pytest.approx(0.2)
    assert changed(0.5, 9.0, 0.1, 0.5) == 0.5 and changed(0.1, -9.0, 0.1, 0.5) == pytest.approx(0.1)  # at its bounds


def test_larger_changes_stay_larger_within_the_room():
    room = torch.tensor([0.1, 0.5, 0]).view(1, 3, 1, 1).expand(-1, -1, 1, 81)
    change = torch.linspace(-2, 2, 81).view(1, 1, 1, 81).requires_grad_()
    result = changed_within(torch.full_like(change, 0.3), change, room)
    result.sum().backward()
    assert (result.diff(dim=3) > 0).all() and (change.grad > 0).all()
    assert 0.1 < result.min() and result.max() < 0.5


def test_plain_fusion_keeps_detail_where_the_fixed_image_is_too_bright_for_the_room():
    detail = 0.1 * (torch.arange(64) // 2 % 2).float().expand(1, 1, 64, 64)
    room = torch.tensor([0.1, 0.5, 1]).view(1, 3, 1, 1).expand(-1, -1, 64, 64)
    fused = plain_fusion(0.7 + detail, 0.3 + 0 * detail, room)[..., 16:-16, 16:-16]
    assert (fused.amax() - fused.amin()).item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("bias", [-9.7, 9.7])
def test_whatever_is_learned_bone_and_colours_keep_their_room(bias):
    fusion = FlowGuidedFusion(8)
    torch.nn.init.constant_(fusion.head.bias, bias).requires_grad_(False)
    fixed, tracer = noise(1, 1, 64, 64), noise(1, 3, 64, 64, seed=1)
    bone = torch.ones(1, 1, 64, 64)
    ones = torch.ones(1, 1, 8, 8)
    low, high, _ = room_of(tracer).split(1, dim=1)
    with torch.inference_mode():
        assert fusion(fixed, bone, ones, ones).fused.min() >= LEAST_BRIGHT - 1e-6
        fused = fusion(fixed, rgb_to_grayscale(tracer), ones, ones, room_of(tracer)).fused
    assert (fused >= low).all() and (fused <= high).all()


@pytest.mark.parametrize(
    ("fixed", "moving"),
    [
        ((1, 1, 64, 64), (1, 1, 64, 72)),
        ((2, 1, 64, 64), (1, 1, 64, 64)),
        ((1, 3, 64, 64), (1, 3, 64, 64)),
        ((1, 1, 63, 64), (1, 1, 63, 64)),
        ((1, 64, 64), (1, 64, 64)),
        ((64, 64), (64, 64)),
    ],
)
def test_wrong_shapes_are_refused(tiny, fixed, moving):
    with pytest.raises(ValueError, match="expected fixed and moving images of one size .* found"):
        tiny(torch.zeros(fixed), torch.zeros(moving))


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset: expected one of tiny, fast, small, base, found 'huge'"):
        EDARFusion("huge")


def test_batch_entries_do_not_see_each_other():
    # Rounding depends on the batch and the threads, and on black images the normalisation of the features magnifies it
    # to a px of flow; only the pictures of such a pair are compared.
    # Trained weights, because an untrained flow folds and magnifies it further; a neighbour would show in whole pixels.
    model = load_checkpoint(DEFAULT_CHECKPOINT).model
    fixed, moving = images(3, 64, 96)
    fixed[2] = moving[2] = 0
    with torch.inference_mode():
        together = model(fixed, moving)
        for i in range(3):
            alone = model(fixed[i : i + 1], moving[i : i + 1])
            assert together.expected_error is alone.expected_error is None
            for name, field, single in zip(together._fields[:-1], together[:-1], alone[:-1], strict=True):
                if i < 2 or name in ("fused", "aligned"):
                    assert torch.allclose(field[i : i + 1], single, atol=5e-2), name


def test_inverse_flow_is_the_flow_of_exchanged_features(tiny):
    # One estimator for both directions: exchanging the features exchanges the two halves of each step.
    f, m, r = features(1), features(1, seed=1), noise(2, 1, 8, 10)
    gate = noise(1, 1, 8, 10, seed=1)

    def run(a: Tensor, b: Tensor, ra: Tensor, rb: Tensor) -> Tensor:
        both = torch.cat((a, b)), torch.cat((b, a)), torch.cat((ra, rb)), torch.cat((gate, gate))
        return tiny.eda_flowreg(*both)[-1].flow

    with torch.inference_mode():
        padded = [torch.nn.functional.pad(x, (0, 2)) for x in (f, m)]
        r, gate = (torch.nn.functional.pad(x, (0, 2)) for x in (r, gate))
        there, back = run(*padded, r[:1], r[1:]), run(*reversed(padded), r[1:], r[:1])
    assert torch.allclose(there[:1], back[1:], atol=1e-3) and torch.allclose(there[1:], back[:1], atol=1e-3)
    assert not torch.allclose(there[:1], there[1:], atol=1e-1)


def test_a_finer_scale_goes_on_from_where_the_coarser_one_ended(tiny):
    coarse, fine = tiny.eda_flowreg.scales
    f, m = features(height=16, width=16), features(height=16, width=16, seed=1)
    r = gate = torch.ones(2, 1, 16, 16)
    with torch.inference_mode():
        first, second = tiny.eda_flowreg(f, m, r, gate)
        expected = fine(f, warp_phases(m, first.flow), r, gate, first.flow)
    assert first.flow.any() and not first.before.any() and torch.equal(second.before, first.flow)
    assert torch.equal(second.flow, expected.flow) and torch.equal(second.scores[0], expected.scores[0])


def estimate(model: EDARFusion, monkeypatch, *flows: Tensor) -> None:
    """Let the registrations, one after the other and then from the first on again, find these flows.

    Args:
        flows: on the grid of cells, px; batch and sides are 1 or what they are to be.
    """
    actual = cycle(flows)

    def match(fixed: Tensor, *_) -> list[FlowStep]:
        flow = next(actual).expand(len(fixed), 2, *fixed.shape[3:])
        return [FlowStep(flow, torch.zeros_like(flow), [], 1)]

    monkeypatch.setattr(model.eda_flowreg, "forward", match)
    monkeypatch.setattr(model.refinement, "forward", lambda *call: call[-1])


def estimate_shift(model: EDARFusion, monkeypatch, x: float, y: float) -> None:
    """Let the registration find the same displacement everywhere, px."""
    estimate(model, monkeypatch, constant_flow(x, y, (1, 1)))


def test_passes_add_up(tiny, monkeypatch):
    estimate_shift(tiny, monkeypatch, 6.0, -3.0)  # long enough to count in full
    fixed, moving = images(1, 192, 256)
    with torch.inference_mode():
        for passes in (1, 2, 3):
            output = tiny(fixed, moving, passes=passes)
            expected = constant_flow(6 * passes, -3 * passes, (192, 256))
            assert torch.allclose(output.flow, expected, atol=1e-4)
            assert torch.allclose(output.inverse_flow, -expected, atol=1e-4)
            rolled = moving.roll((3 * passes, -6 * passes), dims=(2, 3))
            # The image is sampled once with the composed flow, however many the passes.
            assert torch.allclose(output.aligned[..., 18:-18, 18:-18], rolled[..., 18:-18, 18:-18], atol=1e-4)


def test_a_further_pass_comes_after_the_first(tiny, monkeypatch):
    size, shift, angle = (192, 256), torch.tensor([6.0, -3.0]), math.radians(10)
    turn = torch.tensor([[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]])
    first = CELL * affine_flow(size, turn, torch.zeros(1, 2), CELL)
    estimate(tiny, monkeypatch, first, constant_flow(6, -3, (1, 1)))
    with torch.inference_mode():
        output = tiny(*images(1, *size), passes=2)
    # aligned(p) = moving(centre + turn (p + shift - centre)); the way back turns back first, then shifts.
    expected = affine_flow(size, turn, turn @ shift)
    expected_inverse = affine_flow(size, turn.mT, -shift[None])
    # The other order would show.
    assert (turn @ shift - shift).norm() > 1
    inside = (..., slice(48, -48), slice(48, -48))
    assert torch.allclose(output.flow[inside], expected[inside], atol=1e-2)
    assert torch.allclose(output.inverse_flow[inside], expected_inverse[inside], atol=1e-2)


def test_further_passes_count_by_what_was_found(tiny, monkeypatch):
    fixed, moving = images(1, 192, 256)
    with torch.inference_mode():
        estimate_shift(tiny, monkeypatch, 1.6, -1.2)  # 2 px: as far as nothing counts
        assert torch.allclose(tiny(fixed, moving, passes=3).flow, tiny(fixed, moving).flow, atol=1e-5)
        estimate_shift(tiny, monkeypatch, -2.4, 3.2)  # 4 px, half-way
        twice = tiny(fixed, moving, passes=2)
        expected = 1.5 * constant_flow(-2.4, 3.2, (192, 256))
        assert torch.allclose(twice.flow, expected, atol=1e-4)
        assert torch.allclose(twice.inverse_flow, -expected, atol=1e-4)


def test_share_of_a_further_pass_by_hand():
    image = torch.zeros(5, 1, 64, 64)
    image[:4, :, :, 32:] = 0.5
    lengths = torch.tensor([0.0, 3, 6, 100, 100])
    flow = torch.stack((0.6 * lengths, -0.8 * lengths), dim=1).view(5, 2, 1, 1).repeat(1, 1, 64, 64)
    flow[..., :24] = 50  # farther than 8 px from the head
    share = further_share(flow, image)
    assert share.shape == (5, 1, 1, 1)
    # Without a head nothing counts.
    assert share.flatten().tolist() == pytest.approx([0, 0.25, 1, 1, 0], abs=1e-6)


def test_two_passes_run(tiny, monkeypatch):
    with torch.inference_mode():
        fixed, moving = images(1, 70, 90)
        match = tiny.eda_flowreg.forward

        def match_far(*features):
            return [step._replace(flow=step.flow + 5) for step in match(*features)]

        monkeypatch.setattr(tiny.eda_flowreg, "forward", match_far)
        once, twice = tiny(fixed, moving), tiny(fixed, moving, passes=2)
    check(twice, 70, 90)
    assert not torch.allclose(once.flow, twice.flow, atol=1e-3)


@pytest.mark.parametrize("average", [False, True])
def test_no_pass_fuses_the_images_as_they_lie(tiny, average):
    fixed, moving = images(1, 256, 256)
    with torch.inference_mode():
        output = tiny(fixed, moving, passes=0, average=average)
        actual = tiny.register(fixed, moving)
        expected = tiny.fuse(fixed, moving, actual).fused
    assert torch.equal(output.aligned, moving) and torch.equal(output.fused, expected)
    assert output.flow.abs().max() == output.inverse_flow.abs().max() == output.disagreement == 0
    assert not torch.equal(expected, tiny.fuse(fixed, warp(moving, actual.flow), actual).fused)


# --- ablations ------------------------------------------------------------------------------------------------


def test_without_reliability_it_is_one_everywhere(tiny):
    fixed, moving = images(1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(build(reliability=False)(fixed, moving).reliability, torch.ones(1, 1, 64, 64))
        assert tiny(fixed, moving).reliability.std() > 0


def test_without_prereg_the_encoders_features_are_matched():
    model, (fixed, moving) = build(prereg=False), images(1, 64, 64)
    assert not any(name.startswith("frg_prereg") for name in model.state_dict())
    seen = []
    model.encoders.register_forward_hook(lambda module, inputs, features: seen.append(features))
    model.eda_flowreg.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    with torch.inference_mode():
        assert torch.equal(model(fixed, moving).reliability, torch.ones(1, 1, 64, 64))
    encoded, f, m, r, _ = seen
    assert torch.allclose(f, torch.nn.functional.normalize(encoded[:, 0], dim=2), atol=1e-5)
    assert torch.allclose(m, torch.nn.functional.normalize(encoded[:, 1], dim=2), atol=1e-5)
    assert torch.equal(r, torch.ones_like(r))


def test_without_gate_it_is_one_everywhere(tiny):
    fixed, moving = images(1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(build(use_gate=False)(fixed, moving).gate, torch.ones(1, 1, 64, 64))
        assert tiny(fixed, moving).gate.std() > 0


def test_gate_holds_the_matched_increment_back():
    # Without refinement the increment is (alpha + (1 - alpha) W) times what the matching found, alpha 1/2 at first.
    torch.manual_seed(0)
    registration = EDAFlowReg(16, (Scale(2, (12.0,), 1, (24, 32)),)).eval()
    f, m, r = features(height=24, width=24), features(height=24, width=24, seed=1), torch.ones(2, 1, 24, 24)
    with torch.inference_mode():
        full, held = (registration(f, m, r, torch.full((2, 1, 24, 24), w))[-1].flow for w in (1.0, 0.2))
    inside = slice(5, -5)  # the gate is smoothed with zeros beyond the border
    ratio = held[..., inside, inside] / full[..., inside, inside]
    assert torch.allclose(ratio, torch.full_like(ratio, 0.6), atol=0.01)


@pytest.mark.parametrize("aggregation", [True, False])
def test_aggregation_lets_neighbours_speak(aggregation):
    model = build(aggregation=aggregation)
    f, m, r = features(height=16, width=16), features(height=16, width=16, seed=1), torch.ones(2, 1, 16, 16)
    changed = m.clone()
    changed[..., 8, 8] = -m[..., 8, 8]
    with torch.inference_mode():
        before, after = (model.eda_flowreg(f, x, r, torch.ones(2, 1, 16, 16))[0] for x in (m, changed))
    moved = (before.scores[-1] - after.scores[-1]).abs().amax(dim=(0, 1))
    # A cell's scores look 16 px, two cells, far by themselves.
    near, beyond = moved[6:11, 6:11], moved[8, 11:13]
    assert near[2, 2] > 0.1
    assert (beyond > 1e-3).all() if aggregation else (beyond < 1e-4).all()


def test_reliability_weighs_the_matching(tiny):
    f, m, gate = features(height=16, width=16), features(height=16, width=16, seed=1), torch.ones(2, 1, 16, 16)
    nonsense = m.clone()
    nonsense[..., 8:] = features(height=16, width=16, seed=2)[..., 8:]
    trusted = torch.ones(2, 1, 16, 16)
    trusted[..., 6:] = 0.02
    with torch.inference_mode():
        def change(r: Tensor) -> float:
            a, b = (tiny.eda_flowreg(f, x, r, gate)[0].scores[-1] for x in (m, nonsense))
            return (a - b)[..., :4].abs().mean().item()

        # Where the right half is not trusted, what it shows has little say on the left.
        assert change(trusted) < 0.3 * change(torch.ones(2, 1, 16, 16))


def test_looked_up_entropy_is_the_computed_one():
    half = halved(torch.cat(images(2, 64, 96), dim=1))
    looked_up = EntropyAtQuarter()(half)
    assert looked_up.shape == (2, 2, 16, 24)
    for channel in (0, 1):
        computed = local_entropy(half[:, channel : channel + 1], window=3, stride=2)
        assert torch.allclose(looked_up[:, channel : channel + 1], computed, atol=1e-3)
        assert computed.max() > 1


def test_without_entropy_the_features_do_not_see_it():
    image = images(1, 64, 64)[0]
    entropy = EntropyAtQuarter()(halved(image))
    assert entropy.shape == (1, 1, 16, 16)
    pair, entropies = image.expand(-1, 2, -1, -1), entropy.expand(-1, 2, -1, -1)
    for used in (True, False):
        torch.manual_seed(0)
        encoders = Encoders((32, 48, 64), 16, entropy=used).eval()
        with torch.inference_mode():
            same = torch.equal(encoders(pair, edges(pair), entropies), encoders(pair, edges(pair), 4 - entropies))
        assert same is not used


def test_encoders_see_one_image_each():
    torch.manual_seed(0)
    encoders = Encoders((32, 48, 64), 16).eval()
    pair = torch.cat(images(1, 64, 96), dim=1)
    entropy = EntropyAtQuarter()(halved(pair))
    with torch.inference_mode():
        before = encoders(pair, edges(pair), entropy)
        assert before.shape == (1, 2, 4, 16, 8, 12)
        for other in (0, 1):
            changed = pair.clone()
            changed[:, other] = 1 - changed[:, other]
            after = encoders(changed, edges(changed), entropy)
            assert torch.equal(after[:, 1 - other], before[:, 1 - other])
            assert not torch.allclose(after[:, other], before[:, other], atol=0.1)
        assert torch.equal(entropy[:, 1:], EntropyAtQuarter()(halved(pair[:, 1:])))
        # Weights of their own: the same image gives other features as fixed than as moving image.
        pair, entropy = (maps[:, :1].expand(-1, 2, -1, -1) for maps in (pair, entropy))
        twice = encoders(pair, edges(pair), entropy)
    assert not torch.allclose(twice[:, 0], twice[:, 1], atol=0.1)


# --- parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_reliability_lies_between_zero_and_one(seed):
    torch.manual_seed(seed)
    prereg = FRGPreReg(16)
    torch.nn.init.normal_(prereg.head.weight, std=5)
    image = images(2, 64, 80, seed=seed)[0]
    with torch.inference_mode():
        pair = torch.stack((20 * features(seed=seed), 0.1 * features(seed=seed + 9)), dim=1)
        actual, reliability = prereg(pair, edges(image))
    assert reliability.shape == (2, 2, 8, 10) and reliability.min() >= 0 and reliability.max() <= 1
    assert (reliability.std(dim=(0, 2, 3)) > 0.01).all()
    assert actual.shape == pair.shape and torch.allclose(actual.norm(dim=3), torch.ones(2, 2, 4, 8, 10), atol=1e-4)


def test_adapter_by_hand():
    prereg = FRGPreReg(4)
    pair = torch.full((1, 2, 4, 1, 1, 1), 2.0).expand(-1, -1, -1, 2, -1, -1)
    residual = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2, 1, 1).expand_as(pair)
    actual = prereg.adapt(pair, residual, torch.tensor([0.2, 0.0]).view(1, 2, 1, 1))
    # F (1 + a_raw (1 - R)) + a R D with a = 0.6, a_raw = 0.25: 2.4 + 0.12 and 2.4 - 0.12; F itself where R is 0.
    expected = torch.tensor([[2.52, 2.28], [1.0, 1.0]])
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(actual[0, :, 0, :, 0, 0], expected, atol=1e-5)


def test_reliability_prior_by_hand():
    f = features()[:, 0]
    flat = torch.zeros(2, 1, 32, 40)
    # Equal features, no edges: R0 = 1.
    assert torch.allclose(reliability_prior(f, f, flat), torch.ones(2, 1, 8, 10), atol=1e-5)
    # Opposite ones that point along one of the 16 channels: cos01 = 0, and 2 in that channel is a mean of 2 / 16.
    f = torch.zeros(2, 16, 8, 10)
    f[:, 3] = 1
    expected = torch.full((2, 1, 8, 10), 0.15 + 0.85 * math.exp(-(2 / 16) / 0.35) / 2)
    assert torch.allclose(reliability_prior(f, -f, flat), expected, atol=1e-5)


@pytest.mark.parametrize("column", [36, 38, 40, 42])
def test_reliability_prior_falls_beside_an_edge_of_the_moving_image(column):
    # Wherever in a cell of 8 px the edge lies: it must not slip through between the places that are looked at.
    f = features()[:, 0]
    image = torch.full((2, 1, 64, 80), 0.5)
    image[..., column:] = 1
    prior = reliability_prior(f, f, edges(image))
    assert prior[..., 4:6].max() < 0.95
    assert torch.allclose(prior[..., :2], torch.ones(2, 1, 8, 2), atol=1e-4)


def test_consistency_by_hand():
    image = 0.1 + 0.9 * images(1, 64, 64)[0]
    ones, zeros = torch.ones(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    assert torch.allclose(alignment_consistency(image, image, ones, ones), torch.ones(1, 1, 64, 64), atol=1e-4)
    other = 0.1 + 0.9 * images(1, 64, 64)[1]
    # Without trust one half; with half of it half way.
    assert torch.allclose(alignment_consistency(image, other, zeros, zeros), torch.full((1, 1, 64, 64), 0.5))
    assert torch.allclose(alignment_consistency(image, image, ones, zeros), torch.full((1, 1, 64, 64), 0.75), atol=1e-4)


def test_consistency_stays_in_range():
    fixed, aligned = noise(2, 1, 64, 72), noise(2, 1, 64, 72, seed=1)
    c = alignment_consistency(fixed, aligned, noise(2, 1, 64, 72, seed=2), noise(2, 1, 64, 72, seed=3))
    assert c.shape == (2, 1, 64, 72) and c.min() >= 0 and c.max() <= 1 and c.std() > 0.01


def test_consistency_is_low_where_edges_contradict():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64) * 4 % 1
    ones = torch.ones(1, 1, 64, 64)
    c = alignment_consistency(ramp, ramp.transpose(2, 3), ones, ones)
    assert c[..., 4:-4, 4:-4].median() < 0.2


def test_the_four_pixels_of_a_place_are_mixed_and_corrected_each_by_its_own_values():
    fusion = FlowGuidedFusion(8)
    # Its weights are zero at first, so that the head says its bias: four mixing weights row by row, four corrections.
    fusion.head.bias.data = torch.tensor([0, 1, 2, 3, 0.1, 0.2, 0.3, 0.4])
    ones = torch.ones(1, 1, 8, 8)
    fused = fusion(torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.25), ones, ones).fused
    # From the plain fusion down by sigmoid(weight - 3) of what the images differ by; corrections bounded by one half.
    for y, x, weight, correction in ((0, 0, 0, 0.1), (0, 1, 1, 0.2), (1, 0, 2, 0.3), (1, 1, 3, 0.4)):
        start = math.hypot(0.5, 0.25) - 0.6 * 0.5 * 0.25
        change = 0.8 * (correction / (1 + correction / 0.5) - 0.25 / (1 + math.exp(3 - weight)))  # grey
        left = 1 - start if change > 0 else start
        expected = start + change * left / math.hypot(left, change)
        assert torch.allclose(fused[..., y::2, x::2], torch.full((1, 1, 32, 32), expected), atol=1e-5)


def test_fusion_sees_the_images_and_how_far_they_may_be_trusted():
    fusion, seen = FlowGuidedFusion(8), []
    for part in (fusion.stem, fusion.down):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fixed, aligned = noise(1, 1, 64, 72), noise(1, 1, 64, 72, seed=1)
    reliability, gate = noise(1, 1, 32, 36, seed=2), noise(1, 1, 32, 36, seed=3)
    with torch.inference_mode():
        consistency = fusion(fixed, aligned, reliability, gate).consistency
    pictures, with_maps = seen
    plain = plain_fusion(fixed, aligned, room_of(aligned))
    assert torch.equal(pictures, torch.cat((fixed, aligned, plain), dim=1) - 0.25)
    trust = [resize(map_, (64, 72)) for map_ in (reliability, gate)]
    assert torch.allclose(with_maps[:, 8:], halved(torch.cat((consistency, *trust), dim=1)))
    assert torch.equal(consistency, alignment_consistency(fixed, aligned, *trust))


def test_consistency_says_nothing_of_empty_background():
    fixed, aligned = (torch.zeros(1, 1, 64, 64) for _ in range(2))
    fixed[..., 16:48, 16:48] = noise(1, 1, 32, 32)
    ones = torch.ones(1, 1, 64, 64)
    c = alignment_consistency(fixed, fixed, ones, ones)
    assert torch.equal(c[..., :8, :], torch.full((1, 1, 8, 64), 0.5)) and c[..., 20:44, 20:44].min() > 0.99
    assert torch.equal(alignment_consistency(aligned, aligned, ones, ones), 0.5 * ones)


def test_blur_keeps_a_constant_inside_and_spreads_a_point():
    blur = GaussianBlur(1.5)
    assert torch.allclose(blur(torch.ones(1, 1, 40, 30))[..., 8:-8, 8:-8], torch.ones(1, 1, 24, 14), atol=1e-4)
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = blur(point)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-4)
    assert (spread[20, 23] / spread[20, 20]).item() == pytest.approx(math.exp(-9 / (2 * 1.5**2)), rel=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_unet_keeps_the_shape(depth):
    assert UNet((16, 24, 32), depth=depth)(torch.zeros(1, 16, 8, 12)).shape == (1, 16, 8, 12)


def test_dropout_leaves_out_whole_channels_of_the_deeper_level_in_training_only():
    network, image, seen = UNet((16, 24)), noise(2, 16, 8, 12), []
    network.lateral[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.dropout = 0.5
    with torch.inference_mode():
        for mode in (True, True, False):
            network.train(mode)(image)
    first, second, whole = seen
    left_out = (first == 0).all(dim=3).all(dim=2)
    assert 0.2 < left_out.float().mean() < 0.8
    kept = ~left_out[:, :, None, None]
    assert torch.allclose(first, 2 * whole * kept, atol=1e-6)
    assert not torch.equal(first, second)
    assert (whole != 0).any(dim=3).any(dim=2).all()


def test_side_by_side_sorts_by_group():
    first, second = (torch.tensor(values).view(1, -1, 1, 1) for values in ([1, 2, 11, 12], [3, 13]))
    joined = side_by_side(first.expand(-1, -1, 2, 3), second.expand(-1, -1, 2, 3))
    assert joined.is_contiguous(memory_format=torch.channels_last)
    assert joined[0, :, 1, 2].tolist() == [1, 2, 3, 11, 12, 13]


def test_networks_side_by_side_do_not_mix():
    torch.manual_seed(0)
    network = UNet((16, 16), groups=2)
    image = noise(1, 16, 4, 4)
    other = image.clone()
    other[:, :8] = 1 - other[:, :8]
    with torch.inference_mode():
        before, after = network(image), network(other)
    assert torch.allclose(before[:, 8:], after[:, 8:], atol=1e-6)
    assert not torch.allclose(before[:, :8], after[:, :8], atol=0.01)


def test_both_directions_are_estimated_where_asked():
    torch.manual_seed(0)
    model = build()
    fixed, moving = images(2, 64, 64)
    with torch.inference_mode():
        one, both = model.register(fixed, moving), model.register(fixed, moving, both=True)
    torch.testing.assert_close(one.flow, both.flow, rtol=0, atol=2e-3)
    assert len(one.steps[-1].flow) == 2 and len(both.steps[-1].flow) == 4
    there_and_back = compose(one.flow, one.inverse_flow)[..., 16:-16, 16:-16]
    assert there_and_back.norm(dim=1).mean() < 0.25 * one.flow.norm(dim=1).mean()


@pytest.mark.parametrize(("size", "scale"), [((192, 256), 1), ((384, 512), 2), ((1024, 800), 4), ((128, 130), 0.5)])
def test_registration_sees_heads_of_the_size_it_has_learned(tiny, monkeypatch, size, scale):
    estimate_shift(tiny, monkeypatch, 3.0, -2.0)
    fixed, moving = images(1, *size)
    with torch.inference_mode():
        flow = tiny(fixed, moving).flow
    expected = constant_flow(3 * scale, -2 * scale, size)
    assert torch.allclose(flow, expected, atol=1e-3)


@pytest.mark.parametrize(("preset", "stride"), [("tiny", 1), ("fast", 2)])
def test_refinement_reads_the_images_at_its_stride(preset, stride):
    model, seen = build(preset), []
    model.refinement.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[:3]))
    pair = images(1, 64, 96)
    with torch.inference_mode():
        model.register(*pair)
    expected = [*(pair if stride == 1 else map(halved, pair)), edges(pair[0])]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_prereg_sees_the_edges_of_the_moving_image():
    model, seen = build(), []
    model.frg_prereg.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    fixed, moving = images(1, 64, 96)
    with torch.inference_mode():
        model.register(fixed, moving)
    assert torch.equal(seen[0], edges(moving)) and not torch.allclose(seen[0], edges(fixed), atol=0.01)


def test_the_refined_flow_teaches_the_refinement_alone():
    model = build()
    refined = model.register(*images(1, 64, 64), both=True).refined.square().sum()
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = zip(names, torch.autograd.grad(refined, weights, allow_unused=True), strict=True)
    taught = {name.split(".")[0] for name, gradient in gradients if gradient is not None and gradient.any()}
    assert taught == {"refinement"}


def test_average_of_a_mirrored_pair_is_the_mirrored_average(tiny):
    fixed, moving = images(1, 192, 256)
    with torch.inference_mode():
        straight = tiny(fixed, moving, average=True)
        mirrored = tiny(fixed.flip(3), moving.flip(3), average=True)
    assert torch.allclose(mirrored.flow.flip(3) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1), straight.flow, atol=2e-3)
    assert straight.flow.norm(dim=1).mean() > 0.1


def test_average_of_four_matches_by_hand(tiny, monkeypatch):
    # What is found for the pair, for its mirror image, and for both with the images exchanged. A second pair is twice
    # as far apart, in the other direction.
    shifts = torch.tensor([[4.0, 2], [-2, 2], [-6, -1], [3, -5]])
    estimate(tiny, monkeypatch, torch.stack((shifts, -2 * shifts), dim=1).view(8, 2, 1, 1))
    pairs = images(2, 64, 96)
    with torch.inference_mode():
        actual = tiny.register_averaged(*pairs)
        # The refinement sees the mirror images, too; what it adds there, along x, is of the other sign in the pair.
        added = torch.tensor([[1.0, 0], [0, 0], [3, 4], [0, 0]]).view(4, 2, 1, 1)
        monkeypatch.setattr(tiny.refinement, "forward", lambda *call: call[-1] + added)
        refined = tiny.register_averaged(*pairs)
    # In the pair's own terms: (4, 2), (2, 2), (6, 1), (3, 5).
    expected = torch.cat((constant_flow(3.75, 2.5, (64, 96)), constant_flow(-7.5, -5, (64, 96))))
    assert torch.allclose(actual.flow, expected, atol=1e-4)
    assert torch.allclose(actual.inverse_flow, -expected, atol=1e-4)
    # Mean squares of the distances 0.25, -1.75, 2.25, -0.75 along x and -0.5, -0.5, -1.5, 2.5 along y.
    spread = (2.1875 + 2.25) * torch.tensor([1.0, 4]).view(2, 1, 1, 1)
    assert torch.allclose(actual.spread, spread.expand(2, 1, 8, 12), atol=1e-4)
    expected = torch.cat((constant_flow((1 - 3) / 2, (0 + 4) / 2, (64, 96)), constant_flow(0, 0, (64, 96))))
    assert torch.allclose(refined.flow - actual.flow, expected, atol=1e-4)


def test_averaging_inverts_the_way_back(tiny, monkeypatch):
    # Zooms about the centre are their own mirror images. That of 1.25 moves by a quarter of the distance from there,
    # its inverse by a fifth: with the sign changed and no more it would be too short.
    size, no_shift = (128, 128), torch.zeros(1, 2)
    there, back = (CELL * affine_flow(size, zoom * torch.eye(2)[None], no_shift, CELL) for zoom in (1.25, 1 / 1.25))
    estimate(tiny, monkeypatch, torch.cat((there, there, back, back)))
    with torch.inference_mode():
        actual = tiny.register_averaged(*images(1, *size))
    inside = (..., slice(3, -3), slice(3, -3))
    assert torch.allclose(actual.refined[inside], there[inside], atol=1e-2)
    assert actual.spread[inside].max() < 1e-4


def test_averaging_takes_the_maps_of_the_mirror_image_back(tiny):
    pair = images(2, 64, 96)
    with torch.inference_mode():
        averaged, straight = tiny.register_averaged(*pair), tiny.register(*pair)
        mirrored = tiny.register(*(image.flip(3) for image in pair))
    expected = (straight.reliability + mirrored.reliability.flip(3)) / 2
    assert torch.allclose(averaged.reliability, expected, atol=1e-3)
    # Entropies, and the gate that is made of them, have no sides.
    for name in ("entropy_fixed", "entropy_moving", "gate"):
        assert torch.allclose(getattr(averaged, name), getattr(straight, name), atol=1e-3), name
        assert not torch.allclose(getattr(straight, name), getattr(mirrored, name), atol=1e-1), name


def test_estimates_that_disagree_hold_the_displacement_back(tiny, monkeypatch):
    fixed, moving = images(1, 128, 128)
    flows, round_trips = [], []
    for apart in (0, 1e6):
        monkeypatch.setattr(
            "models.edarfusion.spread_of", lambda estimates, apart=apart: torch.full_like(estimates[0, :, :1], apart)
        )
        with torch.inference_mode():
            output = tiny(fixed, moving, average=True)
        flows.append(output.flow)
        round_trips.append(compose(output.flow, output.inverse_flow)[..., 16:-16, 16:-16].norm(dim=1).mean())
    length = flows[0].norm(dim=1).mean()
    assert round_trips[0] < 0.1 * length and round_trips[1] < round_trips[0] + 0.04 * length
    # Down to little: an untrained flow is rough, so what is taken off is sampled beside its place.
    assert flows[1].norm(dim=1).mean() < 0.3 * length


@pytest.mark.parametrize("side", [128, 256, 512])
def test_disagreement_does_not_depend_on_the_size(tiny, monkeypatch, side):
    apart = torch.tensor([4.0, 9.0]).view(2, 1, 1, 1)
    monkeypatch.setattr("models.edarfusion.spread_of", lambda estimates: apart.expand_as(estimates[0, :, :1]))
    with torch.inference_mode():
        actual = tiny(*images(2, side, side), average=True).disagreement
    assert torch.allclose(actual, torch.tensor([2.0, 3.0]))


def test_a_single_estimate_is_not_held_back(tiny):
    pair = images(1, 64, 64)
    with torch.inference_mode():
        assert tiny.register(*pair).spread.abs().max() == 0
        assert tiny(*pair).disagreement.tolist() == [0]
        assert tiny.register_averaged(*pair).spread.min() > 0


def test_what_is_faint_is_taken_off_an_averaged_estimate_alone(tiny, monkeypatch):
    pair = images(1, 64, 64)
    monkeypatch.setattr(tiny.held_back, "forward", lambda flow, spread, mask: 0.5 * flow)
    monkeypatch.setattr(tiny.faint_part, "forward", lambda flow, mask: 0 * flow)
    with torch.inference_mode():
        halved, single = tiny(*pair, average=True).flow, tiny(*pair).flow
        monkeypatch.setattr(tiny.faint_part, "forward", lambda flow, mask: flow)
        assert tiny(*pair, average=True).flow.abs().mean() < 0.5 * halved.abs().mean()
        assert torch.equal(tiny(*pair).flow, single)


@pytest.mark.parametrize("at_once", [2 * 64 * 80, 64 * 80 - 1])
def test_large_batches_are_fused_part_by_part_with_the_same_result(monkeypatch, at_once):
    monkeypatch.setattr("models.fusion.AT_ONCE", at_once)
    torch.manual_seed(0)
    network = FlowGuidedFusion(8)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    fixed, aligned = noise(3, 1, 64, 80), noise(3, 1, 64, 80, seed=1)
    maps = noise(3, 1, 8, 10, seed=2), noise(3, 1, 8, 10, seed=3)
    with torch.no_grad():
        together = network(fixed, aligned, *maps)
        for i, each in enumerate(zip(fixed, aligned, *maps, strict=True)):
            alone = network(*(x[None] for x in each))
            assert torch.allclose(together.fused[i], alone.fused[0], atol=1e-5)
            assert torch.equal(together.consistency[i], alone.consistency[0])
