"""Pairs that lie anywhere between right and as they were deformed."""

from torch.utils.data import Dataset

from data.dataset import Pair
from utils.geometry.warp import invert, resize_flow, warp

GOLDEN = 0.6180339887
"""The fractional parts of its multiples are spread evenly over [0, 1)."""


class PartlyAligned(Dataset[Pair]):
    """Pairs with a share of their deformation, each with its own; the shares are spread evenly over [0, 1).

    The moving image is `moving_aligned`, deformed. It lacks the noise that the moving image of a training pair has.

    Args:
        pairs: with known deformations. The number of a pair also sets its share.
    """

    def __init__(self, pairs: Dataset[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Pair:
        pair = self.pairs[number]
        deformation = (GOLDEN * (number + 1) % 1) * pair.inverse_flow[None]
        size = tuple(pair.moving.shape[1:])
        moving = warp(pair.moving_aligned[None], resize_flow(deformation, size))
        return pair._replace(moving=moving[0], flow=invert(deformation)[0], inverse_flow=deformation[0])
