"""data/training_pairs.py: a pair is validated on with one deformation, whichever modalities are chosen."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from data.training_pairs import build_datasets, load_table, number_pairs, validation_table
from tests.examples import SAMPLE, sample_table
from utils.files import FileError


@pytest.fixture
def csv(tmp_path: Path) -> str:
    return str(sample_table(tmp_path / "pairs.csv"))


def validated(csv: str, modality: str) -> dict[str, torch.Tensor]:
    table, _ = load_table([str(SAMPLE)], modality, csv=csv)
    pairs = build_datasets(table, csv).val
    return {pairs.moving[row].as_posix(): pairs[row].flow for row in range(len(pairs))}


def test_one_modality_is_validated_on_with_the_deformations_of_all(csv):
    every, alone = validated(csv, "all"), validated(csv, "PET")
    assert alone.keys() < every.keys()
    assert all(torch.equal(flow, every[name]) for name, flow in alone.items())


def test_pairs_are_numbered_in_their_split():
    every = pd.DataFrame({"split": ["val", "train", "val", "val"], "modality": ["CT", "CT", "PET", "SPECT"],
                          "fixed": list("abcd"), "moving": list("abcd")})  # fmt: skip
    assert number_pairs(every, every)["number"].tolist() == [0, 0, 1, 2]
    assert number_pairs(every[2:], every)["number"].tolist() == [1, 2]
    # Pairs of a split that is drawn otherwise come after all others.
    assert number_pairs(every[1:3].assign(split="val"), every)["number"].tolist() == [3, 1]


def test_a_table_without_pairs_to_validate_on_is_named(csv):
    table = pd.read_csv(csv)
    table.assign(split="train").to_csv(csv, index=False)
    with pytest.raises(FileError, match=r"pairs\.csv: expected pairs of the split val, found none"):
        validation_table(str(SAMPLE), "all", csv=csv)
