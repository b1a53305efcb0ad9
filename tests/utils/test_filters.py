"""utils/filters.py: by hand, or as kornia has it."""

import pytest
import torch
from kornia.filters import spatial_gradient

from tests.examples import noise
from utils.filters import box_mean, gradient_magnitude, halved, min_max, resize, sobel


def test_halved_is_the_mean_of_four():
    image = noise(2, 3, 8, 10)
    blocks = (image[..., ::2, ::2] + image[..., 1::2, ::2] + image[..., ::2, 1::2] + image[..., 1::2, 1::2]) / 4
    assert torch.allclose(halved(image), blocks, atol=1e-6)


def test_box_mean_reflects_at_the_border():
    row = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(1, 1, 4, 4)
    assert torch.allclose(box_mean(row, 3)[0, 0, 1], torch.tensor([5 / 3, 7 / 3, 14 / 3, 16 / 3]))
    assert torch.allclose(box_mean(row.mT, 3), box_mean(row, 3).mT)
    assert torch.equal(box_mean(row, 1), row)


def test_min_max_scales_each_image_by_itself():
    image = torch.tensor([[1.0, 3, 5], [-2, 0, 8]]).view(2, 1, 1, 3)
    assert torch.allclose(min_max(image).flatten(1), torch.tensor([[0, 0.5, 1], [0, 0.2, 1]]))


@pytest.mark.parametrize("value", [0.0, 0.7, 1e6])
def test_min_max_of_a_constant_is_zero(value):
    assert torch.equal(min_max(torch.full((1, 1, 5, 6), value)), torch.zeros(1, 1, 5, 6))


def test_sobel_is_kornias():
    image = noise(2, 3, 9, 14)
    assert torch.allclose(torch.stack(sobel(image), dim=2), spatial_gradient(image), atol=1e-6)


def test_gradient_magnitude_of_a_ramp():
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    magnitude = gradient_magnitude((0.03 * x + 0.04 * y)[None, None])
    assert torch.allclose(magnitude[..., 1:-1, 1:-1], torch.full((1, 1, 10, 10), 0.05), atol=1e-5)


def test_resize_keeps_constants_and_range():
    assert torch.allclose(resize(torch.full((1, 1, 5, 7), 0.3), (20, 9)), torch.full((1, 1, 20, 9), 0.3))
    resized = resize(noise(1, 2, 8, 8), (30, 50))
    assert resized.shape == (1, 2, 30, 50) and 0 <= resized.min() and resized.max() <= 1
