from pathlib import Path

import pandas as pd
import pytest

from data.folds import FOLDS, make_folds, read_folds, split_by_fold
from data.table import DataError


def pairs(**sizes: int) -> pd.DataFrame:
    """Pairs of CT: a patient an argument, with so many slices."""
    names = [(group, f"{group}{number:03d}") for group, size in sizes.items() for number in range(size)]
    return pd.DataFrame(
        {"fixed": [f"MRI/{name}.png" for _, name in names], "modality": "CT", "group": [g for g, _ in names]}
    )


def test_folds_are_even_and_keep_patients_whole() -> None:
    folds = make_folds(pairs(a=6, b=5, c=4, d=2, e=1), 3)
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert sorted(folds.groupby("fold").size()) == [6, 6, 6]


def test_fewer_patients_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="3 patients or more, one a fold.*2"):
        make_folds(pairs(a=2, b=2), 3)


def test_every_pair_is_validated_on_once() -> None:
    table = pairs(a=3, b=3, c=3)
    folds = make_folds(table, 3)
    splits = pd.concat([split_by_fold(table, folds, fold)["split"] for fold in (1, 2, 3)], axis=1)
    assert (splits == "val").sum(axis=1).tolist() == [1] * 9


def test_a_fold_or_a_pair_that_is_not_there_is_named() -> None:
    table = pairs(a=1, b=1)
    folds = make_folds(table, 2)
    with pytest.raises(DataError, match="a fold from 1 to 2.*3"):
        split_by_fold(table, folds, 3)
    with pytest.raises(DataError, match="CT c000"):
        split_by_fold(pairs(c=1), folds, 1)


def test_the_stored_folds_hold_every_patient_once() -> None:
    folds = read_folds(FOLDS)
    assert folds.groupby(["modality"])["group"].nunique().to_dict() == {"CT": 10, "PET": 3, "SPECT": 15}
    assert folds.groupby("modality")["fold"].unique().map(sorted).map(list).tolist() == [[1, 2, 3]] * 3
    assert not folds.duplicated(["modality", "name"]).any()


@pytest.mark.parametrize(("row", "message"), [
    ("CT,x,b,one", "numbers from 1 as folds.*one"), ("CT,x,a,2", "every patient in one fold.*a in 2"),
])  # fmt: skip
def test_a_wrong_table_is_refused(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text(f"modality,name,group,fold\nCT,y,a,1\n{row}\n")
    with pytest.raises(DataError, match=message):
        read_folds(tmp_path / "folds.csv")
