"""inference/pair_fuser.py: arrays in, arrays out; colour is put back without changing the luma."""


import numpy as np
import pytest
import torch
from kornia.color import rgb_to_grayscale, rgb_to_ycbcr

from data.pairs import is_blank
from inference.displacement import endpoint_scores
from inference.pair_arrays import without_drawn_out_border
from inference.pair_fuser import PairFuser
from models.room import room_of, with_color
from tests.examples import SHAPE, picture
from utils.geometry.field_of_view import field_of_view
from utils.geometry.warp import warp
from utils.imaging import images


def test_endpoint_errors_are_those_in_and_near_tissue():
    label, truth = np.zeros((64, 96), np.float32), np.zeros((2, 64, 96), np.float32)
    label[:, :32] = 0.5
    truth[0, :, :40], truth[0, :, 40:] = 3, 50  # tissue and 8 px more, and the rest
    scores = endpoint_scores(truth + np.where(truth[:1] == 3, 4, 50).astype(np.float32), truth, label)
    assert scores == pytest.approx({"epe": np.hypot(4, 4), "epe_before": 3}, rel=1e-6)


@pytest.mark.parametrize(("levels", "blank"), [(0, True), (3, True), (5, False)])
def test_an_image_within_four_grey_levels_shows_nothing(levels, blank):
    image = np.full(SHAPE, 0.5, np.float32)
    image[10, 10] += levels / 255
    assert is_blank(image) == blank


def test_arrays_of_any_floating_type_are_taken_but_no_grey_levels(model):
    fuse, (fixed, moving) = PairFuser(model, torch.device("cpu")), (picture(1), picture(2))
    result = fuse(fixed, moving)
    double = PairFuser(model, "cpu")(fixed.astype(np.float64), moving.astype(np.float64))  # a device by its name
    assert np.array_equal(double.fused, result.fused) and double.flow.dtype == np.float32
    for wrong in ((255 * moving).astype(np.uint8), 255 * moving, moving - 0.5, np.full_like(moving, np.nan)):
        with pytest.raises(ValueError, match=r"moving: expected floating point numbers in \[0, 1\], found"):
            fuse(fixed, wrong)
    for wrong in (moving[:-1], moving[..., None], np.dstack([moving] * 4)):
        with pytest.raises(ValueError, match=r"expected fixed \(H, W\) and moving .*found shapes \(\d+, \d+\) and \("):
            fuse(fixed, wrong)
    turned = fuse(fixed[::-1], moving[::-1])  # negative strides
    assert np.array_equal(turned.fused, fuse(fixed[::-1].copy(), moving[::-1].copy()).fused)


def test_tensors_are_taken_as_arrays_are(model):
    fuse, (fixed, moving) = PairFuser(model, torch.device("cpu")), (picture(1), picture(2, channels=3))
    expected = fuse(fixed, moving)
    actual = fuse(torch.from_numpy(fixed), torch.from_numpy(moving).requires_grad_())
    assert isinstance(actual.fused, np.ndarray) and np.array_equal(actual.fused, expected.fused)
    with pytest.raises(ValueError, match=r"moving: expected floating point numbers in \[0, 1\], found uint8"):
        fuse(torch.from_numpy(fixed), torch.zeros(SHAPE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"found shapes \(1, 1, 64, 80\) and"):
        fuse(torch.from_numpy(fixed)[None, None], torch.from_numpy(moving))


def test_color_is_put_back_into_the_usual_luma(model):
    fixed, moving = picture(1), picture(2, channels=3)
    result = PairFuser(model, torch.device("cpu"), color="luma")(fixed, moving)
    assert result.fused.shape == result.aligned.shape == (*SHAPE, 3)
    tensor = torch.from_numpy(moving).permute(2, 0, 1)[None]
    ycbcr = rgb_to_ycbcr(tensor)
    with torch.inference_mode():
        output = model(*(torch.from_numpy(image)[None, None] for image in (fixed, images.luma(moving))))
    assert np.array_equal(result.flow, output.flow[0].numpy())
    actual = rgb_to_ycbcr(torch.from_numpy(result.fused).permute(2, 0, 1)[None])[0].numpy()
    expected = torch.cat((output.fused, warp(ycbcr[:, 1:], output.flow)), dim=1)[0].numpy()
    seen = field_of_view(result.flow)
    assert np.abs(actual - expected)[0, seen].max() < 1e-4
    # Where no channel reaches its bound, Cb and Cr are those of the aligned image.
    inside = seen & ((result.fused > 1e-3) & (result.fused < 1 - 1e-3)).all(axis=2)
    assert inside.mean() > 0.3
    assert np.abs(actual - expected)[1:, inside].max() < 1e-4


def test_kept_colours_stay_within_their_room(model):
    fixed, moving = picture(1), picture(2, channels=3)
    result = PairFuser(model, torch.device("cpu"))(fixed, moving)
    fused, aligned = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (result.fused, result.aligned))
    luma = rgb_to_grayscale(fused)
    room = warp(room_of(torch.from_numpy(moving).permute(2, 0, 1)[None]), torch.from_numpy(result.flow)[None])
    assert (luma >= room[:, :1] - 1e-3).all() and (luma <= room[:, 1:2] + 1e-3).all()
    usual = PairFuser(model, torch.device("cpu"), color="luma")(fixed, moving).fused
    strong = np.ptp(result.aligned, axis=2) > 0.5
    kept, pale = (np.ptp(x[strong], axis=1) / x[strong].max(axis=1) for x in (result.fused, usual))
    true = np.ptp(result.aligned[strong], axis=1) / result.aligned[strong].max(axis=1)
    assert strong.any() and kept.mean() > 0.84 * true.mean() and kept.mean() > pale.mean()


@pytest.mark.parametrize("channels", [None, 3])
def test_grey_tracers_get_a_colour_scale_in_the_fused_image_alone(model, channels):
    fixed, moving = picture(1), picture(2)
    moving = moving if channels is None else np.dstack([moving] * 3)
    grey, hot = (PairFuser(model, torch.device("cpu"), colormap=name)(fixed, moving) for name in (None, "hot"))
    assert np.array_equal(hot.aligned, grey.aligned) and np.array_equal(hot.flow, grey.flow)
    assert hot.fused.shape == (*SHAPE, 3) and np.ptp(hot.fused, axis=2).max() > 0.3
    assert grey.fused.ndim == 2 or not np.ptp(grey.fused, axis=2).max() > 1e-6
    # Colours of its own are kept.
    colored = picture(2, channels=3)
    results = [PairFuser(model, torch.device("cpu"), colormap=name)(fixed, colored) for name in (None, "hot")]
    assert np.array_equal(results[0].fused, results[1].fused)


def test_a_grey_tracer_may_be_fused_in_grey_as_well(model):
    fixed, moving, flow = picture(1), picture(2), np.full((2, *SHAPE), 2.0, np.float32)
    ways = ({}, {"colormap": "hot"}, {"colormap": "hot", "grey": True})
    grey, hot, both = (PairFuser(model, torch.device("cpu"), **how)(fixed, moving, flow=flow) for how in ways)
    assert np.array_equal(both.fused, hot.fused) and hot.fused_grey is None and grey.fused_grey is None
    np.testing.assert_allclose(both.fused_grey, grey.fused, atol=1e-6)
    nothing = PairFuser(model, torch.device("cpu"), **ways[2])(fixed, np.zeros_like(fixed), flow=flow)
    np.testing.assert_array_equal(nothing.fused_grey, fixed)


def test_blend_is_the_plain_overlay(model):
    fixed, moving = picture(1), picture(2)
    result = PairFuser(model, torch.device("cpu"), blend=0.3)(fixed, moving)
    overlay = np.where(field_of_view(result.flow), 0.7 * fixed + 0.3 * result.aligned, fixed)
    np.testing.assert_allclose(result.blend, overlay, atol=1e-6)
    overlay = PairFuser(model, torch.device("cpu"), blend=1.0, colormap="hot")(fixed, moving).blend
    reds = overlay[..., 0] - overlay[..., 2]
    assert overlay.shape == (*SHAPE, 3) and reds.min() >= 0 and reds.max() > 0.5
    assert PairFuser(model, torch.device("cpu"))(fixed, moving).blend is None


def test_mirrored_pair_gives_the_mirrored_result(model):
    fuse = PairFuser(model, torch.device("cpu"), average=True)
    # A multiple of the stride, shown as it is: padding, which is at the right, has no mirror image.
    fixed, moving = picture(1, (64, 64)), picture(2, (64, 64))
    straight, mirrored = fuse(fixed, moving), fuse(fixed[:, ::-1].copy(), moving[:, ::-1].copy())
    turned = mirrored.flow[:, :, ::-1] * np.array([-1, 1], np.float32)[:, None, None]
    assert np.abs(straight.flow).max() > 0.5
    np.testing.assert_allclose(turned, straight.flow, atol=1e-3)
    np.testing.assert_allclose(mirrored.aligned[:, ::-1], straight.aligned, atol=1e-3)


def test_beyond_the_field_of_view_the_fixed_image_stands_alone():
    fixed, flow = picture(1), np.zeros((2, *SHAPE), np.float32)
    flow[0, :, -5:] = 6.0  # the last five columns come from beyond the right border
    for shape in (SHAPE, (*SHAPE, 3)):
        fused, aligned = np.full(shape, 0.9, np.float32), np.full(shape, 0.8, np.float32)
        actual, moved = without_drawn_out_border(fused, aligned, fixed, flow)
        assert actual.shape == moved.shape == shape and actual.dtype == moved.dtype == np.float32
        assert (actual[:, :-5] == np.float32(0.9)).all() and (moved[:, :-5] == np.float32(0.8)).all()
        assert (moved[:, -5:] == 0).all()
        assert np.array_equal(np.atleast_3d(actual)[:, -5:, 0], fixed[:, -5:])


def pixel(*channels: float) -> torch.Tensor:
    return torch.tensor(channels).view(1, -1, 1, 1)


def test_a_color_of_the_fused_luma_comes_back_as_it_is():
    color = pixel(0.9, 0.4, 0.2)
    assert torch.allclose(with_color(rgb_to_grayscale(color), color), color, atol=1e-6)


def test_a_color_that_has_no_room_is_shortened_and_keeps_luma_and_hue():
    # Red has a luma of 0.299: at 0.6 half of it and a little more fits, (1 - 0.6) / (1 - 0.299) of each difference.
    share = 0.4 / 0.701
    expected = pixel(1, 0.6 - 0.299 * share, 0.6 - 0.299 * share)
    assert torch.allclose(with_color(pixel(0.6), pixel(1.0, 0, 0)), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_luma_is_that_of_the_fused_image(seed):
    generator = torch.Generator().manual_seed(seed)
    fused, aligned = (torch.rand(2, channels, 16, 24, generator=generator) for channels in (1, 3))
    actual = with_color(fused, aligned)
    assert actual.min() >= 0 and actual.max() <= 1
    assert torch.allclose(rgb_to_grayscale(actual), fused, atol=1e-5)


def test_grey_and_black_stay_grey_and_black():
    grey = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    actual = with_color(grey, torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1))
    assert torch.equal(actual[:, 0], actual[:, 1]) and torch.equal(actual[:, 0], actual[:, 2])
    assert torch.allclose(actual[:, :1], grey, atol=1e-6)
    assert torch.equal(with_color(pixel(0.0), pixel(0.2, 0.7, 0.1)), pixel(0.0, 0, 0))
