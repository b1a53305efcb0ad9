"""Colour is put back without changing the luma."""

import pytest
import torch
from kornia.color import rgb_to_grayscale

from inference.pair_fuser import with_color


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
    found = with_color(fused, aligned)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.allclose(rgb_to_grayscale(found), fused, atol=1e-5)


def test_grey_and_black_stay_grey_and_black():
    grey = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = with_color(grey, torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1))
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    assert torch.allclose(found[:, :1], grey, atol=1e-6)
    assert torch.equal(with_color(pixel(0.0), pixel(0.2, 0.7, 0.1)), pixel(0.0, 0, 0))
