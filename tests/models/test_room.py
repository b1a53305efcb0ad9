"""models/room.py: what luma a tracer's colours and bone leave, and how colours are shown within it."""

import pytest
import torch
from kornia.color import rgb_to_grayscale, rgb_to_hsv

from models.room import LEAST_BRIGHT, SATURATION_KEPT, STRONG, in_color, room_of, with_color


def pixel(*channels: float) -> torch.Tensor:
    return torch.tensor(channels).view(1, -1, 1, 1)


def colors(count: int = 4000) -> torch.Tensor:
    return torch.rand(1, 3, count, 1, generator=torch.Generator().manual_seed(5))


def test_room_by_hand():
    assert torch.equal(room_of(pixel(0.0)).flatten(), torch.tensor([0.0, 1.0, 0.0]))  # nothing there
    assert torch.equal(room_of(pixel(0.4)).flatten(), torch.tensor([0.0, 1.0, 0.0]))  # soft tissue
    low, high, colored = room_of(pixel(1.0)).flatten().tolist()  # bone, or white at the top of a scale
    assert (low, high, colored) == pytest.approx((LEAST_BRIGHT, 1, 0))
    low, high, colored = room_of(pixel(1.0, 0, 0)).flatten().tolist()  # red has a luma of 0.299 at full brightness
    assert (high, colored) == pytest.approx((1 - SATURATION_KEPT * 0.701, 1), abs=1e-4) and 0 < low < 0.299


def test_room_is_an_interval_and_holds_the_colour_itself():
    moving = colors()
    low, high, _ = room_of(moving).split(1, dim=1)
    luma = rgb_to_grayscale(moving)
    assert (low >= 0).all() and (high <= 1).all() and (low <= luma + 1e-6).all() and (luma <= high + 1e-6).all()


def test_images_without_colours_are_grey_whatever_their_channels():
    grey = colors()[:, :1]
    assert torch.allclose(room_of(grey), room_of(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert not room_of(grey)[:, 2].any() and room_of(colors())[:, 2].all()


def test_in_color_keeps_hue_and_saturation_within_the_room():
    tracer = colors()
    low, high, _ = room_of(tracer).split(1, dim=1)
    strong = ((tracer.amax(dim=1) - tracer.amin(dim=1)) > STRONG[1]).flatten()
    for share in (0.0, 0.3, 0.7, 1.0):
        fused = low + share * (high - low)
        shown = in_color(fused, tracer)
        assert torch.allclose(rgb_to_grayscale(shown), fused, atol=2e-4)
        (hue, kept, _), (true_hue, true, _) = (x[0, :, strong].squeeze(-1) for x in map(rgb_to_hsv, (shown, tracer)))
        turn = (hue - true_hue).abs().remainder(2 * torch.pi)
        assert torch.minimum(turn, 2 * torch.pi - turn).max() < 0.02
        assert (kept >= SATURATION_KEPT * true - 2e-3).all() and (kept <= true + 2e-3).all()


def test_in_color_gives_the_tracer_back_and_nothing_to_nothing():
    tracer = colors()
    assert torch.allclose(in_color(rgb_to_grayscale(tracer), tracer), tracer, atol=1e-4)
    fused = torch.rand(1, 1, 8, 8)
    assert torch.allclose(in_color(fused, torch.zeros(1, 3, 8, 8)), fused.expand(-1, 3, -1, -1), atol=1e-6)


def test_weak_colours_get_no_stronger():
    shown = in_color(pixel(0.8), pixel(0.05, 0.0, 0.0))
    assert (shown.amax() - shown.amin()).item() <= 0.0501


def test_luma_mode_goes_pale_where_the_fused_image_is_bright():
    red = pixel(1.0, 0, 0)
    kept, usual = in_color(room_of(red)[:, 1:2], red), with_color(pixel(0.95), red)
    saturation = [((x.amax() - x.amin()) / x.amax()).item() for x in (kept, usual)]
    assert saturation[0] == pytest.approx(SATURATION_KEPT, abs=1e-3) and saturation[1] < 0.1
