"""utils/filters.py: where it pads and with what; that it can be undone for every size is in test_properties.py."""

import torch

from utils.filters import Padder


def test_pads_right_and_bottom_with_the_border():
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6]])[None, None]
    assert Padder((2, 3), 4).pad(image)[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]


def test_fitting_size_is_left_as_it_is():
    image = torch.rand(1, 1, 64, 96)
    assert torch.equal(Padder((64, 96), 32).pad(image), image)


def test_unpads_fields_with_other_channel_counts():
    padder = Padder((70, 93), 32)
    assert padder.unpad(torch.zeros(1, 2, 96, 96)).shape == (1, 2, 70, 93)
