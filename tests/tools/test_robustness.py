"""tools/robustness.py: each disturbance does what it says, the same every time, and the command prints the table."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from data.dataset import VAL_SEED, PairDataset, seeded
from data.splits import find_table
from data.training_pairs import validation_table
from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import SAMPLE, sample_table
from tools.robustness import CONDITIONS, NOISE, DisturbedPairs, main, robustness, robustness_report
from utils.imaging.images import write_image


@pytest.fixture
def table(tmp_path) -> Path:
    return sample_table(tmp_path / "pairs.csv")


@pytest.fixture
def pairs(table) -> PairDataset:
    actual = find_table(SAMPLE, csv=table)
    return PairDataset(actual[actual["split"] == "val"], SAMPLE, seed=VAL_SEED, size=128)


def test_disturbances_change_the_images_they_name_and_never_the_truth(pairs):
    changed = {
        "as they are": (),
        "structures in the fixed image only": ("fixed",),
        "structures in the moving image only": ("moving",),
        "noise in both": ("fixed", "moving"),
    }
    assert changed.keys() == CONDITIONS.keys()
    for name, disturb in CONDITIONS.items():
        before, after = pairs[0], disturb(pairs[0], seeded(0, 1))
        for field in before._fields:
            same = torch.equal(*(torch.as_tensor(getattr(pair, field)) for pair in (before, after)))
            assert same is (field not in changed[name]), (name, field)
        for field in ("fixed", "moving"):
            assert getattr(after, field).min() >= 0 and getattr(after, field).max() <= 1


def test_noise_has_the_strength_it_says(pairs):
    pair = pairs[0]
    grey = pair._replace(fixed=torch.full_like(pair.fixed, 0.5), moving=torch.full_like(pair.fixed, 0.5))
    noisy = CONDITIONS["noise in both"](grey, seeded(0, 1))
    for image in (noisy.fixed, noisy.moving):
        assert image.std().item() == pytest.approx(NOISE, rel=0.05)
    assert not torch.equal(noisy.fixed, noisy.moving)


def test_disturbed_pairs_repeat_and_differ(pairs):
    once, again = (DisturbedPairs(pairs, CONDITIONS["noise in both"]) for _ in range(2))
    assert len(once) == len(pairs) and torch.equal(once[0].fixed, again[0].fixed)
    assert not torch.equal(once[0].fixed - pairs[0].fixed, once[1].fixed - pairs[1].fixed)


def test_each_pair_is_disturbed_in_its_own_way(pairs):
    grey = pairs[0]._replace(fixed=torch.full((1, 8, 8), 0.5), moving=torch.full((1, 8, 8), 0.5))
    greys = [grey, grey._replace(number=1)]
    one, other = (DisturbedPairs(greys, CONDITIONS["noise in both"])[row] for row in range(2))
    assert not torch.equal(one.fixed, other.fixed) and not torch.equal(one.moving, other.moving)


def test_each_modality_stands_in_its_column():
    rows = [("still", "CT", 1.0, 2.0, 0.5), ("still", "PET", 3.0, 4.0, 1.0), ("noisy", "CT", 5.0, 2.0, 0.0),
            ("noisy", "PET", 6.0, 4.0, 0.25)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["condition", "modality", "epe", "zero", "better"])
    lines = robustness_report(table).splitlines()
    assert lines[0].endswith("| CT | PET |")
    assert lines[2:] == ["| still | 1.00 of 2.00 (50%) | 3.00 of 4.00 (100%) |",
                         "| noisy | 5.00 of 2.00 (0%) | 6.00 of 4.00 (25%) |"]  # fmt: skip


def test_pairs_that_were_trained_on_are_left_out(table, monkeypatch):
    seen = []

    def look(model: EDARFusion, pairs: PairDataset, device: torch.device, *_) -> pd.DataFrame:
        seen.extend(path.absolute().relative_to(SAMPLE).as_posix() for path in pairs.fixed)
        return pd.DataFrame(columns=["condition", "modality", "epe", "zero", "better"])

    monkeypatch.setattr("tools.robustness.robustness", look)
    assert main(["--root", str(SAMPLE), "--csv", str(table), "--device", "cpu"]) == 0
    rows = pd.read_csv(table)
    assert seen == rows.loc[rows["split"] == "val", "fixed"].to_list()


def test_table_by_hand(pairs):
    class Still(EDARFusion):
        """Finds no displacement, so its error is zero flow's."""

        def forward(self, fixed, moving, passes=1, average=False, room=None):
            output = super().forward(fixed, moving)
            return output._replace(flow=torch.zeros_like(output.flow), aligned=moving)

    table = robustness(Still("tiny").eval(), pairs, torch.device("cpu"))
    assert list(table["condition"].unique()) == list(CONDITIONS) and len(table) == 3 * len(CONDITIONS)
    assert (table["epe"] == table["zero"]).all() and (table["better"] == 0).all()
    assert (table.groupby("condition")["pairs"].sum() == len(pairs)).all()
    # The truth is the same under every condition, and is what the pairs say.
    assert (table.groupby("modality")["zero"].nunique() == 1).all() and table["zero"].between(0.5, 10).all()


def test_command_prints_a_line_a_condition(table, capsys):
    assert main(["--root", str(SAMPLE), "--csv", str(table), "--modality", "PET"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(CONDITIONS)
    assert all(re.fullmatch(r"\| [a-z ]+ \| \d+\.\d\d of \d+\.\d\d \(\d+%\) \|", line) for line in lines[2:])


def test_a_checkpoint_of_one_modality_is_enough_for_its_pairs(table, tmp_path, capsys):
    save_checkpoint(tmp_path / "pet.safetensors", EDARFusion("tiny"), modality="PET", training={}, metrics={})
    rows = pd.read_csv(table)
    rows[rows["modality"] == "PET"].to_csv(tmp_path / "pet.csv", index=False)
    line = ["--root", str(SAMPLE), "--checkpoint", str(tmp_path / "pet.safetensors"), "--csv"]
    assert main([*line, str(tmp_path / "pet.csv")]) == 0
    assert main([*line, str(table)]) == 2
    assert "expected a checkpoint for all, found one for PET" in capsys.readouterr().err


def test_command_names_what_is_missing(table, tmp_path, capsys):
    assert main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    pd.read_csv(table).drop(columns="split").to_csv(table, index=False)
    assert main(["--root", str(SAMPLE), "--csv", str(table)]) == 2
    assert re.fullmatch(r".*pairs\.csv: expected a column split, found columns .*\n", capsys.readouterr().err)


def test_a_modality_alone_is_disturbed_as_among_all(table):
    model, device = EDARFusion("tiny").eval(), torch.device("cpu")
    tables = (validation_table(str(SAMPLE), modality, csv=str(table)) for modality in ("all", "PET"))
    every, alone = (robustness(model, PairDataset(x, ".", seed=VAL_SEED, size=64), device) for x in tables)
    every = every[every["modality"] == "PET"].reset_index(drop=True)
    assert len(alone) == len(CONDITIONS)
    assert alone["zero"].tolist() == pytest.approx(every["zero"].tolist(), rel=1e-6)
    assert alone["epe"].tolist() == pytest.approx(every["epe"].tolist(), rel=1e-4)


def test_a_folder_of_one_modality_needs_no_others(tmp_path):
    for role in ("MRI", "PET"):
        for number in (1, 2):
            write_image(tmp_path / role / f"{number}001.png", torch.zeros(64, 64).numpy())
    assert len(validation_table(str(tmp_path), "PET")) == 1
