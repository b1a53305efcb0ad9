"""inference/modality.py: what the moving images are, where no option says so."""

import numpy as np
import pytest

from inference.modality import guess_of_volume
from tests.examples import folders, picture, run_command
from utils.imaging.images import write_image
from utils.imaging.volumes import Volume


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "--modality" in line]


@pytest.mark.parametrize(("channels", "modality"), [(1, "CT"), (3, "PET")])
def test_color_tells_the_modality_of_images_and_an_option_overrules_it(
    checkpoint, tmp_path, capsys, channels, modality
):
    options = folders(tmp_path, pairs=1, channels=channels)
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = said(capsys)
    assert f"not given, taken for {modality}" in line
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [modality]
    assert run_command(checkpoint, tmp_path / "told", *options, "--modality", "SPECT") == 0
    assert said(capsys) == [] and (tmp_path / "told/SPECT").is_dir()


def test_images_in_colour_among_grey_ones_are_worth_a_question(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=2)
    write_image(tmp_path / "moving/002.png", picture(1, channels=3))
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = said(capsys)
    assert "taken for PET, as of 2 moving images looked at 1 are in colour: are all of one modality?" in line


def test_nothing_is_guessed_where_no_pair_is_complete(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=1)
    (tmp_path / "moving/001.png").rename(tmp_path / "moving/002.png")
    assert run_command(checkpoint, tmp_path / "out", *options, "--keep-going") == 2
    assert said(capsys) == []


def test_a_table_that_does_not_say_is_guessed_as_well(checkpoint, tmp_path, capsys):
    folders(tmp_path, pairs=1, channels=3)
    (tmp_path / "pairs.csv").write_text("fixed,moving\nfixed/001.png,moving/001.png\n")
    assert run_command(checkpoint, tmp_path / "out", "--csv", str(tmp_path / "pairs.csv")) == 0
    assert len(said(capsys)) == 1 and (tmp_path / "out/PET").is_dir()


@pytest.mark.parametrize(("header", "units", "low", "modality"), [
    ("CT", "HU", -1000, "CT"), ("PT", "BQML", 0, "PET"), ("NM", "", 0, "SPECT"), ("", "HU", 0, "CT"),
    ("", "", -1000, "CT"), ("", "", 0, "PET"), ("", "BQML", -1000, "PET"),
])  # fmt: skip
def test_header_or_values_tell_the_modality_of_a_volume(header, units, low, modality):
    values = np.full((2, 64, 64), low, np.float32)
    values[:, 20:40, 20:40] = 1000
    assert guess_of_volume(Volume(values, np.eye(4), header, units)) == modality
