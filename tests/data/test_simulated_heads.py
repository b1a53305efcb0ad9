from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from data.dataset import PairDataset, seeded
from data.simulated_heads import Draw, HeadSlice, LabelledHeads, Recipe, paint, remapped, simulated_pair
from data.simulated_pairs import CONTRASTS, SimulatedPairs
from data.table import MODALITIES, DataError
from data.tissue import Tissue
from data.training_pairs import build_datasets
from utils.geometry.warp import resize_flow, warp


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:256, :256] - 128
    return np.hypot(x, y) < radius


def head() -> HeadSlice:
    tissue = np.zeros((256, 256), np.uint8)
    for radius, label in (
        (100, Tissue.SCALP),
        (90, Tissue.BONE),
        (80, Tissue.GREY),
        (50, Tissue.WHITE),
        (15, Tissue.FLUID),
    ):
        tissue[disc(radius)] = label
    return HeadSlice((tissue / 6).astype(np.float32), tissue)


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    slice_ = head()
    for folder, image in (("mri", (255 * slice_.mri).astype(np.uint8)), ("tissue", slice_.tissue)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), image)
    rows = [
        {"fixed": "mri/a.png", "moving": "tissue/a.png", "group": "a", "split": split} for split in ("train", "test")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "heads.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_draw_is_in_range_and_repeats(modality: str, heads: Path) -> None:
    labelled = LabelledHeads(heads)
    for number in range(6):
        pair, again = (simulated_pair(modality, seeded(1, number), labelled) for _ in range(2))
        assert pair.shape == (1, 2, 256, 256)
        assert pair.min() >= 0 and pair.max() <= 1
        assert torch.equal(pair, again)


def test_random_shapes_need_no_heads() -> None:
    pairs = [simulated_pair("PET", seeded(2, number)) for number in range(4)]
    assert all(image.std() > 0.02 for pair in pairs for image in pair[0])
    assert not torch.equal(pairs[0], pairs[1])


@pytest.mark.parametrize(("contrast", "bright", "dark"), [
    ("CT", Tissue.BONE, Tissue.GREY), ("PET", Tissue.GREY, Tissue.SCALP), ("thallium", Tissue.SCALP, Tissue.GREY),
])  # fmt: skip
def test_a_contrast_shows_the_tissue_it_should(contrast: str, bright: Tissue, dark: Tissue, monkeypatch) -> None:
    monkeypatch.setattr("data.simulated_heads._through_colors", lambda image, draw: image)
    slice_ = head()
    for number in range(5):
        _, moving = paint(slice_, Recipe(contrast, varied=False), Draw(seeded(3, number)))
        assert np.median(moving[slice_.tissue == bright]) > np.median(moving[slice_.tissue == dark])


def test_a_stripped_head_shows_its_brain_alone() -> None:
    slice_ = head()
    fixed, _ = paint(slice_, Recipe("PET", stripped=True, varied=False), Draw(seeded(4, 0)))
    assert not fixed[slice_.tissue < Tissue.FLUID].any()
    assert fixed[slice_.tissue == Tissue.GREY].all()


def test_remapped_grey_values_keep_black_and_the_range() -> None:
    image = np.linspace(0, 1, 256, dtype=np.float32)[None]
    for number in range(10):
        changed = remapped(image, Draw(seeded(5, number)))
        assert changed[0, 0] == 0 and changed.min() >= 0 and changed.max() <= 1


def test_heads_that_are_not_there_are_named(heads: Path) -> None:
    with pytest.raises(DataError, match=r"heads\.csv.*split val"):
        LabelledHeads(heads, "val")
    cv2.imwrite(str(heads / "mri" / "a.png"), np.zeros((100, 100), np.uint8))
    with pytest.raises(DataError, match=r"a\.png.*256 x 256.*100 x 100"):
        LabelledHeads(heads)


def test_no_head_shows_a_patient_who_is_only_validated_on(heads: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(heads / "heads.csv")
    rows = pd.concat([rows[rows["split"] == "train"].assign(group=group) for group in ("16", "17", "icbm")])
    rows.to_csv(heads / "heads.csv", index=False)
    names = {"16001": "val", "17001": "val", "17002": "train", "18001": "train"}
    table = pd.DataFrame(
        {"fixed": name, "moving": name, "modality": "CT", "group": f"DATA/{name[:2]}", "split": split}
        for name, split in names.items()
    )
    train, _ = build_datasets(table, "DATA", simulated=0.5, heads=str(heads))
    assert train.heads.groups == ["17", "icbm"]


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_yardstick_repeats_and_its_truth_aligns(contrast: str, heads: Path) -> None:
    pairs = SimulatedPairs(LabelledHeads(heads, "test"), contrast, 2)
    pair = pairs[1]
    assert torch.equal(pair.moving, pairs[1].moving)
    aligned = warp(pair.moving[None], resize_flow(pair.flow[None], (256, 256)))[0]
    before, after = ((image - pair.moving_aligned).abs().mean() for image in (pair.moving, aligned))
    assert after < 0.35 * before
    assert pairs.groups == ["a", "a"]


def test_training_mixes_simulated_heads_in(heads: Path, tmp_path: Path) -> None:
    image = np.zeros((256, 256), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), image)
    table = pd.DataFrame({"fixed": ["x.png"] * 2, "moving": ["x.png"] * 2, "modality": ["CT", "PET"]})
    black, all_, mixed = (
        PairDataset(table, tmp_path, augment=True, simulated=share, heads=LabelledHeads(heads))
        for share in (0.0, 1.0, 0.5)
    )
    shown = [[pairs[draw].moving_aligned.mean() > 0.03 for draw in range(16)] for pairs in (black, all_, mixed)]
    assert sum(shown[0]) < sum(shown[2]) < sum(shown[1]) == 16
    assert all_[1].modality == MODALITIES.index("PET")
