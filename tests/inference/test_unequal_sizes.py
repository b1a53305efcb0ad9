"""Pairs whose images have two sizes, through the test command."""

import numpy as np
import pytest

from data.pairs import PairFiles, read_fitted
from tests.examples import picture, run_command
from tools.apply_flow import main as apply_flow
from utils.imaging.images import read_image, write_image


def test_a_moving_image_of_another_size_is_brought_to_the_fixed_ones_frame(checkpoint, tmp_path, capsys):
    sizes = {"fixed": (64, 80), "moving": (140, 150), "label": (64, 80)}
    options = ["--modality", "CT", "--save-flow"]
    for seed, (role, size) in enumerate(sizes.items()):
        write_image(tmp_path / role / "a.png", picture(seed, size))
        options += [f"--{role}", str(tmp_path / role)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert "found another for 1 moving image" in capsys.readouterr().err
    folder = tmp_path / "out/CT"
    assert read_image(folder / "fused/a.png").shape == (64, 80)
    assert np.load(folder / "flow/a.npy").shape == (2, 64, 80)
    # The flow that was saved brings the moving image, as it is in its file, to where the aligned one is.
    line = ["--images", str(tmp_path / "moving"), "--flow", str(folder / "flow"), "--output", str(tmp_path / "again")]
    assert apply_flow(line) == 0
    aligned, again = (read_image(path) for path in (folder / "aligned/a.png", tmp_path / "again/a.png"))
    assert again.shape == (64, 80) and np.abs(aligned - again)[3:-3, 3:-3].mean() < 0.02


def test_the_uptake_of_a_tracer_says_nothing_of_the_heads_scale(tmp_path):
    rows, columns = np.indices((256, 256), dtype=np.float32)
    distance = np.hypot(rows - 128, columns - 128)
    write_image(tmp_path / "fixed.png", np.where(distance < 100, 0.6, 0).astype(np.float32))
    write_image(tmp_path / "moving.png", np.where(distance < 50, 0.6, 0).astype(np.float32)[64:192, 64:192])
    pair = PairFiles("a", tmp_path / "fixed.png", tmp_path / "moving.png", fit=True)
    # 128 px are shown on 256 px in any case; as the extent of a head, 100 px of 256 would be made 200.
    assert read_fitted(pair, "PET")[1].scale == 0.5
    assert read_fitted(pair, "CT")[1].scale == pytest.approx(0.5, rel=0.1)
    write_image(tmp_path / "moving.png", np.where(distance < 25, 0.6, 0).astype(np.float32)[64:192, 64:192])
    assert read_fitted(pair, "PET")[1].scale == 0.5
    assert read_fitted(pair, "CT")[1].scale == pytest.approx(0.25, rel=0.1)
