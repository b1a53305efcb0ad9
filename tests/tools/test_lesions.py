"""tools/lesions.py: where simulated lesions lie, and how much of them is said to survive."""

import numpy as np
import pytest
import torch

from data.dataset import PairDataset, seeded
from models.edarfusion import EDARFusion
from models.fusion import Fusion
from tests.examples import SAMPLE, aligned_sample
from tools.lesions import CONTRAST, lesions_in, survival, survival_report


@pytest.fixture
def pairs() -> PairDataset:
    return PairDataset(aligned_sample().iloc[:1], SAMPLE, size=128)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("diameter", [3, 15])
def test_lesions_do_not_touch_and_have_their_size(sign, diameter):
    host, other = torch.full((1, 1, 128, 128), 0.5), torch.full((1, 1, 128, 128), 0.3)
    lesions = lesions_in(host, other, diameter, sign, seeded(0, 1))
    assert len(lesions) == 4 and (sum((lesion != 0).int() for lesion in lesions) <= 1).all()
    for lesion in lesions:
        assert (sign * lesion).max() == pytest.approx(CONTRAST) and (sign * lesion).min() == 0
    whole = [lesion for lesion in lesions if not lesion[:8].any() and not lesion[-8:].any()]
    areas = [(lesion.abs() > CONTRAST / 2).sum().item() for lesion in whole if not lesion[:, [0, -1]].any()]
    assert areas and np.mean(areas) == pytest.approx(np.pi * diameter**2 / 4, rel=0.35)
    assert not lesions_in(0 * host, other, diameter, sign, seeded(0, 1))


@pytest.mark.parametrize(("kept_fixed", "kept_moving"), [(1.0, 0.0), (0.5, 0.25)])
def test_survival_of_a_known_mixture(monkeypatch, pairs, kept_fixed, kept_moving):
    model = EDARFusion("tiny").eval()

    def mix(fixed, aligned, registration, room=None):
        return Fusion(kept_fixed * fixed + kept_moving * aligned, fixed)

    monkeypatch.setattr(model, "fuse", mix)
    table = survival(model, pairs, torch.device("cpu"))
    kept = table.groupby("image")["kept"].agg(["min", "max"])
    assert kept.loc["fixed"].to_list() == pytest.approx([kept_fixed] * 2, abs=1e-4)
    assert kept.loc["moving"].to_list() == pytest.approx([kept_moving] * 2, abs=1e-4)
    assert (table["beside"].dropna() < 1e-6).all()
    assert f"{kept_fixed:.2f}" in survival_report(table)
