"""Misaligned pairs simulated on labelled heads, the same each time: the yardstick for heads that nobody trained on."""

import numpy as np
from torch.utils.data import Dataset

from data.dataset import VAL_SEED, Pair, seeded
from data.deformation import BENCHMARK, random_flow
from data.simulated_heads import Draw, LabelledHeads, Recipe, as_pair, paint
from data.table import MODALITIES
from utils.geometry.warp import invert, resize_flow, warp

CONTRASTS = ("CT", "PET", "SPECT", "thallium")
"""Moving images that the yardstick shows; `thallium` is a SPECT image of a dark brain."""


class SimulatedPairs(Dataset[Pair]):
    """Pairs with deformations of the benchmark's kind.

    Args:
        heads: to paint on.
        contrast: one of `CONTRASTS`.
        count: of pairs; the heads are taken evenly, so that every group has its share.
    """

    def __init__(self, heads: LabelledHeads, contrast: str, count: int) -> None:
        self.heads, self.contrast = heads, contrast
        self.rows = np.linspace(0, len(heads) - 1, count).round().astype(int)
        self.groups = [heads.groups[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Pair:
        if not 0 <= number < len(self):
            raise IndexError(number)
        generator = seeded(VAL_SEED + 1 + CONTRASTS.index(self.contrast), number)
        images = paint(self.heads[self.rows[number]], Recipe(self.contrast, varied=False), Draw(generator))
        pair = as_pair(*images)
        deformation = random_flow(tuple(pair.shape[2:]), BENCHMARK, generator)
        moving = warp(pair[:, 1:], resize_flow(deformation, tuple(pair.shape[2:])))
        modality = "SPECT" if self.contrast == "thallium" else self.contrast
        truth = invert(deformation)[0]
        index, size = MODALITIES.index(modality), pair.shape[2:]
        grey, sound = pair.new_zeros(3, *size), pair.new_zeros(2, *size)
        return Pair(pair[0, :1], moving[0], pair[0, 1:], truth, deformation[0], index, grey, sound, number, True)
