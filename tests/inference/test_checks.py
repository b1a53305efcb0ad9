"""What is no error but is said: dark, blank, mirrored and doubtful images, results of an earlier run."""


import numpy as np
import pytest
from PIL import Image

from data.pairs import PairFiles, sample_pairs
from inference import checks
from inference.fused_pair import FusedPair
from inference.pair_fuser import PairFuser
from tests.examples import REPOSITORY, SHAPE, folders, picture, read_table, run_command
from utils.arguments import DEFAULT_CHECKPOINT
from utils.imaging.images import read_image, write_image


def test_images_that_hardly_use_their_range_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert "grey levels" not in capsys.readouterr().err
    for path in (tmp_path / "moving").iterdir():
        # A CT of 12 bits as programs write it: 16 bits, none above 4095.
        Image.fromarray((read_image(path) * 4095).astype(np.uint16)).save(path)
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "grey levels" in line)
    assert f"{tmp_path / 'moving/001.png'} and 1 more: expected" in line and "0.06" in line and "12 bits" in line


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_a_single_file_of_12_bits_is_named(checkpoint, tmp_path, capsys, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3, label=True)]
    path = tmp_path / role / "002.png"
    Image.fromarray((read_image(path) * 4095).astype(np.uint16)).save(path)
    # A slice with little in it has the right to be dark; in 8 bits there is nothing to stretch.
    write_image(tmp_path / role / "003.png", read_image(path))
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "grey levels" in line)
    assert f"{path}: expected" in line and "12 bits" in line


def test_dark_images_of_8_bits_are_not_taken_for_16(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    for path in (tmp_path / "moving").iterdir():
        write_image(path, read_image(path) / 20)
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "grey levels" in line)
    assert "CT, moving images: expected" in line and "0.05" in line and "bits" not in line


def test_a_slice_with_little_in_it_and_a_black_one_are_not_called_dark(tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        write_image(path, picture(0))
    for levels in ((0.05, 0.9), (0.0, 0.9), (0.0, 0.0)):
        checks.say_what_is_dark("CT", "moving", dict(zip(paths, levels, strict=True)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("sides", "longest"), [
    ([20, 26, 32, 26, 20], 0.5), ([20, 26, 32, 60, 20], 0.8), ([20, 26, 32, 26], None),
])  # fmt: skip
def test_five_images_of_one_size_are_shown_by_their_longest_head(tmp_path, sides, longest):
    pairs = []
    for number, side in enumerate(sides):
        image = np.zeros((64, 64), np.float32)
        image[2 : 2 + side, 20:40] = 0.7
        path = tmp_path / f"{number}.png"
        write_image(path, image)
        pairs.append(PairFiles(f"{number}", path, path))
    checked, unreadable = checks.check_pairs(pairs, "CT", keep_going=False)
    assert [pair.longest for pair in checked] == [longest] * len(sides) and unreadable == []


def test_heads_are_measured_in_the_shape_of_their_pixels(tmp_path):
    image = np.zeros((64, 64), np.float32)
    image[2:34, 20:36] = 0.7
    write_image(tmp_path / "head.png", image)
    path = tmp_path / "head.png"
    # Half of the frame's height; of a frame twice as high as wide that is 1 of a mean side of (2 + 1) / 2.
    for aspect, longest in ((1.0, 1 / 2), (2.0, 2 / 3)):
        pairs = [PairFiles(f"{number}", path, path, aspect=aspect) for number in range(5)]
        checked, _ = checks.check_pairs(pairs, "CT", keep_going=False)
        assert [pair.longest for pair in checked] == pytest.approx([longest] * 5)


def test_pairs_looked_at_for_exchanged_sides_are_spread_without_the_ends(checkpoint, tmp_path, monkeypatch):
    def together(self, pairs) -> list[FusedPair]:
        flow = np.zeros((2, *SHAPE), np.float32)
        return [FusedPair(pair["fixed"], pair["moving"], flow, {}, 0.1, 1.0) for pair in pairs]

    options = ["--modality", "CT", *folders(tmp_path, pairs=9), "--average"]
    looked_at = []
    monkeypatch.setattr(PairFuser, "together", together)
    monkeypatch.setattr("inference.scoring_pool.score_pair", lambda *_: {})
    look = "inference.mirror_check.MirrorCheck.look"
    monkeypatch.setattr(look, lambda self, fixed, *_, **__: looked_at.append(fixed))
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    # 1/6 ... 5/6 of the way from the first, 0, to the last, 8.
    expected = [read_image(tmp_path / f"fixed/{place + 1:03}.png") for place in (1, 3, 4, 5, 7)]
    assert len(looked_at) == 5 and all(np.array_equal(*both) for both in zip(looked_at, expected, strict=True))


def test_grey_labels_of_colour_images_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "PET", *folders(tmp_path, pairs=3, channels=3, label=True)]
    for name in ("001", "003"):
        write_image(tmp_path / "label" / f"{name}.png", read_image(tmp_path / "label" / f"{name}.png"))
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "rendering" in line)
    assert "PET: expected labels in colour" in line and "2 of 3 pairs" in line and "luma" in line
    # All in colour, all grey, or a colour label for a grey image: nothing to say.
    for pairs in (dict(channels=3, label=True), dict(label=True), dict(channels=3)):
        options = ["--modality", "PET", *folders(tmp_path / str(len(pairs)), pairs=1, **pairs)]
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        assert "rendering" not in capsys.readouterr().err


@pytest.mark.parametrize("flipped", [False, True])
def test_moving_images_that_seem_mirrored_are_named(tmp_path, capsys, flipped):
    (pair, *_), = sample_pairs("PET").values()
    moving = read_image(pair.moving, color=True)
    write_image(tmp_path / "moving.png", moving[:, ::-1] if flipped else moving)
    options = ["--modality", "PET", "--fixed", str(pair.fixed), "--moving", str(tmp_path / "moving.png")]
    assert run_command(DEFAULT_CHECKPOINT, tmp_path / "out", *options) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "mirrored" in line]
    assert len(said) == flipped
    assert not flipped or "PET: the moving images fit better mirrored left to right in 1 of 1 pairs" in said[0]


def test_images_of_an_earlier_run_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    for role in ("fixed", "moving"):
        (tmp_path / role / "002.png").unlink()
    capsys.readouterr()
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "earlier" in line)
    assert "1 result of an earlier run" in line and "002" in line and "001" not in line
    (tmp_path / "out/CT/fused.nii.gz").touch()
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert "2 results of an earlier run as well: 002, fused.nii.gz" in capsys.readouterr().err


def test_what_an_earlier_run_saved_of_a_pair_beside_its_images_is_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow", "--save-maps") == 0
    # What is finished has them from the same settings, what is made again has not.
    write_image(tmp_path / "moving/002.png", picture(77))
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume", "--save-maps") == 0
    assert "2 results of an earlier run as well: flow/002.npy, flow_inverse/002.npy" in capsys.readouterr().err
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert "20 results of an earlier run as well" in capsys.readouterr().err  # 8 of maps and two flows of each
    assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow", "--save-maps") == 0
    assert "earlier run" not in capsys.readouterr().err


def test_pairs_in_doubt_are_named(tmp_path, capsys):
    for role in ("fixed", "moving"):
        image = read_image(REPOSITORY / "data/sample/CT" / role / "simulated_090.png")
        write_image(tmp_path / role / "right.png", image)
        write_image(tmp_path / role / "upside_down.png", image[::-1] if role == "moving" else image)
    options = ["--modality", "CT", "--fixed", str(tmp_path / "fixed"), "--moving", str(tmp_path / "moving")]
    weights = DEFAULT_CHECKPOINT
    assert run_command(weights, tmp_path / "out", *options) == 0
    assert "CT: look closely at upside_down: disagreement above 1 px" in capsys.readouterr().out
    assert run_command(weights, tmp_path / "single", *options, "--no-average") == 0
    assert "look closely" not in capsys.readouterr().out


def test_slices_without_anything_are_named_and_left_as_they_are(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=2)
    write_image(tmp_path / "moving/001.png", np.zeros(SHAPE))
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", "--average", "--save-flow", *options) == 0
    assert "CT: 1 pair with a blank image: not aligned, but counted in the means" in capsys.readouterr().err
    fused = read_image(tmp_path / "out/CT/fused/001.png")
    assert np.array_equal(fused, read_image(tmp_path / "fixed/001.png"))
    rows = read_table(tmp_path / "out/CT/metrics.csv").set_index("name")
    assert np.isnan(rows.loc["001", "disagreement"]) and rows.loc["002", "disagreement"] > 0
    assert not np.load(tmp_path / "out/CT/flow/001.npy").any() and np.load(tmp_path / "out/CT/flow/002.npy").any()


@pytest.mark.parametrize(("channels", "modality"), [(1, "CT"), (3, "PET")])
def test_the_same_image_on_both_sides_is_named(tmp_path, caplog, channels, modality):
    write_image(tmp_path / "mri.png", picture(1))
    write_image(tmp_path / "copy.png", np.dstack([picture(1)] * 3) if channels == 3 else picture(1))
    write_image(tmp_path / "other.png", picture(2, channels=channels))
    pairs = [PairFiles(name, tmp_path / "mri.png", tmp_path / f"{name}.png") for name in ("copy", "other")]
    checks.check_pairs(pairs, modality, keep_going=False)
    assert f"{modality}: expected images of two modalities, found the same image twice in 1 pair" in caplog.messages
