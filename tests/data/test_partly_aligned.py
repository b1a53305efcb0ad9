import pytest
import torch

from data.dataset import PairDataset
from data.partly_aligned import PartlyAligned
from tests.examples import SAMPLE, aligned_sample
from utils.geometry.warp import resize_flow, warp

COUNT = 9


@pytest.fixture(scope="module")
def whole() -> PairDataset:
    return PairDataset(aligned_sample(), SAMPLE, size=128)


def test_shares_are_spread_and_all_else_stays(whole):
    part, shares = PartlyAligned(whole), []
    assert len(part) == len(whole) == COUNT
    for number in range(COUNT):
        before, after = whole[number], part[number]
        share = (after.inverse_flow / before.inverse_flow).nanmedian()
        assert torch.allclose(after.inverse_flow, share * before.inverse_flow, atol=1e-4)
        shares.append(share.item())
        same = set(before._fields) - {"moving", "flow", "inverse_flow"}
        assert all(torch.equal(*(torch.as_tensor(getattr(pair, name)) for pair in (before, after))) for name in same)
    steps = torch.tensor([0.0, *sorted(shares), 1.0]).diff()
    assert 0.03 < steps.min() and steps.max() < 0.2


def test_what_is_left_aligns_the_images(whole):
    part = PartlyAligned(whole)
    for pair in (part[number] for number in range(COUNT)):
        size = tuple(pair.moving.shape[1:])
        assert torch.equal(pair.moving, warp(pair.moving_aligned[None], resize_flow(pair.inverse_flow[None], size))[0])
        back = warp(pair.inverse_flow[None], pair.flow[None])[0] + pair.flow
        assert back[:, 4:-4, 4:-4].norm(dim=0).max() < 0.1
