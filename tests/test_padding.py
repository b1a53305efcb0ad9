"""utils/padding.py: any size in, multiples of the stride inside, the same size and values out."""

import pytest
import torch

from utils.padding import Padder


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 95), (70, 93), (127, 200), (1, 3)])
@pytest.mark.parametrize("stride", [1, 8, 32])
def test_round_trip_and_multiples(size, stride):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padder = Padder(size, stride)
    padded = padder.pad(image)
    assert all(side % stride == 0 for side in padded.shape[2:])
    # No more than what is needed.
    assert all(0 <= after - before < stride for before, after in zip(size, padded.shape[2:], strict=True))
    assert torch.equal(padder.unpad(padded), image)


def test_pads_right_and_bottom_with_the_border():
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6]])[None, None]
    assert Padder((2, 3), 4).pad(image)[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]


def test_fitting_size_is_left_as_it_is():
    image = torch.rand(1, 1, 64, 96)
    assert torch.equal(Padder((64, 96), 32).pad(image), image)


def test_unpads_fields_with_other_channel_counts():
    padder = Padder((70, 93), 32)
    assert padder.unpad(torch.zeros(1, 2, 96, 96)).shape == (1, 2, 70, 93)
