from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.dataset import Pair
from tests.examples import constant_flow, noise
from tools.unseen import score_pairs, scores_report, summarise_scores
from utils.geometry.warp import warp


class Shifted(Dataset[Pair]):
    """Pairs whose moving image is the fixed one, shifted by 4 px."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Pair:
        if number >= len(self):
            raise IndexError(number)
        image = 0.3 + 0.5 * noise(1, 1, 64, 64, seed=number)
        moving = warp(image, constant_flow(-4.0, 0.0, (64, 64)))[0]
        flows = constant_flow(1, 0, (16, 16))[0], constant_flow(-1, 0, (16, 16))[0]
        nothing = torch.zeros(3, 64, 64), torch.zeros(2, 64, 64)
        return Pair(image[0], moving, image[0], *flows, 1, *nothing, number, False)


class Answer:
    """A network that finds the same displacement (x, px) everywhere, and another one where the pair lies right."""

    def __init__(self, actual: float, still: float = 0.0) -> None:
        self.found, self.still = actual, still

    def __call__(self, fixed: Tensor, moving: Tensor, passes: int, average: bool) -> SimpleNamespace:
        actual = self.still if torch.equal(fixed, moving) else self.found
        flow = constant_flow(actual, 0, (64, 64)).repeat(len(fixed), 1, 1, 1)
        return SimpleNamespace(flow=flow, disagreement=torch.zeros(len(fixed)))


def scored(actual: float, still: float = 0.0) -> pd.DataFrame:
    network = Answer(actual, still)
    scores = score_pairs(network, Shifted(), torch.device("cpu"), passes=1, average=True, batch=2)
    return scores.assign(group=["a", "a", "b"])


def test_a_network_that_finds_everything() -> None:
    scores = scored(4.0)
    assert scores["zero"].tolist() == pytest.approx([4.0] * 3)
    assert scores["error"].abs().max() < 1e-4 and scores["still"].max() == 0
    table = summarise_scores(scores.assign(images="PET"), ["images"])
    assert table.loc["PET", "removed"] == pytest.approx(1) and table.loc["PET", "own"] == pytest.approx(1)
    assert "| PET | 3 | 4.00 | 0.00 | 100% | 100% to 100% | 100% | 0.00 | 100% |" in scores_report(table)


def test_an_offset_of_its_own_counts_against_the_label_only() -> None:
    scores = scored(5.0, still=1.0)
    assert scores["error"].tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    assert scores["still"].tolist() == pytest.approx([1.0] * 3)
    assert scores["own"].max() < 1e-4 and scores["own_zero"].tolist() == pytest.approx([4.0] * 3, abs=1e-4)


def test_an_answer_learned_by_heart_follows_nothing() -> None:
    table = summarise_scores(scored(2.0, still=2.0).assign(images="PET"), ["images"])
    assert table.loc["PET", "removed"] == pytest.approx(0.5) and table.loc["PET", "own"] == pytest.approx(0)
