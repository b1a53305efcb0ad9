"""inference/view.py: small heads and odd frames are shown as in training, and flows found there are of the frame."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.pair_fuser import PairFuser
from inference.view import USUAL, View, choose_view
from models.edarfusion import TRAINED_SIDE as SIDE
from models.edarfusion import Output
from tests.examples import constant_flow, noise
from utils.geometry.head_box import head_box, head_length
from utils.geometry.warp import warp


def head(frame: tuple[int, int], height: float, width: float, middle: tuple[float, float] | None = None) -> np.ndarray:
    """A bright ellipse of so many px in a black frame."""
    y, x = (torch.arange(side) + 0.5 for side in frame)
    top, left = middle or (frame[0] / 2, frame[1] / 2)
    inside = ((y[:, None] - top) / height * 2) ** 2 + ((x - left) / width * 2) ** 2 < 1
    return 0.6 * inside.float().numpy()


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image)[None, None]


def extent(image: Tensor) -> tuple[int, int]:
    """Height and width of what is not black."""
    shown = image[0, 0] > 0.1
    return int(shown.any(dim=1).sum()), int(shown.any(dim=0).sum())


@pytest.mark.parametrize("frame", [(256, 256), (512, 512), (1024, 1024), (200, 312), (230, 230), (128, 128)])
def test_frames_of_the_kind_that_was_trained_are_taken_as_they_are(frame):
    assert choose_view(head(frame, 0.8 * frame[0], 0.65 * frame[1])) is None


@pytest.mark.parametrize("frame", [(256, 256), (512, 512), (384, 384), (400, 560), (90, 90)])
@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.3, 0.72)])
def test_a_small_head_is_brought_to_its_usual_size(frame, middle):
    side = 0.38 * min(frame)
    image = head(frame, side, 0.8 * side, (middle[0] * frame[0], middle[1] * frame[1]))
    view = choose_view(image)
    shown = view.show(tensor(image))
    assert shown.shape == (1, 1, *view.size) and abs(sum(view.size) / 2 - SIDE) <= 8
    height, width = extent(shown)
    # Tissue is looked for on a grid of 64 places.
    assert abs(height / SIDE - USUAL) < 0.12 and width / height == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("frame", "size", "middle"), [
    ((256, 256), (90, 80), (45, 215)), ((256, 256), (80, 90), (210, 46)), ((200, 600), (180, 150), (100, 300)),
])  # fmt: skip
def test_a_view_lies_within_the_frame_and_the_head_in_it(frame, size, middle):
    image = head(frame, *size, middle)
    view = choose_view(image)
    assert view.top >= 0 and view.top + view.height <= frame[0]
    assert view.left >= 0 and view.left + view.width <= frame[1]
    inside = image[view.top : view.top + view.height, view.left : view.left + view.width]
    assert np.count_nonzero(inside) == np.count_nonzero(image)


@pytest.mark.parametrize("side", [192, 360, 380, 700])
def test_frames_between_powers_of_two_are_brought_to_the_side_of_the_training(side):
    image = head((side, side), 0.85 * side, 0.7 * side)
    assert choose_view(image) == (0, 0, side, side, (SIDE, SIDE))


def test_pixels_become_square():
    # Half as many rows as columns: a pixel is twice as high as it is wide.
    image = head((128, 256), 0.85 * 128, 0.85 * 256)
    view = choose_view(image, aspect=2.0)
    assert view[:4] == (0, 0, 128, 256) and view.size == (SIDE, SIDE)
    height, width = extent(view.show(tensor(image)))
    assert abs(height - width) <= 4
    square = head((256, 256), 215, 215)
    assert choose_view(square, aspect=1.0) is None and choose_view(square, aspect=1.02) is None
    # A mean side of 256 px at 6 to 5, in steps of 8 px.
    assert choose_view(square, aspect=1.2) == (0, 0, 256, 256, (280, 232))


def test_an_image_without_tissue_is_shown_whole():
    black = np.zeros((300, 360), np.float32)
    assert choose_view(black)[:4] == (0, 0, 300, 360) and choose_view(np.zeros((256, 256), np.float32)) is None


def test_a_dark_head_stands_where_a_bright_one_does_and_a_speck_is_no_head():
    image = head((384, 384), 200, 160)
    image[150:160, 150:160] = 1  # brighter than the rest, which alone would be seen
    assert head_box(0.1 * image) == head_box(image) and choose_view(0.1 * image) == choose_view(image)
    speck = head((256, 256), 20, 16)
    assert choose_view(speck) is None and choose_view(speck, longest=head_length(speck)) is None
    assert choose_view(head((360, 360), 30, 30)) == (0, 0, 360, 360, (SIDE, SIDE))


@pytest.mark.parametrize("side", [64, 256, 512])
@pytest.mark.parametrize("sigma", [0.002, 0.01])
def test_noise_is_no_head_and_hides_none(side, sigma):
    rng = np.random.default_rng(0)
    noise = np.hypot(*rng.normal(0, sigma, (2, side, side))).astype(np.float32)  # as of an MRI without signal
    assert head_box(noise) is None and head_length(noise) == 0
    small = head((side, side), 0.4 * side, 0.35 * side)
    for level in (1.0, 0.2) if side > 64 else (1.0,):  # single px of noise join what lies near them
        assert head_length(np.maximum(level * small, noise)) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("frame", [(64, 600), (700, 90)])
def test_pixels_of_long_frames_stay_square(frame):
    view = choose_view(head(frame, 0.9 * frame[0], 0.9 * frame[1]))
    assert min(view.size) >= 64
    assert view.size[0] / view.height == pytest.approx(view.size[1] / view.width, rel=0.08)


def test_a_flow_found_in_a_view_is_of_the_frame():
    frame = (300, 500)
    image = head(frame, 120, 100, (110, 330))
    view = choose_view(image)
    assert view.height < 200 and view.width < 200
    factor = view.size[0] / view.height, view.size[1] / view.width
    moved = warp(tensor(image), constant_flow(-6.0, 4.0, frame))
    flow = view.enlarge(constant_flow(6.0 * factor[1], -4.0 * factor[0], view.size), frame)
    torch.testing.assert_close(flow, constant_flow(6.0, -4.0, frame))
    # Shown and then warped is warped and then shown.
    seen = warp(view.show(moved), constant_flow(6.0 * factor[1], -4.0 * factor[0], view.size))
    assert (seen - view.show(tensor(image))).abs().mean() < 0.002
    assert math.isclose((warp(moved, flow) - tensor(image)).abs().max().item(), 0, abs_tol=1e-3)


def test_beyond_a_view_its_flow_goes_on_as_at_its_border():
    flow = noise(1, 2, 20, 40)
    whole = View(10, 25, 20, 40, (20, 40)).enlarge(flow, (60, 100))
    assert torch.equal(whole[..., 10:30, 25:65], flow)
    assert torch.equal(whole[..., 10:30, :25], flow[..., :1].expand(1, 2, 20, 25))
    assert torch.equal(whole[..., 10:30, 65:], flow[..., -1:].expand(1, 2, 20, 35))
    assert torch.equal(whole[..., :10, 25:65], flow[..., :1, :].expand(1, 2, 10, 40))
    assert torch.equal(whole[..., 30:, 25:65], flow[..., -1:, :].expand(1, 2, 30, 40))


def test_what_is_shown_smaller_is_the_mean_of_its_pixels():
    stripes = torch.tensor([1.0, 0, 0, 1]).repeat(64).expand(1, 1, 256, 256)
    assert (View(0, 0, 256, 256, (64, 64)).show(stripes) - 0.5)[..., 1:-1].abs().max() < 0.1


def test_the_top_of_a_head_is_shown_at_the_scale_of_its_whole():
    top, whole = head((256, 256), 80, 70), head((256, 256), 210, 170)
    assert choose_view(top) is not None
    assert choose_view(top, longest=head_length(whole)) is None
    # That all of several heads are small is no chance.
    assert choose_view(whole[:, ::-1], longest=0.7).height == round(256 * 0.7 / 0.95)
    assert choose_view(head((256, 256), 170, 150)) is None
    # In an odd frame the whole decides as well: both are shown in one size.
    top, whole = head((384, 384), 80, 70, (150, 200)), head((384, 384), 210, 170)
    views = [choose_view(image, longest=head_length(whole)) for image in (top, whole)]
    assert views[0].size == views[1].size and views[0].height == views[1].height < 300


def test_a_head_is_one_across_what_shows_dark_in_it_and_nothing_else():
    image = head((256, 256), 200, 160)
    image[100:118] = 0  # a gap of 18 px
    image[2:10, 2:10] = 1  # a mark in the corner
    (top, bottom), (left, right) = head_box(image)
    assert (top, bottom) == pytest.approx((28 / 256, 228 / 256), abs=0.02)
    assert (left, right) == pytest.approx((48 / 256, 208 / 256), abs=0.02)
    assert head_length(image) == pytest.approx(200 / 256, abs=0.04)
    assert head_length(image[::2], aspect=2.0) == pytest.approx(200 / 256, abs=0.04)
    assert head_box(np.zeros((256, 256), np.float32)) is None and head_length(np.zeros((99, 99), np.float32)) == 0


class Shifts(torch.nn.Module):
    """Stands in for the network: finds one shift in whatever it sees, and fuses by taking the moving image."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, fixed: Tensor, moving: Tensor, passes: int, average: bool) -> Output:
        size = tuple(fixed.shape[2:])
        self.seen.append((size, passes))
        flow = constant_flow(8, -4, size) if passes else constant_flow(0, 0, size)
        doubt = torch.tensor([0.75 if passes else 0.0])
        return Output(moving, warp(moving, flow), flow, -flow, *[torch.zeros_like(fixed)] * 6, doubt)


def test_a_pair_is_registered_in_its_view_and_fused_in_its_frame():
    model, image = Shifts(), head((256, 256), 100, 80, (110, 140))
    view, shape = choose_view(image), (256, 256)
    fuse = PairFuser(model, torch.device("cpu"), average=True, multistart=False)
    result = fuse(image, image)
    assert model.seen == [(view.size, 1), (shape, 0)]
    flow = constant_flow(8 * view.width / view.size[1], -4 * view.height / view.size[0], shape)
    torch.testing.assert_close(torch.from_numpy(result.flow)[None], flow)
    aligned = warp(tensor(image), flow)[0, 0].numpy()
    np.testing.assert_allclose(result.aligned, aligned, atol=1e-5)
    assert np.array_equal(result.fused, result.aligned) and result.disagreement == 0.75


@pytest.mark.parametrize(("size", "options", "seen"), [
    ((215, 215), {"aspect": 1.2}, [((280, 232), 1), ((256, 256), 0)]), ((215, 215), {}, [((256, 256), 1)]),
    ((80, 70), {"longest": 0.85}, [((256, 256), 1)]),  # as it is; alone it would be shown enlarged
])  # fmt: skip
def test_a_pair_is_registered_as_its_pixels_and_the_longest_head_say(size, options, seen):
    model, image = Shifts(), head((256, 256), *size)
    PairFuser(model, torch.device("cpu"))(image, image, **options)
    assert model.seen == seen
