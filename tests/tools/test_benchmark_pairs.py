"""tools/benchmark_pairs.py: the draw that comes with the project, and pairs made from it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.folds import read_folds
from inference.systems import read_pairs
from tests.examples import SAMPLE
from tools import benchmark_pairs
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image, write_image

NAMES = ("simulated_070", "simulated_090", "simulated_116")


@pytest.fixture
def atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three aligned CT pairs in the atlas's layout, of two patients."""
    for role, folder in (("fixed", "MRI"), ("label", "CT")):
        shutil.copytree(SAMPLE / "CT" / role, tmp_path / "atlas" / "CT-MRI" / folder)
    folds = pd.DataFrame({"modality": "CT", "name": NAMES, "group": ["a", "a", "b"], "fold": [1, 1, 2]})
    monkeypatch.setattr(benchmark_pairs, "read_folds", lambda: folds)
    monkeypatch.setattr(benchmark_pairs, "PAIRS", 2)
    benchmark_pairs.draw(tmp_path / "atlas", tmp_path / "draw")
    return tmp_path / "atlas"


def test_patients_take_turns_and_the_pairs_have_exact_truth(atlas: Path, tmp_path: Path) -> None:
    written = benchmark_pairs.write_benchmark(atlas, tmp_path / "bench", tmp_path / "draw")
    assert sorted(written["group"]) == ["a", "b"]
    pairs = read_pairs(tmp_path / "bench" / "pairs.csv", tmp_path / "bench")
    for pair in pairs.to_dict("records"):
        label, moving = read_image(pair["label"]), read_image(pair["moving"])
        actual = apply_flow(moving, load_flow(pair["flow"], label.shape))
        inside = (slice(16, -16),) * 2
        assert np.abs(actual - label)[inside].mean() < np.abs(moving - label)[inside].mean() / 3
    of_fold = read_pairs(tmp_path / "bench" / "pairs.csv", tmp_path / "bench", fold=2)
    assert list(of_fold["group"]) == ["b"]


def test_another_image_is_named(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = atlas / "CT-MRI" / "CT" / "simulated_116.png"
    image = read_image(path)
    image[100, 100] += 1 / 255
    write_image(path, image)
    with pytest.raises(benchmark_pairs.DataError, match="simulated_116.png: expected the label of the draw"):
        benchmark_pairs.write_benchmark(atlas, tmp_path / "bench", tmp_path / "draw")


def test_the_pixels_count_not_the_file(atlas: Path, tmp_path: Path) -> None:
    path = atlas / "CT-MRI" / "CT" / "simulated_116.png"
    write_image(path, read_image(path))
    path.write_bytes(path.read_bytes() + b"a comment")
    benchmark_pairs.write_benchmark(atlas, tmp_path / "bench", tmp_path / "draw")


def test_the_draw_of_the_project_is_whole() -> None:
    table = pd.read_csv(benchmark_pairs.DRAW / "pairs.csv", dtype=str)
    assert table.groupby("modality").size().to_dict() == dict.fromkeys(("CT", "PET", "SPECT"), 20)
    with np.load(benchmark_pairs.DRAW / "deformations.npz") as deformations:
        assert set(deformations) == set(table["modality"] + "/" + table["name"])
        for row in table.itertuples():
            stored = deformations[f"{row.modality}/{row.name}"]
            assert benchmark_pairs.checksum(stored) == row.deformation_sha256
            # Of the benchmark's size: px of the grid, whose points lie 4 px apart.
            assert 0.3 < np.abs(stored / benchmark_pairs.STEPS).mean() < 1.2
    folds = read_folds().astype(str).set_index(["modality", "name"])
    known = folds.loc[list(zip(table["modality"], table["name"], strict=True))]
    assert list(known["fold"]) == list(table["fold"]) and list(known["group"]) == list(table["group"])


def test_a_spread_order_begins_in_the_middle_and_keeps_everything() -> None:
    assert benchmark_pairs._spread(list(range(8)))[:4] == [4, 2, 6, 1]
    for count in (1, 2, 5, 13):
        assert sorted(benchmark_pairs._spread(list(range(count)))) == list(range(count))


def test_a_table_of_unaligned_pairs(tmp_path: Path) -> None:
    image = np.full((64, 64), 0.5, np.float32)
    for folder in ("PET-MRI/MRI", "PET-MRI/PET", "PET-MRI/PET_label_RGB", "PET-MRI/PET_Y", "PET-MRI/PET_label",
                   "CT-MRI/MRI", "CT-MRI/CT", "CT-MRI/CT_label"):  # fmt: skip
        write_image(tmp_path / folder / "000.png", image)
    output = tmp_path / "pairs.csv"
    assert benchmark_pairs.main(["--unaligned", str(tmp_path), "--output", str(output)]) == 0
    pairs = read_pairs(output, tmp_path).set_index("modality")
    assert pairs.loc["PET", "label"] == tmp_path / "PET-MRI/PET_label_RGB/000.png"
    assert pairs.loc["PET", "grey_label"] == tmp_path / "PET-MRI/PET_label/000.png"
    assert pairs.loc["CT", "grey_moving"] == pairs.loc["CT", "moving"] == tmp_path / "CT-MRI/CT/000.png"
