"""utils/geometry/foreground.py: means and the reach of the foreground by hand."""

import pytest
import torch

from tests.examples import noise
from utils.geometry.foreground import foreground, masked_mean, masked_means


def test_masked_mean_by_hand():
    values = torch.tensor([[1.0, 2], [3, 100]])[None, None]
    mask = torch.tensor([[1.0, 1], [2, 0]])[None, None]
    assert masked_mean(values, mask).item() == pytest.approx((1 + 2 + 2 * 3) / 4)
    # Two channels count alike.
    assert masked_mean(torch.cat((values, 3 * values), dim=1), mask).item() == pytest.approx(2 * 9 / 4)


def test_masked_mean_of_a_batch_is_the_mean_of_its_halves():
    values, mask = noise(4, 2, 6, 7), noise(4, 1, 6, 7, seed=1) ** 4
    mask[1] *= 0.01  # an image with little foreground must not fade against the others
    halves = (masked_mean(values[:2], mask[:2]) + masked_mean(values[2:], mask[2:])) / 2
    assert masked_mean(values, mask).item() == pytest.approx(halves.item(), rel=1e-5)


def test_masked_mean_of_an_empty_mask_is_zero():
    assert masked_mean(noise(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)).item() == 0


def test_masked_means_of_a_length_by_hand():
    mask = torch.ones(2, 1, 8, 8)
    mask[1, :, :, 4:] = 0
    wrong = torch.tensor([3.0, -4]).view(1, 2, 1, 1).repeat(2, 1, 8, 8)
    wrong[1, :, :, 4:] += 100
    assert masked_means(wrong.norm(dim=1, keepdim=True), mask).tolist() == pytest.approx([5, 5])


def test_foreground_reaches_8_px_beyond_tissue():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32:36, 32:36] = 1
    mask = foreground(image, (16, 16))
    expected = torch.zeros(16, 16)
    expected[6:11, 6:11] = 1  # the block of 4 x 4 px and two blocks around it
    assert torch.equal(mask[0, 0], expected)
    assert not foreground(torch.full((1, 1, 64, 64), 0.05), (8, 8)).any()
    assert torch.equal(foreground(torch.full((1, 1, 64, 64), 0.1), (8, 8)), torch.ones(1, 1, 8, 8))
    shares = foreground(image, (8, 8))
    assert shares.shape == (1, 1, 8, 8) and shares.sum().item() == pytest.approx(25 / 4)


class OnMPS(torch.Tensor):
    """A tensor that says it were there."""

    device = torch.device("mps")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_mps_is_not_asked_for_cells_of_several_sizes(monkeypatch):
    def pool_as_mps_does(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if isinstance(image, OnMPS):
            calls.add(size)
            assert all(max(a, b) % min(a, b) == 0 for a, b in zip(image.shape[2:], size, strict=True))
        return pool(image, size)

    calls, pool = set(), torch.nn.functional.adaptive_avg_pool2d
    image = noise(1, 1, 250, 256)
    sizes = [(31, 32), (62, 64), (63, 64), (250, 256)]
    expected = [foreground(image, size) for size in sizes]
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", pool_as_mps_does)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    for size, mask in zip(sizes, expected, strict=True):
        assert torch.equal(foreground(image.as_subclass(OnMPS), size).as_subclass(torch.Tensor), mask)
    # 62 rows make 31 or 62, but neither 63 nor 250.
    assert calls == set(sizes[:2])
