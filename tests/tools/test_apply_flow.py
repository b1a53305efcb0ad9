"""Carrying images along with saved flows."""

import os

import cv2
import numpy as np
import pandas as pd
import pytest

from inference.results.folder import ResultFolder
from tools.apply_flow import main, modality_of_flows
from utils.geometry.fit import Fit
from utils.geometry.warp import apply_flow
from utils.imaging.flows import save_flow
from utils.imaging.images import read_image, write_image
from utils.imaging.label_maps import read_label_map, write_label_map

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 3)])
def test_a_shift_by_hand(shape):
    image = RNG.random(shape, dtype=np.float32)
    flow = np.zeros((2, 70, 90), np.float32)
    flow[0] = 3
    warped = apply_flow(image, flow)
    assert warped.shape == shape
    np.testing.assert_allclose(warped[:, :-3], image[:, 3:], atol=1e-5)


@pytest.fixture
def image():
    return RNG.integers(0, 256, (64, 80), dtype=np.uint8).astype(np.float32) / 255


@pytest.fixture
def line(tmp_path, image):
    """Options for two images, the first of which has a flow."""
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png", image)
    (tmp_path / "flow").mkdir()
    np.save(tmp_path / "flow" / "a.npy", np.zeros((2, 64, 80), np.float32))
    return ["--images", f"{tmp_path}/images", "--flow", f"{tmp_path}/flow", "--output", f"{tmp_path}/out"]


def test_folder(tmp_path, image, line, capsys):
    assert main(line) == 0
    said = capsys.readouterr()
    assert said.out == f"Wrote 1 image to {tmp_path}/out\n"
    assert said.err == "python -m tools.apply_flow: left out 1 image without a flow: b\n"
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a.png"), image)
    np.save(tmp_path / "flow" / "b.npy", np.zeros((2, 64, 80), np.float32))
    assert main(line) == 0
    assert capsys.readouterr() == (f"Wrote 2 images to {tmp_path}/out\n", "")
    for flow in (tmp_path / "flow").iterdir():
        flow.unlink()
    assert main(line) == 2
    assert "expected flows named like the images" in capsys.readouterr().err


def test_colour_stays_colour_and_grey_grey(tmp_path, image, line):
    colour = RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    write_image(tmp_path / "images" / "a.png", colour)
    np.save(tmp_path / "flow" / "b.npy", np.zeros((2, 64, 80), np.float32))
    assert main(line) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a.png", color=None), np.float32(colour) / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "b.png", color=None), image)


@pytest.mark.parametrize("output", [
    "images", "flow/../images",
    pytest.param("link", marks=pytest.mark.skipif(os.name == "nt", reason="links need rights there")),
])  # fmt: skip
def test_images_are_not_written_over(tmp_path, line, capsys, output):
    if output == "link":
        (tmp_path / "link").symlink_to(tmp_path / "images", target_is_directory=True)
    # Written again they would have the same bytes: the flow is zero.
    before = {path: path.stat().st_ino for path in (tmp_path / "images").iterdir()}
    assert main([*line[:-1], f"{tmp_path}/{output}"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/images/a.png: expected" in message and "found" in message
    assert before == {path: path.stat().st_ino for path in (tmp_path / "images").iterdir()}


def test_names_pair_in_whatever_form_of_unicode(tmp_path, image, line):
    apart, whole = "Rene\u0301", "Ren\u00e9"
    write_image(tmp_path / "images" / f"{apart}.png", image)
    np.save(tmp_path / "flow" / f"{whole}.npy", np.zeros((2, 64, 80), np.float32))
    assert main(line) == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"a", apart}


@pytest.mark.parametrize("folder", ["CT", "CT/moving", "CT-MRI/CT", "ct_images"])
def test_flows_of_another_modality_are_refused(tmp_path, image, capsys, folder):
    write_image(tmp_path / "data" / folder / "a.png", image)
    line = ["--images", f"{tmp_path}/data/{folder}", "--output", f"{tmp_path}/out"]
    for results in ("PET", "named_otherwise"):
        (tmp_path / results / "flow").mkdir(parents=True)
        np.save(tmp_path / results / "flow" / "a.npy", np.zeros((2, 64, 80), np.float32))
    (tmp_path / "named_otherwise/settings.json").write_text('{"modality": "PET"}')
    for results in ("PET", "named_otherwise"):
        options = [*line, "--flow", f"{tmp_path}/{results}/flow"]
        assert main(options) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert "expected PET images" in message and "found CT images" in message and not (tmp_path / "out").exists()
    assert main([*options, "--modality", "PET"]) == 0
    assert main([*options, "--modality", "spect"]) == 2
    assert "found SPECT images" in capsys.readouterr().err
    (tmp_path / "named_otherwise/settings.json").write_text('{"modality": "CT"}')
    assert main(options) == 0


def test_images_that_nothing_names_are_said_to_be_taken_for_those_of_the_flows(tmp_path, image, caplog, capsys):
    write_image(tmp_path / "images" / "a.png", image)
    (tmp_path / "PET/flow").mkdir(parents=True)
    np.save(tmp_path / "PET/flow" / "a.npy", np.zeros((2, 64, 80), np.float32))
    line = ["--images", f"{tmp_path}/images", "--output", f"{tmp_path}/out", "--flow", f"{tmp_path}/PET/flow"]
    assert main(line) == 0
    assert "images: taken for PET images, as the flows are" in caplog.text
    assert main([*line, "--flow", f"{tmp_path}/PET/none"]) == 2
    assert "none: expected displacement fields, a folder or one file, found nothing there" in capsys.readouterr().err


def test_the_test_command_writes_down_what_its_flows_are_of(tmp_path):
    ResultFolder(tmp_path / "run", "SPECT", {"passes": 2}).write_rows([])
    assert modality_of_flows(tmp_path / "run/flow") == "SPECT"
    assert modality_of_flows(tmp_path / "elsewhere/flow") is None


def test_a_flow_for_images_of_another_size_is_applied_to_them_and_one_for_others_is_refused(tmp_path, image, line):
    # The moving image was twice as wide and high as the fixed one.
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    write_image(tmp_path / "images" / "a.png", large)
    still = Fit(2.0, 0.5, 0.5).to_original(np.zeros((2, 64, 80), np.float32))
    np.save(tmp_path / "flow" / "a.npy", still)
    assert main(line) == 0
    actual = read_image(tmp_path / "out" / "a.png")
    assert actual.shape == image.shape and np.corrcoef(actual.ravel(), image.ravel())[0, 1] > 0.7  # of white noise
    np.save(tmp_path / "flow" / "a.npy", np.zeros((2, 64, 80), np.float32))
    assert main(line) == 2


@pytest.mark.parametrize("stump", ["images/b.png", "flow/b.npy"])
def test_a_link_to_nothing_is_named_before_anything_is_written(tmp_path, image, line, capsys, stump):
    np.save(tmp_path / "flow" / "b.npy", np.zeros((2, 64, 80), np.float32))
    (tmp_path / stump).unlink()
    (tmp_path / stump).symlink_to("gone")
    assert main(line) == 2
    assert f"{stump}: expected a file with its content, found a link to nothing (gone)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def shifted(tmp_path, suffix=".npy"):
    """Write a flow of 3 px to the right for the name a, and return its folder."""
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0] = 3
    save_flow(tmp_path / "shift" / f"a{suffix}", flow)
    return str(tmp_path / "shift")


@pytest.mark.parametrize("suffix", [".npy", ".mha", ".nii.gz"])
def test_fields_of_all_formats_are_applied(tmp_path, image, line, suffix):
    assert main([*line[:2], "--flow", shifted(tmp_path, suffix), "--output", f"{tmp_path}/out"]) == 0
    np.testing.assert_allclose(read_image(tmp_path / "out/a.png")[:, :-3], image[:, 3:], atol=1e-5)


def test_labels_are_carried_unmixed_and_not_as_images(tmp_path, capsys):
    labels = np.zeros((64, 80), np.int32)
    labels[20:40, 20:40], labels[20:40, 40:60] = 300, 7
    write_label_map(tmp_path / "labels/a.png", labels)
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0], flow[1] = 2.6, 0.4
    save_flow(tmp_path / "flow/a.npy", flow)
    line = ["--images", f"{tmp_path}/labels", "--flow", f"{tmp_path}/flow", "--output", f"{tmp_path}/out"]
    assert main(line) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "labels/a.png: expected" in message and "--labels" in message and "3 levels" in message
    assert not (tmp_path / "out").exists()
    assert main([*line, "--labels"]) == 0
    np.testing.assert_array_equal(read_label_map(tmp_path / "out/a.png")[:, :-3], labels[:, 3:])


def test_landmarks_go_forth_and_back(tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points/a.csv").write_text("name,x,y\nnose,10,20\near,30.5,40\n")
    flow = ["--flow", shifted(tmp_path)]
    assert main(["--points", f"{tmp_path}/points", *flow, "--output", f"{tmp_path}/forth"]) == 0
    forth = pd.read_csv(tmp_path / "forth/a.csv")
    assert list(forth["name"]) == ["nose", "ear"]
    np.testing.assert_allclose(forth[["x", "y"]], [[13, 20], [33.5, 40]])
    back = ["--points", f"{tmp_path}/forth/a.csv", "--inverse", "--output", f"{tmp_path}/back"]
    assert main([*back, *flow]) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "back/a.csv")[["x", "y"]], [[10, 20], [30.5, 40]], atol=1e-3)


@pytest.mark.parametrize("case", ["beside the image", "no column", "written over", "labels with points"])
def test_bad_landmarks(tmp_path, capsys, case):
    (tmp_path / "points").mkdir()
    table = {"beside the image": "x,y\n10,20\n100,20\n", "no column": "x,z\n1,2\n"}.get(case, "x,y\n10,20\n")
    (tmp_path / "points/a.csv").write_text(table)
    output = tmp_path / ("points" if case == "written over" else "out")
    line = ["--points", f"{tmp_path}/points", "--flow", shifted(tmp_path), "--output", str(output)]
    try:
        code = main([*line, *["--labels"] * (case == "labels with points")])
    except SystemExit as exit_:
        code = exit_.code
    (message,) = capsys.readouterr().err.splitlines()
    assert code == 2 and "expected" in message and "found" in message
    assert (tmp_path / "points/a.csv").read_text() == table and not (tmp_path / "out").exists()
