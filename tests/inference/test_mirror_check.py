"""inference/mirror_check.py: sides that were exchanged are told, right ones are not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.pairs import read_pair, sample_pairs
from inference.mirror_check import MirrorCheck
from inference.pair_fuser import PairFuser
from models.checkpoint import load_checkpoint
from utils.arguments import DEFAULT_CHECKPOINT


@pytest.mark.parametrize(("mirrored", "expected"), [
    ([], False), ([0.5], True), ([0.95], False), ([0.5] * 5, True), ([0.5] * 4 + [1.5], True),
    ([0.5] * 3 + [1.5] * 2, False),
])  # fmt: skip
def test_most_pairs_must_fit_better_mirrored(mirrored, expected):
    coming, seen = iter(mirrored), []

    def fuse(fixed, moving, **view):
        seen.append((moving, view))
        return SimpleNamespace(disagreement=next(coming))

    check, moving = MirrorCheck(fuse), np.arange(12.0).reshape(3, 4)
    for _ in mirrored:
        check.look(moving, moving, 1.0, aspect=2.0)
    assert check.seems_mirrored() == expected and len(seen) == len(mirrored)
    assert all(np.array_equal(image, moving[:, ::-1]) and view == {"aspect": 2.0} for image, view in seen)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_sample(flipped):
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    fuse = PairFuser(checkpoint.model, torch.device("cpu"), **checkpoint.inference(), multistart=False)
    for modality, pairs in sample_pairs("all").items():
        check = MirrorCheck(fuse)
        for pair in pairs:
            images = read_pair(pair, modality)
            moving = images.moving[:, ::-1] if flipped else images.moving
            check.look(images.fixed, moving, fuse(images.fixed, moving).disagreement)
        assert check.seems_mirrored() == flipped, modality
