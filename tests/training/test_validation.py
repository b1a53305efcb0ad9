"""training/validation.py: each figure by hand or as evaluation.metrics has it, of the pair that it is said to be of."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor

from data.dataset import Pair
from evaluation import metrics
from tests.examples import constant_flow, noise
from training.validation import summary, validate

SIDE = 64
CPU = torch.device("cpu")
LENGTHS = (2.0, 3.0, 5.0, 7.0)
"""True displacement of each of `PAIRS` where there is tissue, px."""


def pair(length: float, modality: int, seed: int) -> Pair:
    """Noise in a disc on the left; beyond it, where nothing counts, the displacement is ten times as long."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = (y - 32) ** 2 + (x - 20) ** 2 < 12**2
    images = (0.2 + 0.8 * noise(3, 1, SIDE, SIDE, seed=seed)) * disc
    flow = constant_flow(0.6 * length / 4, 0.8 * length / 4, (SIDE // 4, SIDE // 4))[0]
    flow[..., 14:] *= 10
    size = images[0].shape[1:]
    return Pair(*images, flow, -flow, modality, torch.zeros(3, *size), torch.zeros(2, *size), seed, False)


PAIRS = [pair(length, kind, seed) for seed, (length, kind) in enumerate(zip(LENGTHS, (0, 1, 1, 2), strict=True))]
ANSWERS = {
    "flow": torch.zeros(4, 2, SIDE, SIDE), "aligned": noise(4, 1, SIDE, SIDE, seed=8),
    "fused": noise(4, 1, SIDE, SIDE, seed=9),
}  # fmt: skip


def answering(**fields: Tensor) -> Callable[[Tensor, Tensor], SimpleNamespace]:
    """A model that answers to each of `PAIRS`, in whatever batch, with its part of the fields."""

    def model(fixed: Tensor, moving: Tensor, room: Tensor) -> SimpleNamespace:
        def row(f: Tensor, m: Tensor) -> int:
            return next(n for n, p in enumerate(PAIRS) if torch.equal(p.fixed, f) and torch.equal(p.moving, m))

        rows = [row(f, m) for f, m in zip(fixed, moving, strict=True)]
        return SimpleNamespace(**{name: field[rows] for name, field in (ANSWERS | fields).items()})

    return model


def grey(image: Tensor):
    return 255 * image[0].double().numpy()


def test_endpoint_errors_are_those_of_the_tissue_in_pixels():
    half = torch.cat([constant_flow(0.3 * length, 0.4 * length, (SIDE, SIDE)) for length in LENGTHS])
    # A batch of three and one of a single pair: rows stay in order.
    scores = validate(answering(flow=half), PAIRS, CPU, batch_size=3)
    assert scores["zero"].to_list() == pytest.approx(LENGTHS, rel=1e-5)
    assert scores["epe"].to_list() == pytest.approx([length / 2 for length in LENGTHS], rel=1e-5)
    assert scores["modality"].to_list() == ["CT", "PET", "PET", "SPECT"]
    assert "qabf" not in scores


def test_only_the_tissue_of_the_truly_aligned_image_counts():
    # All other images, and what the model finds, are bright where the true displacement is ten times as long.
    bright = torch.full((1, SIDE, SIDE), 0.5)
    true = pair(2.0, 0, 0)._replace(fixed=bright, moving=bright)
    actual = SimpleNamespace(flow=torch.zeros(1, 2, SIDE, SIDE), aligned=bright[None])
    scores = validate(lambda *_, **__: actual, [true], CPU)
    assert scores["zero"].item() == pytest.approx(2, rel=1e-5) and scores["epe"].item() == pytest.approx(2, rel=1e-5)


def test_grey_errors_are_those_of_the_metrics_over_the_whole_image():
    scores = validate(answering(), PAIRS, CPU)
    for row, aligned, true in zip(scores.itertuples(), ANSWERS["aligned"], PAIRS, strict=True):
        assert row.rmse == pytest.approx(metrics.rmse(grey(aligned), grey(true.moving_aligned)), rel=1e-4)
        assert row.rmse_before == pytest.approx(metrics.rmse(grey(true.moving), grey(true.moving_aligned)), rel=1e-4)


def test_kept_edges_are_those_of_the_fixed_and_the_truly_aligned_image():
    scores = validate(answering(), PAIRS, CPU, fusion=True)
    for row, fused, true in zip(scores.itertuples(), ANSWERS["fused"], PAIRS, strict=True):
        assert row.qabf == pytest.approx(metrics.qabf(grey(true.fixed), grey(true.moving_aligned), grey(fused)))


def test_folding_is_the_share_of_the_image_that_turns_over():
    x = torch.arange(SIDE).float()
    flow = torch.zeros(4, 2, SIDE, SIDE)
    flow[0, 0] = -2 * x
    flow[2, 0] = -2 * (x - SIDE / 2).clamp_min(0)
    assert validate(answering(flow=flow), PAIRS, CPU)["folding"].to_list() == [1, 0, 0.5, 0]


def test_summary_gives_the_means_of_each_modality_and_the_share_of_pairs_improved():
    table = pd.DataFrame({"modality": ["CT", "PET", "CT"], "epe": [1.0, 1.5, 3.0], "zero": [2.0, 2.0, 3.0]})
    assert summary(table) == {
        "epe_CT": 2.0, "epe_PET": 1.5, "zero_CT": 2.5, "zero_PET": 2.0, "better_CT": 0.5, "better_PET": 1.0,
    }  # fmt: skip
    table.loc[2, "epe"] = math.nan
    means = summary(table)
    assert math.isnan(means["epe_CT"]) and (means["epe_PET"], means["zero_CT"]) == (1.5, 2.5)
