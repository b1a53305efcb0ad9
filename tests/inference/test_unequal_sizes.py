"""Pairs whose images have two sizes, through the test command."""

from dataclasses import replace

import numpy as np
import pytest

from data.pairs import PairFiles, read_fitted, read_true_flow
from tests.examples import picture, run_command
from tools.apply_flow import main as apply_flow
from utils.files import FileError
from utils.geometry.fit import Fit
from utils.imaging.images import ImageError, read_image, write_image


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


def head(radius: float, middle: tuple[float, float] = (128, 128), size: int = 256) -> np.ndarray:
    """A head with a dark and a bright spot."""
    rows, columns = np.indices((size, size), dtype=np.float32)
    y, x = (rows - middle[0]) / radius, (columns - middle[1]) / radius
    image = np.where(np.hypot(x, y) < 1, 0.5, 0).astype(np.float32)
    image[np.hypot(x - 0.4, y) < 0.2] = 0.9
    image[np.hypot(x, y + 0.5) < 0.15] = 0.2
    return image


@pytest.mark.parametrize(("modality", "radius", "fitted"), [("CT", 40, True), ("CT", 80, False), ("PET", 40, False)])
def test_of_one_size_a_ct_with_a_far_smaller_head_is_brought_to_the_mris_scale(tmp_path, modality, radius, fitted):
    write_image(tmp_path / "fixed.png", head(100))
    write_image(tmp_path / "moving.png", head(radius, (100, 140)))
    images, fit = read_fitted(PairFiles("a", tmp_path / "fixed.png", tmp_path / "moving.png", fit=True), modality)
    assert (fit is not None) == fitted
    assert read_fitted(PairFiles("a", tmp_path / "fixed.png", tmp_path / "moving.png"), modality)[1] is None
    if fitted:
        assert fit.scale == pytest.approx(radius / 100, rel=0.05)
        assert np.corrcoef(images.moving.ravel(), head(100).ravel())[0, 1] > 0.95


def test_a_far_smaller_head_is_named_in_one_line_and_left_on_request(checkpoint, tmp_path, capsys):
    write_image(tmp_path / "fixed.png", head(100))
    write_image(tmp_path / "moving.png", head(40))
    options = ["--modality", "CT", "--fixed", f"{tmp_path}/fixed.png", "--moving", f"{tmp_path}/moving.png"]
    for more, lines in (([], 1), (["--fit", "none"], 0)):
        assert run_command(checkpoint, tmp_path / "out", *options, "--passes", "0", *more) == 0
        assert capsys.readouterr().err.count("expected heads of about one size, found 1 moving image") == lines


def test_a_label_goes_the_same_way_as_the_moving_image(tmp_path):
    write_image(tmp_path / "fixed.png", head(100))
    for role in ("moving", "label"):
        write_image(tmp_path / f"{role}.png", head(150, (200, 260), 512))
    pair = PairFiles("a", *(tmp_path / f"{role}.png" for role in ("fixed", "moving", "label")), fit=True)
    images, _ = read_fitted(pair, "CT")
    np.testing.assert_array_equal(images.label, images.moving)
    write_image(tmp_path / "label.png", head(100)[:, :200])
    with pytest.raises(ImageError, match=r"label.png: expected the size of .*fixed.png, 256 x 256"):
        read_fitted(pair, "CT")


def test_a_true_flow_goes_the_same_way_as_the_moving_image(tmp_path):
    write_image(tmp_path / "fixed.png", head(100))
    write_image(tmp_path / "moving.png", head(200, (256, 256), 512))
    np.save(tmp_path / "own.npy", np.full((2, 512, 512), 6, np.float32))  # px of the moving image, on its own grid
    fit = Fit(2.0, 0.5, 0.5)
    np.save(tmp_path / "fixed.npy", fit.to_original(np.full((2, 256, 256), 3, np.float32)))  # on the fixed image's
    for name in ("own", "fixed"):
        pair = PairFiles("a", tmp_path / "fixed.png", tmp_path / "moving.png", flow=tmp_path / f"{name}.npy", fit=True)
        np.testing.assert_allclose(read_true_flow(pair, (256, 256), fit), 3, atol=1e-3)
    np.save(tmp_path / "own.npy", np.zeros((2, 300, 300), np.float32))
    with pytest.raises(FileError, match="own.npy: expected a flow of shape"):
        read_true_flow(replace(pair, flow=tmp_path / "own.npy"), (256, 256), fit)
