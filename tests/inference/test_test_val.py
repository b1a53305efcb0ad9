"""The test command keeps its contract: files, columns, colour, bad input, interruption, resumption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from kornia.color import rgb_to_ycbcr
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

import EDARFusion_test_val as script
from data.pairs import PairFiles, is_blank, sample_pairs
from evaluation.figures import MAPS
from evaluation.metrics import fusion_metrics, registration_metrics
from evaluation.scoring import read_grey
from inference import checks, volume_checks
from inference.pair_fuser import PairFuser, endpoint_scores
from inference.result_folder import COLUMNS, FUSION_METRICS, FusedPair, ResultFolder
from inference.scoring_pool import scored
from inference.volume_pair import read_volumes
from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tools.publish import publish
from utils import processes
from utils.arguments import DEFAULT_CHECKPOINT
from utils.files import FileError, check_inputs_stay, write_bytes
from utils.geometry.warp import warp
from utils.imaging import images
from utils.imaging.images import read_image, write_image
from utils.imaging.volumes import looks_like_hu, robust_window
from utils.maps import jacobian_determinant
from utils.signals import INTERRUPTED

REPOSITORY = Path(script.__file__).parent
SHAPE = (64, 80)


@pytest.fixture(scope="module")
def model() -> EDARFusion:
    torch.manual_seed(0)
    model = EDARFusion("tiny").eval()
    torch.nn.init.normal_(model.fusion.head.weight, std=0.01)  # zero is the mark of a fusion without training
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, model, modality="all", training={"note": "untrained, for tests"}, metrics={})
    return path


def picture(seed: int, shape: tuple[int, int] = SHAPE, channels: int = 1) -> np.ndarray:
    """A smooth random image in [0, 1]."""
    noise = np.random.default_rng(seed).random((*shape, channels)).astype(np.float32)
    smooth = gaussian_filter(noise, (3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth)).squeeze()


def folders(root: Path, *, pairs: int = 2, shape: tuple[int, int] = SHAPE, channels: int = 1, label: bool = False):
    """Options that name folders of pairs called 001, 002, ..."""
    options = []
    for offset, role in enumerate(("fixed", "moving", "label")[: 2 + label]):
        for number in range(pairs):
            image = picture(10 * number + offset, shape, 1 if role == "fixed" else channels)
            write_image(root / role / f"{number + 1:03}.png", image)
        options += [f"--{role}", str(root / role)]
    return options


def run(checkpoint: Path, output: Path, *options: str) -> int:
    return script.main(["--checkpoint", str(checkpoint), "--output", str(output), "--workers", "1", *options])


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"name": str})


def pull(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The image sampled at p + flow(p) by scipy, grey levels."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    channels = [
        map_coordinates(channel, (rows + flow[1], columns + flow[0]), order=1, mode="nearest")
        for channel in np.moveaxis(np.atleast_3d(image), 2, 0)
    ]
    return np.stack(channels, axis=2).squeeze() * 255


@pytest.fixture(scope="module")
def sample_run(checkpoint, tmp_path_factory) -> Path:
    """The embedded sample's results, two processes scoring."""
    output = tmp_path_factory.mktemp("sample")
    assert run(checkpoint, output, "--save-flow", "--workers", "2") == 0
    return output


@pytest.mark.parametrize("modality", ["CT", "PET", "SPECT"])
def test_embedded_sample(sample_run, modality):
    folder = sample_run / modality
    table = read_table(folder / "metrics.csv")
    assert list(table.columns) == [*COLUMNS, "epe", "epe_before"]
    assert len(table) == 4 and table["name"].iloc[-1] == "mean"
    names = table["name"].iloc[:-1]
    assert (table["reference"].iloc[:-1] == "label").all()
    assert table.drop(columns="reference").notna().all(axis=None)
    assert table["rmse"].iloc[-1] == pytest.approx(table["rmse"].iloc[:-1].mean())
    assert table["epe_before"].between(2, 6).all()
    assert sorted(p.name for p in folder.iterdir()) == [
        "aligned", "flow", "fused", "inputs.json", "metrics.csv", "report.html", "settings.json",
    ]  # fmt: skip
    for kind in ("fused", "aligned"):
        assert [p.stem for p in sorted((folder / kind).iterdir())] == list(names)
    assert all(name in (folder / "report.html").read_text() for name in names)


def test_engine_changes_nothing_but_the_time(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1, label=True)]
    tables = []
    for engine in ("torch", "openvino"):
        assert run(checkpoint, tmp_path / engine, *options, "--engine", engine) == 0
        assert engine in (tmp_path / engine / "CT/report.html").read_text()
        tables.append(read_table(tmp_path / engine / "CT/metrics.csv").drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-3)


@pytest.mark.parametrize("modality", ["CT", "PET", "SPECT"])
def test_saved_flow_makes_the_saved_aligned_image(sample_run, modality):
    paths = list((sample_run / modality / "flow").iterdir())
    assert len(paths) == 3
    for path in paths:
        flow = np.load(path, allow_pickle=False)
        assert flow.dtype == np.float32 and flow.shape == (2, 256, 256) and np.abs(flow).max() > 0.5
        color = modality != "CT"
        moving = read_image(REPOSITORY / f"data/sample/{modality}/moving/{path.stem}.png", color=color)
        aligned = read_image(sample_run / modality / "aligned" / f"{path.stem}.png", color=color) * 255
        assert np.abs(pull(moving, flow) - aligned).max() <= 1


def test_scores_are_those_of_the_saved_images(sample_run):
    table, sample = read_table(sample_run / "PET/metrics.csv"), REPOSITORY / "data/sample/PET"
    row = table.iloc[0]
    files = {role: sample / role / f"{row['name']}.png" for role in ("fixed", "moving", "label")}
    files |= {role: sample_run / "PET" / role / f"{row['name']}.png" for role in ("aligned", "fused")}
    images = {role: read_grey(path) for role, path in files.items()}
    expected = fusion_metrics(images["fixed"], images["label"], images["fused"])
    for when, image in (("", images["aligned"]), ("_before", images["moving"])):
        scores = registration_metrics(image, images["label"])
        expected |= {f"{metric}{when}": scores[metric] for metric in ("rmse", "ssim", "ncc")}
    flow = torch.from_numpy(np.load(sample_run / "PET/flow" / f"{row['name']}.npy"))[None]
    expected["folding"] = float((jacobian_determinant(flow) <= 0).float().mean())
    assert {name: row[name] for name in expected if name in COLUMNS} == pytest.approx(
        {name: value for name, value in expected.items() if name in COLUMNS}, abs=1e-9, rel=1e-6
    )


@pytest.mark.parametrize("average", ["--average", "--no-average"])
def test_any_size(checkpoint, tmp_path, average):
    options = folders(tmp_path, pairs=1, shape=(200, 312))
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--save-flow", average) == 0
    flow, moving = np.load(tmp_path / "out/CT/flow/001.npy"), read_image(tmp_path / "moving/001.png")
    assert flow.shape == (2, 200, 312) and np.abs(flow).max() > 0.5
    assert np.abs(pull(moving, flow) - read_image(tmp_path / "out/CT/aligned/001.png") * 255).max() <= 1


def test_without_labels_columns_of_the_truth_are_empty(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path)) == 0
    table = read_table(tmp_path / "out/CT/metrics.csv")
    assert list(table.columns) == list(COLUMNS) and list(table["name"]) == ["001", "002", "mean"]
    truth = ["rmse", "ssim", "ncc", "rmse_before", "ssim_before", "ncc_before"]
    assert table[truth].isna().all(axis=None)
    assert table.drop(columns=[*truth, "reference"]).notna().all(axis=None)
    assert list(table["reference"].iloc[:2]) == ["aligned", "aligned"]


def test_table_of_pairs_with_and_without_labels(checkpoint, tmp_path):
    folders(tmp_path, pairs=3, label=True)
    rows = [
        ("fixed/001.png", "moving/001.png", "label/001.png", "CT", "val"),
        ("fixed/002.png", "moving/002.png", "label/002.png", "PET", "val"),
        ("fixed/003.png", "moving/003.png", "label/003.png", "CT", "train"),
    ]
    table = pd.DataFrame(rows, columns=["fixed", "moving", "label", "modality", "split"])
    table.to_csv(tmp_path / "all.csv", index=False)
    table[["fixed", "moving"]].to_csv(tmp_path / "bare.csv", index=False)
    assert run(checkpoint, tmp_path / "out", "--csv", str(tmp_path / "all.csv"), "--split", "val") == 0
    for modality, name in (("CT", "001"), ("PET", "002")):
        scores = read_table(tmp_path / "out" / modality / "metrics.csv")
        assert list(scores["name"]) == [name, "mean"] and scores["rmse"].notna().all()
    options = ("--csv", str(tmp_path / "bare.csv"), "--root", str(tmp_path), "--modality", "SPECT")
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert len(read_table(tmp_path / "out/SPECT/metrics.csv")) == 4


def test_a_checkpoint_of_one_modality_takes_tables_of_it(model, tmp_path, capsys):
    path = tmp_path / "ct.safetensors"
    save_checkpoint(path, model, modality="CT", training={"note": "untrained"}, metrics={})
    folders(tmp_path)
    rows = [f"fixed/{name}.png,moving/{name}.png" for name in ("001", "002")]
    (tmp_path / "ct.csv").write_text(f"fixed,moving,modality\n{rows[0]},CT\n{rows[1]},CT\n")
    (tmp_path / "both.csv").write_text(f"fixed,moving,modality\n{rows[0]},CT\n{rows[1]},PET\n")
    assert run(path, tmp_path / "out", "--csv", str(tmp_path / "ct.csv")) == 0
    assert run(path, tmp_path / "both", "--csv", str(tmp_path / "both.csv")) == 2
    assert f"{path}: expected a checkpoint for all, found one for CT" in capsys.readouterr().err


def with_flows(root: Path, pairs: int = 2) -> Path:
    """A table of the pairs of `folders` with true flows: of pair n, n px to the right."""
    (root / "flow").mkdir()
    for number in range(1, pairs + 1):
        np.save(root / f"flow/{number:03}.npy", np.stack((np.full(SHAPE, number), np.zeros(SHAPE))))
    names = [f"{number:03}" for number in range(1, pairs + 1)]
    table = {role: [f"{role}/{name}.png" for name in names] for role in ("fixed", "moving", "label")}
    table |= {"flow": [f"flow/{name}.npy" for name in names], "modality": "CT"}
    pd.DataFrame(table).to_csv(root / "pairs.csv", index=False)
    return root / "pairs.csv"


def test_true_flows_give_the_endpoint_error(checkpoint, tmp_path):
    folders(tmp_path, label=True)
    options = ["--csv", str(with_flows(tmp_path)), "--save-flow"]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    scores = read_table(tmp_path / "out/CT/metrics.csv")
    assert scores["epe_before"].to_list() == pytest.approx([1, 2, 1.5])
    for number, found in enumerate(scores["epe"].iloc[:2], 1):
        flow = np.load(tmp_path / f"out/CT/flow/{number:03}.npy")
        # The pictures are bright nearly everywhere, so nearly every place counts.
        assert found == pytest.approx(np.hypot(flow[0] - number, flow[1]).mean(), rel=0.1)
    assert "EPE" in (tmp_path / "out/CT/report.html").read_text()


def test_endpoint_errors_are_those_in_and_near_tissue():
    label, truth = np.zeros((64, 96), np.float32), np.zeros((2, 64, 96), np.float32)
    label[:, :32] = 0.5
    truth[0, :, :40], truth[0, :, 40:] = 3, 50  # tissue and 8 px more, and the rest
    scores = endpoint_scores(truth + np.where(truth[:1] == 3, 4, 50).astype(np.float32), truth, label)
    assert scores == pytest.approx({"epe": np.hypot(4, 4), "epe_before": 3}, rel=1e-6)


@pytest.mark.parametrize(("levels", "blank"), [(0, True), (3, True), (5, False)])
def test_an_image_within_four_grey_levels_shows_nothing(levels, blank):
    image = np.full(SHAPE, 0.5, np.float32)
    image[10, 10] += levels / 255
    assert is_blank(image) == blank


def test_the_endpoint_error_of_a_label_without_tissue_is_that_of_the_whole_image(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=1, label=True)
    write_image(tmp_path / "label/001.png", np.zeros(SHAPE, np.float32))
    np.save(tmp_path / "flow.npy", np.full((2, *SHAPE), 3.0, np.float32))
    row = "fixed/001.png,moving/001.png,label/001.png,flow.npy"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving,label,flow\n{row}\n")
    assert options and run(checkpoint, tmp_path / "out", "--modality", "CT", "--csv", str(tmp_path / "pairs.csv")) == 0
    table = read_table(tmp_path / "out/CT/metrics.csv")
    assert table.loc[0, "epe_before"] == pytest.approx(np.hypot(3, 3), rel=1e-5)
    assert table["epe"].notna().all()


def test_names_of_the_table(checkpoint, tmp_path, capsys):
    folders(tmp_path, pairs=2)
    for patient, number in (("a", 1), ("b", 2)):
        for role in ("fixed", "moving"):
            (tmp_path / patient / role).mkdir(parents=True)
            shutil.move(tmp_path / role / f"{number:03}.png", tmp_path / patient / role / "slice.png")
    rows = [f"{patient}/fixed/slice.png,{patient}/moving/slice.png" for patient in "ab"]
    path = tmp_path / "pairs.csv"
    path.write_text("fixed,moving\n" + "\n".join(rows))
    options = ["--modality", "CT", "--csv", str(path)]
    assert run(checkpoint, tmp_path / "out", *options) == 2
    assert "column name" in capsys.readouterr().err
    path.write_text("fixed,moving,name\n" + "\n".join(f"{row},{name}" for row, name in zip(rows, "ab", strict=True)))
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert sorted(p.name for p in (tmp_path / "out/CT/fused").iterdir()) == ["a.png", "b.png"]


def test_images_that_hardly_use_their_range_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert "grey levels" not in capsys.readouterr().err
    for path in (tmp_path / "moving").iterdir():
        # A CT of 12 bits as programs write it: 16 bits, none above 4095.
        Image.fromarray((read_image(path) * 4095).astype(np.uint16)).save(path)
    assert run(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "grey levels" in line)
    assert f"{tmp_path / 'moving/001.png'} and 1 more: expected" in line and "0.06" in line and "12 bits" in line


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_a_single_file_of_12_bits_is_named(checkpoint, tmp_path, capsys, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3, label=True)]
    path = tmp_path / role / "002.png"
    Image.fromarray((read_image(path) * 4095).astype(np.uint16)).save(path)
    # A slice with little in it has the right to be dark; in 8 bits there is nothing to stretch.
    write_image(tmp_path / role / "003.png", read_image(path))
    assert run(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "grey levels" in line)
    assert f"{path}: expected" in line and "12 bits" in line


def test_dark_images_of_8_bits_are_not_taken_for_16(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    for path in (tmp_path / "moving").iterdir():
        write_image(path, read_image(path) / 20)
    assert run(checkpoint, tmp_path / "out", *options) == 0
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
    def fuse(self, fixed, moving, **_) -> FusedPair:
        return FusedPair(fixed, moving, np.zeros((2, *SHAPE), np.float32), {}, 0.1, 1.0)

    options = ["--modality", "CT", *folders(tmp_path, pairs=9), "--average"]
    looked_at = []
    monkeypatch.setattr(PairFuser, "__call__", fuse)
    monkeypatch.setattr("inference.scoring_pool.score_pair", lambda _: {})
    look = "inference.mirror_check.MirrorCheck.look"
    monkeypatch.setattr(look, lambda self, fixed, *_, **__: looked_at.append(fixed))
    assert run(checkpoint, tmp_path / "out", *options) == 0
    # 1/6 ... 5/6 of the way from the first, 0, to the last, 8.
    expected = [read_image(tmp_path / f"fixed/{place + 1:03}.png") for place in (1, 3, 4, 5, 7)]
    assert len(looked_at) == 5 and all(np.array_equal(*both) for both in zip(looked_at, expected, strict=True))


def test_grey_labels_of_colour_images_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "PET", *folders(tmp_path, pairs=3, channels=3, label=True)]
    for name in ("001", "003"):
        write_image(tmp_path / "label" / f"{name}.png", read_image(tmp_path / "label" / f"{name}.png"))
    assert run(checkpoint, tmp_path / "out", *options) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "rendering" in line)
    assert "PET: expected labels in colour" in line and "2 of 3 pairs" in line and "luma" in line
    # All in colour, all grey, or a colour label for a grey image: nothing to say.
    for pairs in (dict(channels=3, label=True), dict(label=True), dict(channels=3)):
        options = ["--modality", "PET", *folders(tmp_path / str(len(pairs)), pairs=1, **pairs)]
        assert run(checkpoint, tmp_path / "out", *options) == 0
        assert "rendering" not in capsys.readouterr().err


@pytest.mark.parametrize("flipped", [False, True])
def test_moving_images_that_seem_mirrored_are_named(tmp_path, capsys, flipped):
    (pair, *_), = sample_pairs("PET").values()
    moving = read_image(pair.moving, color=True)
    write_image(tmp_path / "moving.png", moving[:, ::-1] if flipped else moving)
    options = ["--modality", "PET", "--fixed", str(pair.fixed), "--moving", str(tmp_path / "moving.png")]
    assert run(DEFAULT_CHECKPOINT, tmp_path / "out", *options) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "mirrored" in line]
    assert len(said) == flipped
    assert not flipped or "PET: the moving images fit better mirrored left to right in 1 of 1 pairs" in said[0]


def test_images_of_an_earlier_run_are_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    for role in ("fixed", "moving"):
        (tmp_path / role / "002.png").unlink()
    capsys.readouterr()
    assert run(checkpoint, tmp_path / "out", *options) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert "1 result of an earlier run" in line and "002" in line and "001" not in line
    (tmp_path / "out/CT/fused.nii.gz").touch()
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert "2 results of an earlier run as well: 002, fused.nii.gz" in capsys.readouterr().err


def test_what_an_earlier_run_saved_of_a_pair_beside_its_images_is_named(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run(checkpoint, tmp_path / "out", *options, "--save-flow", "--save-maps") == 0
    # What is finished has them from the same settings, what is made again has not.
    write_image(tmp_path / "moving/002.png", picture(77))
    assert run(checkpoint, tmp_path / "out", *options, "--resume", "--save-maps") == 0
    assert "1 result of an earlier run as well: flow/002.npy" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert "18 results of an earlier run as well" in capsys.readouterr().err  # 8 of maps and a flow of each
    assert run(checkpoint, tmp_path / "out", *options, "--save-flow", "--save-maps") == 0
    assert "earlier run" not in capsys.readouterr().err


def test_flows_that_cannot_be_used(checkpoint, tmp_path, capsys):
    folders(tmp_path, label=True)
    table = with_flows(tmp_path)
    np.save(tmp_path / "flow/002.npy", np.full((2, *SHAPE), np.nan))
    options = ["--csv", str(table)]
    assert run(checkpoint, tmp_path / "out", *options) == 2
    assert str(tmp_path / "flow/002.npy") in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "mean"]
    pd.read_csv(table).drop(columns="label").to_csv(table, index=False)
    assert run(checkpoint, tmp_path / "out", *options) == 2
    assert "a column label" in capsys.readouterr().err


def test_resume_scores_again_when_flows_are_given(checkpoint, tmp_path):
    folders(tmp_path, label=True)
    table = with_flows(tmp_path)
    pd.read_csv(table).drop(columns="flow").to_csv(tmp_path / "bare.csv", index=False)
    assert run(checkpoint, tmp_path / "out", "--csv", str(tmp_path / "bare.csv")) == 0
    assert "epe" not in read_table(tmp_path / "out/CT/metrics.csv")
    assert run(checkpoint, tmp_path / "out", "--csv", str(table), "--resume") == 0
    assert read_table(tmp_path / "out/CT/metrics.csv")["epe"].notna().all()


def test_arrays_of_any_floating_type_are_taken_but_no_grey_levels(model):
    fuse, (fixed, moving) = PairFuser(model, torch.device("cpu")), (picture(1), picture(2))
    result = fuse(fixed, moving)
    double = fuse(fixed.astype(np.float64), moving.astype(np.float64))
    assert np.array_equal(double.fused, result.fused) and double.flow.dtype == np.float32
    for wrong in ((255 * moving).astype(np.uint8), 255 * moving, moving - 0.5, np.full_like(moving, np.nan)):
        with pytest.raises(ValueError, match=r"moving: expected floating point numbers in \[0, 1\], found"):
            fuse(fixed, wrong)
    for wrong in (moving[:-1], moving[..., None], np.dstack([moving] * 4)):
        with pytest.raises(ValueError, match=r"expected fixed \(H, W\) and moving .*found shapes \(\d+, \d+\) and \("):
            fuse(fixed, wrong)
    turned = fuse(fixed[::-1], moving[::-1])  # negative strides
    assert np.array_equal(turned.fused, fuse(fixed[::-1].copy(), moving[::-1].copy()).fused)


def test_color_is_put_back(model):
    fixed, moving = picture(1), picture(2, channels=3)
    result = PairFuser(model, torch.device("cpu"))(fixed, moving)
    assert result.fused.shape == result.aligned.shape == (*SHAPE, 3)
    tensor = torch.from_numpy(moving).permute(2, 0, 1)[None]
    ycbcr = rgb_to_ycbcr(tensor)
    with torch.inference_mode():
        output = model(*(torch.from_numpy(image)[None, None] for image in (fixed, images.luma(moving))))
    assert np.array_equal(result.flow, output.flow[0].numpy())
    found = rgb_to_ycbcr(torch.from_numpy(result.fused).permute(2, 0, 1)[None])[0].numpy()
    expected = torch.cat((output.fused, warp(ycbcr[:, 1:], output.flow)), dim=1)[0].numpy()
    assert np.abs(found - expected)[0].max() < 1e-4
    # Where no channel reaches its bound, Cb and Cr are those of the aligned image.
    inside = ((result.fused > 1e-3) & (result.fused < 1 - 1e-3)).all(axis=2)
    assert inside.mean() > 0.3
    assert np.abs(found - expected)[1:, inside].max() < 1e-4


@pytest.mark.parametrize(("modality", "channels", "shape"), [
    ("PET", 1, (*SHAPE, 3)), ("SPECT", 3, (*SHAPE, 3)), ("CT", 3, (*SHAPE, 3)), ("CT", 1, SHAPE),
])  # fmt: skip
def test_channels_of_the_saved_images(checkpoint, tmp_path, modality, channels, shape):
    options = folders(tmp_path, pairs=1, channels=channels)
    assert run(checkpoint, tmp_path / "out", "--modality", modality, *options) == 0
    for kind in ("fused", "aligned"):
        with images.Image.open(tmp_path / "out" / modality / kind / "001.png") as image:
            saved = np.asarray(image)
        assert saved.shape == shape
        if channels == 1 and saved.ndim == 3:
            assert (saved == saved[..., :1]).all()


def test_mirrored_pair_gives_the_mirrored_result(model):
    fuse = PairFuser(model, torch.device("cpu"), average=True)
    # A multiple of the stride, shown as it is: padding, which is at the right, has no mirror image.
    fixed, moving = picture(1, (64, 64)), picture(2, (64, 64))
    straight, mirrored = fuse(fixed, moving), fuse(fixed[:, ::-1].copy(), moving[:, ::-1].copy())
    turned = mirrored.flow[:, :, ::-1] * np.array([-1, 1], np.float32)[:, None, None]
    assert np.abs(straight.flow).max() > 0.5
    np.testing.assert_allclose(turned, straight.flow, atol=1e-3)
    np.testing.assert_allclose(mirrored.aligned[:, ::-1], straight.aligned, atol=1e-3)


def test_settings_of_the_checkpoint_are_the_defaults(model, tmp_path):
    path = tmp_path / "two.safetensors"
    training = {"inference": {"passes": 2, "average": True}, "note": "untrained"}
    save_checkpoint(path, model, modality="CT", training=training, metrics={})
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--save-flow"]
    flows, tables = [], []
    for number, more in enumerate(([], ["--passes", "2", "--average"], ["--passes", "1"], ["--no-average"])):
        assert run(path, tmp_path / str(number), *options, *more) == 0
        flows.append(np.load(tmp_path / str(number) / "CT/flow/001.npy"))
        tables.append(read_table(tmp_path / str(number) / "CT/metrics.csv"))
    assert (tables[0]["disagreement"] > 0).all() and "disagreement" not in tables[3]
    assert np.array_equal(flows[0], flows[1])
    assert not np.allclose(flows[0], flows[2]) and not np.allclose(flows[0], flows[3])


def test_other_starts_are_tried_unless_told_otherwise(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("inference.pair_fuser.register_from_afar", lambda *given: asked.append(given) or given[-1])
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, model, modality="CT", training={}, metrics={})
    for more, expected in ((["--average"], 2), (["--average", "--no-multistart"], 0), ([], 0)):
        asked.clear()
        assert run(path, tmp_path / "out", *options, *more) == 0
        assert len(asked) == expected
        settings = json.loads((tmp_path / "out/CT/settings.json").read_text())
        assert settings["multistart"] == (expected > 0)


def test_pairs_that_are_aligned_can_be_fused_only(model, tmp_path):
    path = tmp_path / "average.safetensors"
    training = {"inference": {"passes": 2, "average": True}, "note": "untrained"}
    save_checkpoint(path, model, modality="PET", training=training, metrics={})
    options = ["--modality", "PET", *folders(tmp_path, channels=3, label=True), "--passes", "0"]
    for engine in ("torch", "openvino"):
        output = tmp_path / engine
        assert run(path, output, *options, "--engine", engine) == 0
        for moving in (tmp_path / "moving").iterdir():
            aligned = read_image(output / "PET/aligned" / moving.name, color=True)
            assert np.array_equal(aligned, read_image(moving, color=True))
        table = read_table(output / "PET/metrics.csv")
        assert np.array_equal(table["rmse"], table["rmse_before"]) and "disagreement" not in table
    settings = json.loads((output / "PET/settings.json").read_text())
    assert settings["passes"] == 0 and settings["average"] is False
    with pytest.raises(SystemExit, match="2"):
        run(path, output, *options[:-1], "-1")


def test_a_fusion_without_training_is_named(checkpoint, model, tmp_path, capsys):
    # Of a run broken off in its registration: the stage says so; after `tools.publish` only the weights do.
    path = tmp_path / "broken_off.safetensors"
    training = {"stage": "registration", "step": 5, "stage_step": 0, "options": {"stage": "all"}, "history": []}
    save_checkpoint(path, EDARFusion("tiny"), modality="all", training=training, metrics={})
    publish(path, tmp_path / "published.safetensors")
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    for weights in (path, tmp_path / "published.safetensors"):
        assert run(weights, tmp_path / "out", *options) == 0
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "fusion" in line)
        assert f"{weights}: expected a trained fusion, found an untrained one" in line
    # A run of the registration alone that began with a trained fusion (--init) has one.
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(trained, model, modality="all", training=training, metrics={})
    for weights in (trained, *DEFAULT_CHECKPOINT.parent.glob("*.safetensors")):
        assert run(weights, tmp_path / "out", *options) == 0
        assert "untrained" not in capsys.readouterr().err


def test_pairs_in_doubt_are_named(tmp_path, capsys):
    for role in ("fixed", "moving"):
        image = read_image(REPOSITORY / "data/sample/CT" / role / "simulated_090.png")
        write_image(tmp_path / role / "right.png", image)
        write_image(tmp_path / role / "upside_down.png", image[::-1] if role == "moving" else image)
    options = ["--modality", "CT", "--fixed", str(tmp_path / "fixed"), "--moving", str(tmp_path / "moving")]
    weights = DEFAULT_CHECKPOINT
    assert run(weights, tmp_path / "out", *options) == 0
    assert "CT: look closely at upside_down: disagreement above 1 px" in capsys.readouterr().out
    assert run(weights, tmp_path / "single", *options, "--no-average") == 0
    assert "look closely" not in capsys.readouterr().out


def test_maps_and_figures(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=1)
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--save-maps", "--save-figures") == 0
    assert {p.name for p in (tmp_path / "out/CT/maps").iterdir()} == {*MAPS, "values"}
    with np.load(tmp_path / "out/CT/maps/values/001.npz") as values:
        assert set(values) == set(MAPS) and all(values[kind].shape == SHAPE for kind in MAPS)
        assert values["jacobian"].mean() == pytest.approx(1, abs=0.1) and 0.15 <= values["gate"].min()
    figures = [tmp_path / f"out/CT/figures/{name}" for name in ("001.png", "strips/001.png")]
    for path in (*(tmp_path / f"out/CT/maps/{kind}/001.png" for kind in MAPS), *figures):
        assert read_image(path).std() > 0
    page = (tmp_path / "out/CT/report.html").read_text()
    assert all(style.title in page for style in MAPS.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images(checkpoint, tmp_path, value):
    options = folders(tmp_path, pairs=1, label=True)
    for role in ("moving", "label") if value else ("fixed", "moving", "label"):
        write_image(tmp_path / role / "001.png", np.full(SHAPE, value))
    assert run(checkpoint, tmp_path / "out", "--modality", "PET", *options) == 0
    table = read_table(tmp_path / "out/PET/metrics.csv").drop(columns=["name", "reference"])
    assert np.isfinite(table.to_numpy(float)).all()


class TestVolumes:
    AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 4, -10], [0, 0, 0, 1]])

    def save(self, path, volume):
        """Write (S, H, W) as the slices that the reader shows: x runs left, y back in this affine, as in the images."""
        nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), self.AFFINE), path)
        return str(path)

    @pytest.fixture
    def options(self, tmp_path):
        stack = np.stack([picture(seed) for seed in range(6)])
        fixed = self.save(tmp_path / "head.nii.gz", 900 * stack[:3])
        moving = self.save(tmp_path / "ct.nii.gz", 2000 * stack[3:] - 1000)
        return ["--modality", "CT", "--fixed", fixed, "--moving", moving]

    def test_slices_become_volumes_on_the_fixed_grid(self, checkpoint, tmp_path, options):
        fixed = nib.Nifti1Image(nib.load(options[3]).get_fdata(), self.AFFINE)
        fixed.set_sform(self.AFFINE, 1)
        fixed.set_qform(self.AFFINE, 1)
        nib.save(fixed, options[3])
        assert run(checkpoint, tmp_path / "out", *options, "--window", "0", "2000") == 0
        folder = tmp_path / "out/CT"
        assert len(read_table(folder / "metrics.csv")) == 4 and (folder / "report.html").is_file()
        aligned, fused = (nib.load(folder / f"{kind}.nii.gz") for kind in ("aligned", "fused"))
        for image in (aligned, fused):
            assert image.shape == (80, 64, 3) and np.allclose(image.affine, self.AFFINE)
            for form in (image.get_sform(coded=True), image.get_qform(coded=True)):
                assert form[1] == 1 and np.allclose(form[0], self.AFFINE)
        moving = nib.load(options[-1]).get_fdata().transpose(2, 1, 0)
        for number in range(3):
            flow = np.load(folder / f"flow/head_{number:03}.npy")
            expected = pull(moving[number], flow) / 255
            np.testing.assert_allclose(aligned.get_fdata()[..., number].T, expected, atol=2.0)
            saved = read_image(folder / f"fused/head_{number:03}.png")
            np.testing.assert_allclose(fused.get_fdata()[..., number].T, saved, atol=1e-6)

    @pytest.mark.parametrize("numbers", [("nan", "80"), ("inf", "80"), ("40", "nan"), ("40", "0"), ("40", "-80")])
    def test_windows_are_finite_and_wide(self, checkpoint, tmp_path, options, capsys, numbers):
        with pytest.raises(SystemExit, match="2"):
            run(checkpoint, tmp_path / "out", *options, "--window", *numbers)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"--window: expected two finite numbers, the width above 0, found {' '.join(numbers)}")

    @pytest.mark.parametrize("center", ["4000", "-4000"])
    def test_windows_show_something(self, checkpoint, tmp_path, options, capsys, center):
        assert run(checkpoint, tmp_path / "out", *options, "--window", center, "80") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--window: expected a window within the moving volume's values, -1000 to 1000, found one from" in line
        assert f"from {int(center) - 40} to {int(center) + 40}" in line and not (tmp_path / "out").exists()

    def test_the_window_stands_in_the_report(self, checkpoint, tmp_path, options):
        assert run(checkpoint, tmp_path / "out", *options, "--window", "-10", "900") == 0
        assert "center -10, width 900" in (tmp_path / "out/CT/report.html").read_text()
        assert run(checkpoint, tmp_path / "default", *options) == 0
        assert "center 40, width 80" in (tmp_path / "default/CT/report.html").read_text()

    def test_brain_window_is_the_default_for_hounsfield_units(self, options):
        levels = read_volumes("CT", options[3], options[5]).levels["moving"]
        values = nib.load(options[5]).get_fdata().transpose(2, 1, 0)
        np.testing.assert_allclose(levels, np.clip(values / 80, 0, 1), atol=1e-5)
        fixed = read_volumes("CT", options[3], options[5]).levels["fixed"]
        assert fixed.min() == 0 and fixed.max() == 1 and 0.2 < fixed.mean() < 0.8

    def test_ct_that_is_not_shown_in_the_brain_window_is_named(self, checkpoint, tmp_path, options, capsys):
        assert run(checkpoint, tmp_path / "out", *options) == 0
        assert "Hounsfield" not in capsys.readouterr().err
        defaced = np.clip(nib.load(options[5]).get_fdata(), 0, None)
        nib.save(nib.Nifti1Image(defaced.astype(np.float32), self.AFFINE), options[5])
        assert run(checkpoint, tmp_path / "out", *options) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "Hounsfield" in line]
        assert f"{options[5]}: expected Hounsfield units" in line and "window of center" in line and "--window" in line
        assert run(checkpoint, tmp_path / "out", *options, "--window", "40", "80") == 0
        assert "Hounsfield" not in capsys.readouterr().err

    def test_only_ct_of_unknown_units_is_taken_for_hounsfield_units(self, tmp_path, options):
        # Counts of PET with noise below zero, which look like Hounsfield units.
        noise = np.random.default_rng(0).normal(0, 9000, (3, 64, 80))
        path = self.save(tmp_path / "pet.nii", noise + 20_000 * np.stack([picture(seed) for seed in range(3)]))
        values = nib.load(path).get_fdata(dtype=np.float32)
        assert looks_like_hu(values)
        assert read_volumes("CT", options[3], path).window == (40, 80)
        for modality in ("PET", "SPECT"):
            assert read_volumes(modality, options[3], path).window == robust_window(values)

    def test_the_window_does_not_hang_on_the_field_of_view_of_the_fixed_volume(self, tmp_path, options):
        moving = self.save(tmp_path / "pet.nii", 300 * np.stack([picture(seed) for seed in range(3)]))
        wide = self.save(tmp_path / "mri.nii", np.stack([np.pad(picture(seed), 30) for seed in range(3)]))
        own, resampled = (read_volumes("PET", fixed, moving, resample=True).window for fixed in (moving, wide))
        assert own == resampled

    def test_moving_volume_and_label_have_one_scale(self, tmp_path, options):
        # No Hounsfield units; the label has more of nothing around the head, so percentiles of its own.
        moving = 300 * np.stack([picture(seed) for seed in range(3)])
        label = np.where(moving > 150, moving, 0)
        paths = [self.save(tmp_path / f"{name}.nii", x) for name, x in (("moving", moving), ("label", label))]
        levels = read_volumes("CT", options[3], *paths).levels
        inside = moving > 150
        np.testing.assert_allclose(levels["label"][inside], levels["moving"][inside], atol=1e-6)
        low, high = np.percentile(moving, (1, 99.5))
        np.testing.assert_allclose(levels["moving"], np.clip((moving - low) / (high - low), 0, 1), atol=1e-4)

    def test_volumes_of_another_kind_are_named(self, tmp_path, options):
        volumes = read_volumes("CT", options[3], options[5])
        assert volumes.of_other_kind("CT") == {}  # NIfTI does not say
        kinds = {"fixed": "CT", "moving": "MR"}
        swapped = volumes._replace(
            volumes={role: x._replace(modality=kinds[role]) for role, x in volumes.volumes.items()}
        )
        assert swapped.of_other_kind("CT") == kinds
        right = {"fixed": "MR", "moving": "PT"}
        volumes = volumes._replace(
            volumes={role: x._replace(modality=right[role]) for role, x in volumes.volumes.items()}
        )
        assert volumes.of_other_kind("PET") == {} and volumes.of_other_kind("CT") == {"moving": "PT"}

    def test_resample_brings_the_moving_volume_onto_the_fixed_grid(self, checkpoint, tmp_path, options, capsys):
        # The same voxels but one slice higher up, and one slice more: only the header says so.
        values = nib.load(options[5]).get_fdata()
        affine = self.AFFINE.copy()
        affine[2, 3] -= 4
        higher = np.concatenate((values[..., :1], values), axis=2)
        nib.save(nib.Nifti1Image(higher.astype(np.float32), affine), options[5])
        levels = read_volumes("CT", options[3], options[5], resample=True).levels["moving"]
        np.testing.assert_allclose(levels, np.clip(values.transpose(2, 1, 0) / 80, 0, 1), atol=1e-4)
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 0
        assert "mm off" not in capsys.readouterr().err
        aligned = nib.load(tmp_path / "out/CT/aligned.nii.gz")
        assert aligned.shape == (80, 64, 3) and np.allclose(aligned.affine, self.AFFINE)

    def test_resample_takes_the_label_along(self, tmp_path, options):
        values, affine = nib.load(options[5]).get_fdata(), self.AFFINE.copy()
        affine[0, 3] += 3 * 1.5  # columns run to the left, where x falls
        label = str(tmp_path / "label.nii.gz")
        for path in (options[5], label):
            nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
        volumes = read_volumes("CT", options[3], options[5], label, resample=True).volumes
        for role in ("moving", "label"):
            found = volumes[role].slices[..., :-3]
            np.testing.assert_allclose(found, values.transpose(2, 1, 0)[..., 3:], atol=1e-2)

    def test_slices_know_the_shape_of_their_pixels(self, tmp_path, options):
        for path in (options[3], options[5]):  # rows twice as far apart as columns
            nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), self.AFFINE @ np.diag([1, 2, 1, 1])), path)
        pairs = read_volumes("CT", options[3], options[5]).write_slices(tmp_path / "slices")
        assert [pair.aspect for pair in pairs] == pytest.approx([2.0] * 3)

    @pytest.mark.parametrize(("distance", "named"), [(0.4, False), (0.6, True)])
    def test_half_a_millimetre_is_off_the_grid(self, options, distance, named):
        affine = self.AFFINE.copy()
        affine[1, 3] += distance
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        off = read_volumes("CT", options[3], options[5]).off_grid()
        assert off == ({"moving": pytest.approx(distance, abs=1e-3)} if named else {})

    def test_resampled_volumes_of_another_space_and_of_little_overlap_are_named(
        self, checkpoint, tmp_path, options, capsys, monkeypatch
    ):
        monkeypatch.setattr("inference.run.fuse_and_score", lambda *_: 0)
        affine = self.AFFINE.copy()
        affine[2, 3] += 4
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{options[5]}: expected" in line and "covers 67 % of the fixed volume" in line
        volumes = read_volumes("CT", options[3], options[3], resample=True)
        assert volumes.covered == {"moving": 1} and volumes.of_other_space() == []
        spaces = {"fixed": "1.2", "moving": "1.3"}
        volumes = volumes._replace(
            volumes={role: x._replace(space=spaces[role]) for role, x in volumes.volumes.items()},
            window=volume_checks.BRAIN_WINDOW,
        )
        assert volumes.of_other_space() == ["moving"]
        monkeypatch.setattr(volume_checks, "read_volumes", lambda *_, **__: volumes)
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{options[5]}: expected the DICOM frame of reference of {options[3]}, found another" in line

    def test_a_coarse_moving_volume_is_resampled(self, checkpoint, tmp_path, options, capsys):
        coarse = np.repeat(nib.load(options[5]).get_fdata()[::2, ::2], 2, axis=2)
        assert coarse.shape[:2] == (40, 32)
        affine = self.AFFINE @ np.diag([2, 2, 0.5, 1])
        nib.save(nib.Nifti1Image(coarse.astype(np.float32), affine), options[5])
        assert run(checkpoint, tmp_path / "out", *options) == 2
        assert "--resample brings it there" in capsys.readouterr().err
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 0
        assert nib.load(tmp_path / "out/CT/aligned.nii.gz").shape == (80, 64, 3)

    def test_volumes_at_other_places_are_taken_as_they_lie_with_a_warning(self, checkpoint, tmp_path, options, capsys):
        affine = self.AFFINE.copy()
        affine[2, 3] -= 4
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        assert run(checkpoint, tmp_path / "out", *options) == 0
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "mm off" in line)
        assert options[5] in line and "4.0 mm off" in line and "--resample" in line
        for kind in ("aligned", "fused"):
            assert np.allclose(nib.load(tmp_path / f"out/CT/{kind}.nii.gz").affine, self.AFFINE)

    def test_an_interrupted_run_leaves_no_volumes_and_report_of_others(
        self, checkpoint, tmp_path, options, capsys, monkeypatch
    ):
        assert run(checkpoint, tmp_path / "out", *options) == 0
        files = [tmp_path / "out/CT" / name for name in ("aligned.nii.gz", "fused.nii.gz", "report.html")]
        options[5] = self.save(tmp_path / "other.nii", 2000 * np.stack([picture(seed) for seed in (7, 8, 9)]) - 1000)
        with monkeypatch.context() as patch:
            patch.setattr("inference.run.scored", lambda *x: ())
            assert run(checkpoint, tmp_path / "out", *options) == INTERRUPTED
            assert all(path.exists() for path in files)  # so is their table
            capsys.readouterr()
            patch.setattr("inference.run.scored", lambda *x: islice(scored(*x), 2))
            assert run(checkpoint, tmp_path / "out", *options) == INTERRUPTED
        assert not any(path.exists() for path in files)
        assert "1 result of an earlier run as well: head_002\n" in capsys.readouterr().err
        assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
        assert all(path.exists() for path in files)

    @pytest.mark.parametrize("role", ["fixed", "moving"])
    def test_volumes_without_orientation_are_named_and_not_resampled(
        self, checkpoint, tmp_path, options, capsys, monkeypatch, role
    ):
        path = options[3 if role == "fixed" else 5]
        nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), None), path)
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected a header that says how the volume lies" in line and "found neither" in line
        monkeypatch.setattr("inference.run.fuse_and_score", lambda *_: 0)
        assert run(checkpoint, tmp_path / "out", *options) == 0
        (line,) = capsys.readouterr().err.splitlines()  # how far apart they lie is not known
        assert f"{path}: expected" in line and "left, front and head: check left and right" in line

    @pytest.mark.parametrize(
        "case", ["grids differ", "damaged", "apart", "small", "window without volumes", "resample without volumes"]
    )
    def test_bad_volumes(self, checkpoint, tmp_path, options, capsys, case):
        if case == "grids differ":
            self.save(tmp_path / "ct.nii.gz", np.stack([picture(1)] * 2))
        elif case == "damaged":
            (tmp_path / "ct.nii.gz").write_bytes((tmp_path / "ct.nii.gz").read_bytes()[:-1000])
        elif case == "apart":
            apart = self.AFFINE.copy()
            apart[0, 3] = 1000
            nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), apart), options[5])
            options.append("--resample")
        elif case == "small":
            for name in ("head", "ct"):
                self.save(tmp_path / f"{name}.nii.gz", np.stack([picture(seed, (63, 80)) for seed in range(3)]))
        else:
            options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
            options += ["--window", "40", "80"] if "window" in case else ["--resample"]
        try:
            code = run(checkpoint, tmp_path / "out", *options)
        except SystemExit as exit_:
            code = exit_.code
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and "expected" in line and "found" in line and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("role", ["fixed", "moving"])
    def test_of_a_volume_and_something_unknown_the_latter_is_named(self, checkpoint, tmp_path, options, capsys, role):
        path = tmp_path / "brain.mgz"
        path.write_bytes(b"of FreeSurfer")
        options[3 if role == "fixed" else 5] = str(path)
        assert run(checkpoint, tmp_path / "out", *options, "--resample") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected a .nii" in line and "found 'brain.mgz'" in line

    @pytest.mark.parametrize("case", ["folders", "series", "moving only", "table"])
    def test_several_volumes_at_once_are_told_how_they_are_given(self, checkpoint, tmp_path, options, capsys, case):
        for role in ("fixed", "moving"):
            (tmp_path / role / "series").mkdir(parents=True)
        named = tmp_path / "fixed"
        if case == "folders":
            for role, file in (("fixed", "head.nii.gz"), ("moving", "ct.nii.gz")):
                shutil.copy(tmp_path / file, tmp_path / role / "1.nii.gz")
                shutil.copy(tmp_path / file, tmp_path / role / "2.nii.gz")
            options = [*options[:3], str(named), "--moving", str(tmp_path / "moving")]
        elif case == "series":
            (named / "series/IM001").write_bytes(bytes(128) + b"DICM")
            options[3] = str(named)
        elif case == "moving only":
            write_image(named / "ct.png", picture(1))
            options[3], named = str(named), tmp_path / "ct.nii.gz"
        else:
            named = tmp_path / "head.nii.gz"
            (tmp_path / "pairs.csv").write_text("fixed,moving\nhead.nii.gz,ct.nii.gz\n")
            options = ["--modality", "CT", "--csv", str(tmp_path / "pairs.csv"), "--keep-going"]
        assert run(checkpoint, tmp_path / "out", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{named}: expected" in line and "volumes one pair at a time" in line and "found" in line


class TestBadInput:
    """One line, exit status 2, and earlier results stay as they are."""

    @pytest.fixture
    def output(self, tmp_path):
        """A folder with earlier results of the same modality."""
        for name in ("metrics.csv", "report.html", "fused/001.png"):
            write_bytes(tmp_path / "out/CT" / name, b"earlier")
        return tmp_path / "out"

    def check(self, capsys, output, code, *words):
        captured = capsys.readouterr()
        # Beside the progress bar.
        (line,) = [line for line in captured.err.splitlines() if line and "pair/s" not in line]
        assert code == 2 and line.startswith("EDARFusion_test_val: ")
        for word in ("expected", "found", *words):
            assert word in line
        left = {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}
        assert left == {f"CT/{name}": b"earlier" for name in ("metrics.csv", "report.html", "fused/001.png")}

    def run(self, checkpoint, output, *options):
        try:
            return run(checkpoint, output, *options)
        except SystemExit as exit_:
            return exit_.code

    @pytest.mark.parametrize("case", [
        "missing folder", "missing file", "unpaired", "sizes", "damaged", "label unpaired", "unknown modality",
        "no modality", "moving missing", "label alone", "no table", "split without table", "device",
        "engine", "name of the last row",
    ])  # fmt: skip
    def test_input(self, checkpoint, tmp_path, output, capsys, case):
        options = ["--modality", "CT", *folders(tmp_path, label=True)]
        fixed, moving, label = (tmp_path / role / "002.png" for role in ("fixed", "moving", "label"))
        words = []
        if case == "missing folder":
            options[options.index("--moving") + 1] = str(tmp_path / "nowhere")
            words = [str(tmp_path / "nowhere")]
        elif case == "missing file":
            options = ["--modality", "CT", "--fixed", str(fixed), "--moving", str(tmp_path / "nothing.png")]
            words = [str(tmp_path / "nothing.png")]
        elif case == "unpaired":
            moving.unlink()
            words = [str(moving.parent), "002"]
        elif case == "label unpaired":
            label.unlink()
            words = [str(label.parent), "002"]
        elif case == "sizes":
            write_image(moving, picture(1, (70, 80)))
            words = [str(moving), "80 x 70", "80 x 64"]
        elif case == "damaged":
            moving.write_bytes(moving.read_bytes()[:-100])
            words = [str(moving), "damaged"]
        elif case == "unknown modality":
            options[1] = "MRT"
            words = ["MRT", "SPECT"]
        elif case == "no modality":
            options = options[2:]
            words = ["--modality"]
        elif case == "moving missing":
            options = ["--modality", "CT", "--fixed", str(fixed.parent)]
            words = ["--moving"]
        elif case == "label alone":
            options = ["--modality", "CT", "--label", str(label.parent)]
            words = ["--label", "--fixed", "--moving"]
        elif case == "no table":
            options = ["--csv", str(tmp_path / "none.csv")]
            words = [str(tmp_path / "none.csv")]
        elif case == "split without table":
            options += ["--split", "val"]
            words = ["--csv"]
        elif case == "device":
            if torch.backends.mps.is_available():
                pytest.skip("the device is here")
            options += ["--device", "mps"]
            words = ["mps"]
        elif case == "engine":
            options += ["--engine", "openvino", "--device", "cuda"]
            words = ["--engine", "cuda", "openvino"]
        elif case == "name of the last row":
            for path in (fixed, moving, label):
                path.rename(path.with_stem("mean"))
            words = [str(fixed.with_stem("mean")), "another name"]
        self.check(capsys, output, self.run(checkpoint, output, *options), *words)

    @pytest.mark.parametrize("case", ["missing", "foreign", "pickled", "of another modality"])
    def test_checkpoint(self, model, tmp_path, output, capsys, case):
        path = tmp_path / "c.safetensors"
        if case == "foreign":
            path.write_bytes(b"no checkpoint at all")
        elif case == "pickled":
            torch.save(model.state_dict(), path)
        elif case == "of another modality":
            save_checkpoint(path, model, modality="PET", training={"note": "untrained"}, metrics={})
        code = self.run(path, output, "--modality", "CT", *folders(tmp_path))
        self.check(capsys, output, code, str(path), *{"of another modality": ["PET", "CT"]}.get(case, []))

    def test_output_in_the_way(self, checkpoint, tmp_path, output, capsys):
        (tmp_path / "file").write_bytes(b"")
        code = self.run(checkpoint, tmp_path / "file", "--modality", "CT", *folders(tmp_path))
        self.check(capsys, output, code, f"{tmp_path / 'file' / 'CT'}: expected a folder")

    def test_disk_full(self, checkpoint, tmp_path, output, capsys, monkeypatch):
        options = folders(tmp_path)
        replace = os.replace

        def full(source, target):
            if Path(target).suffix == ".png":
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
        self.check(capsys, output, self.run(checkpoint, output, "--modality", "CT", *options), "No space left")

    def test_resume_from_a_foreign_table(self, checkpoint, tmp_path, output, capsys):
        code = self.run(checkpoint, output, "--modality", "CT", *folders(tmp_path), "--resume")
        self.check(capsys, output, code, "metrics.csv")


class TestInputsStay:
    """No result takes the place of a file that it is made from: one line, exit status 2, nothing written."""

    def check(self, capsys, checkpoint, output, path, *options):
        before = {p: p.read_bytes() for p in output.parent.rglob("*") if p.is_file()}
        capsys.readouterr()
        assert run(checkpoint, output, *options) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "pair/s" not in line)
        assert line.startswith(f"EDARFusion_test_val: {path}: expected") and "found" in line and "--output" in line
        assert before == {p: p.read_bytes() for p in output.parent.rglob("*") if p.is_file()}

    @pytest.mark.parametrize("kind", [
        "aligned", "fused",
        pytest.param("linked", marks=pytest.mark.skipif(os.name == "nt", reason="links need rights there")),
    ])  # fmt: skip
    def test_images(self, checkpoint, tmp_path, capsys, kind):
        output = tmp_path / "out"
        options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
        assert run(checkpoint, output, *options) == 0
        if kind == "linked":
            (tmp_path / "linked").symlink_to(output / "CT/fused", target_is_directory=True)
        options[-1] = str(tmp_path / "linked" if kind == "linked" else output / "CT" / kind)
        self.check(capsys, checkpoint, output, f"{options[-1]}/001.png", *options)
        assert run(checkpoint, tmp_path / "other", *options) == 0

    def test_other_capitals(self, tmp_path):
        # Two paths of one file without a link between them, as on a file system without capitals.
        (tmp_path / "a.png").touch()
        (tmp_path / "b.png").touch()
        if not (tmp_path / "A.PNG").exists():
            os.link(tmp_path / "a.png", tmp_path / "A.PNG")
        with pytest.raises(FileError, match="a.png: expected an input that no result is written over"):
            check_inputs_stay([tmp_path / "b.png", tmp_path / "a.png"], [tmp_path / "A.PNG", tmp_path / "none.png"])
        check_inputs_stay([tmp_path / "b.png", tmp_path / "none.jpg"], [tmp_path / "A.PNG", tmp_path / "none.png"])

    def test_true_flows(self, checkpoint, tmp_path, capsys):
        folders(tmp_path / "data/CT", label=True)
        table = with_flows(tmp_path / "data/CT")
        path = tmp_path / "data/CT/flow/001.npy"
        self.check(capsys, checkpoint, tmp_path / "data", path, "--csv", str(table), "--save-flow")
        assert run(checkpoint, tmp_path / "data", "--csv", str(table)) == 0

    def test_volumes(self, checkpoint, tmp_path, capsys):
        paths = [tmp_path / "fixed.nii.gz", tmp_path / "out/CT/aligned.nii.gz"]
        paths[1].parent.mkdir(parents=True)
        for seed, path in enumerate(paths):
            nib.save(nib.Nifti1Image(2000 * picture(seed)[..., None] - 1000, np.eye(4)), path)
        options = ["--modality", "CT", "--fixed", str(paths[0]), "--moving", str(paths[1])]
        self.check(capsys, checkpoint, tmp_path / "out", paths[1], *options)


def test_keep_going_leaves_out_what_cannot_be_read(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=3)
    (tmp_path / "moving/002.png").write_bytes(b"")
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "003", "mean"]
    last = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert "left out" in last and str(tmp_path / "moving/002.png") in last


def test_one_pair_is_no_pairs(checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path, pairs=1)) == 0
    summary = capsys.readouterr().out
    assert "CT, 1 pair" in summary and "1 pairs" not in summary
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path, pairs=2)) == 0
    assert "CT, 2 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_keep_going_leaves_out_what_has_no_partner(checkpoint, tmp_path, capsys, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3, label=True)]
    (tmp_path / role / "002.png").unlink()
    assert run(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "003", "mean"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert all(f"{tmp_path / role}: expected a {role} image" in line and "none for 002" in line for line in lines)
    assert len(lines) == (2 if role == "fixed" else 1)  # two other folders have it


def test_keep_going_leaves_out_rows_that_cannot_be_used(checkpoint, tmp_path, capsys):
    folders(tmp_path, pairs=5)
    (tmp_path / "moving/002.png").unlink()
    others = {2: "moving/002.png", 3: "", 4: "../004.png"}
    rows = [f"fixed/00{i}.png,{others.get(i, f'moving/00{i}.png')},CT" for i in range(1, 6)]
    csv = tmp_path / "pairs.csv"
    others = ["fixed/001.png,moving/001.png,MRI", "fixed/001.png,moving/005.png,CT"]
    csv.write_text("\n".join(["fixed,moving,modality", *rows, *others]))
    assert run(checkpoint, tmp_path / "out", "--csv", str(csv), "--keep-going") == 1
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "005", "mean"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    expected = [(7, "'MRI'"), (3, "002.png"), (4, "an empty cell"), (5, "../004.png"), (8, "'001' in lines 2 and 8")]
    for line, (place, found) in zip(lines, expected, strict=True):
        assert f"{csv}: expected" in line and str(place) in line and found in line
    for row, found in ((rows[1], "002.png"), (f"{rows[0]}R", "'CTR'")):
        csv.write_text(f"fixed,moving,modality\n{row}\n")
        assert run(checkpoint, tmp_path / "none", "--csv", str(csv), "--keep-going", "--modality", "CT") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{csv}: expected at least one row that can be used" in line and found in line
        assert not (tmp_path / "none").exists()


def test_keep_going_with_nothing_left(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=1)
    (tmp_path / "moving/001.png").write_bytes(b"")
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--keep-going") == 1
    assert not (tmp_path / "out/CT").exists() and "mean" not in capsys.readouterr().out
    # What an earlier run made of the pair is not of this one.
    shutil.copy(tmp_path / "fixed/001.png", tmp_path / "moving/001.png")
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options) == 0
    (tmp_path / "moving/001.png").write_bytes(b"")
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--keep-going") == 1
    assert f"{tmp_path / 'out/CT'}: holds 1 result of an earlier run as well: 001\n" in capsys.readouterr().err


def test_processes_that_score_start_without_torch():
    command = "import sys, EDARFusion_test_val; sys.exit(any(name in sys.modules for name in ('torch', 'openvino')))"
    assert subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY).returncode == 0


def test_an_engine_whose_package_is_lacking_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "inference.openvino_model", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--engine", "openvino"]
    assert run(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--engine openvino: expected the package openvino, found none")


def test_resume_computes_what_is_missing_only(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    folder = tmp_path / "out/CT"
    table = read_table(folder / "metrics.csv")
    kept = (folder / "fused/001.png").stat()
    # 001 is finished; 002 has lost a file, 003 its row.
    (folder / "aligned/002.png").unlink()
    table[table["name"] != "003"].to_csv(folder / "metrics.csv", index=False)
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    again = read_table(folder / "metrics.csv")
    assert (folder / "fused/001.png").stat() == kept
    assert (folder / "aligned/002.png").is_file()
    assert list(again["name"]) == ["001", "002", "003", "mean"]
    assert again.loc[0, "seconds"] == pytest.approx(table.loc[0, "seconds"])
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    assert again["seconds"].iloc[-1] == pytest.approx(again["seconds"].iloc[:-1].mean())
    # A wanted file that the earlier run did not save makes a pair unfinished.
    assert run(checkpoint, tmp_path / "out", *options, "--resume", "--save-flow") == 0
    assert len(list((folder / "flow").iterdir())) == 3


def test_resume_leaves_the_report_of_what_is_finished(checkpoint, tmp_path, monkeypatch):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    folders(tmp_path, pairs=2)
    monkeypatch.setattr("inference.run.scored", lambda *x: ())
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == INTERRUPTED
    assert (tmp_path / "out/CT/report.html").exists()


def test_what_is_outdated_and_cannot_be_removed_is_named(tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    folder.report_path.mkdir()
    folder.outdated = [folder.report_path]
    with pytest.raises(FileError, match=r"report\.html: expected a file that can be removed"):
        folder.write_rows([])


def test_a_table_is_the_same_whether_its_rows_are_new_or_read(tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    values = np.random.default_rng(1).uniform(0, 100, (30, len(FUSION_METRICS)))  # whose rounding shows in a mean
    rows = [dict(zip(FUSION_METRICS, row, strict=True)) for row in values]
    rows = [row | {"name": str(place), "inputs": "-"} for place, row in enumerate(rows)]
    folder.write_rows(rows)
    new = folder.table_path.read_bytes()
    known = folder.read_rows()
    folder.write_rows([known[row["name"]] if place % 2 else row for place, row in enumerate(rows)])
    assert folder.table_path.read_bytes() == new


@pytest.mark.parametrize("changed", ["checkpoint", "passes", "unreadable"])
def test_resume_does_not_mix_results(checkpoint, model, tmp_path, capsys, changed):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    other, settings = tmp_path / "other.safetensors", tmp_path / "out/CT/settings.json"
    shutil.copy(checkpoint, other)
    if changed == "checkpoint":
        save_checkpoint(other, model, modality="CT", training={"note": "another"}, metrics={})
    elif changed == "passes":
        options += ["--passes", "2"]
    else:
        settings.write_text("[1")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run(other if changed == "checkpoint" else checkpoint, tmp_path / "out", *options, "--resume") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{settings}: expected" in line and "found" in line
    assert {"checkpoint": "sha256", "passes": "passes 2", "unreadable": "settings"}[changed] in line
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    # Without --resume they are results of a new run.
    assert run(checkpoint, tmp_path / "out", *options) == 0
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0


@pytest.mark.parametrize("role", ["fixed", "moving", "label"])
def test_resume_makes_pairs_again_whose_files_are_others(checkpoint, tmp_path, role):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2, label=True), "--save-flow"]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    table, kept = (read_table(tmp_path / "out/CT/metrics.csv") for _ in range(2))
    # Another patient's slice of the same name.
    write_image(tmp_path / role / "002.png", picture(77))
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    again = read_table(tmp_path / "out/CT/metrics.csv")
    assert again.loc[0].equals(kept.loc[0]) and not again.loc[1].equals(table.loc[1])
    assert run(checkpoint, tmp_path / "anew", *options) == 0
    anew = read_table(tmp_path / "anew/CT/metrics.csv")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), anew.drop(columns="seconds"))


def test_resume_makes_pairs_again_that_are_shown_at_another_scale(checkpoint, tmp_path):
    def write(name: str, size: int) -> None:
        for role, seed in (("fixed", 0), ("moving", 1)):
            write_image(tmp_path / role / f"{name}.png", np.pad(picture(seed)[:size, :size], (128 - size) // 2))

    options = ["--modality", "CT", "--fixed", str(tmp_path / "fixed"), "--moving", str(tmp_path / "moving")]
    for number in range(5):
        write(f"00{number}", 60)
    # Several heads, all of them small, are enlarged; beside a large one they are tops of heads.
    assert run(checkpoint, tmp_path / "out", *options) == 0
    for role in ("fixed", "moving"):
        write_image(tmp_path / role / "005.png", np.kron(picture(2)[:64, :64], np.ones((2, 2))))
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert run(checkpoint, tmp_path / "anew", *options) == 0
    again, anew = (read_table(tmp_path / name / "CT/metrics.csv") for name in ("out", "anew"))
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), anew.drop(columns="seconds"))


def test_rows_without_known_inputs_are_made_again(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    assert run(checkpoint, tmp_path / "out", *options) == 0
    before = (tmp_path / "out/CT/fused/001.png").stat()
    (tmp_path / "out/CT/inputs.json").write_text("no json")
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert (tmp_path / "out/CT/fused/001.png").stat().st_ino != before.st_ino
    assert list(json.loads((tmp_path / "out/CT/inputs.json").read_text())) == ["001"]


def test_a_pair_called_NA_is_found_again(tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    folder.write_rows([{"name": "NA", "seconds": 1.5, "inputs": "0123"}])
    row = folder.read_rows()["NA"]
    assert (row["name"], row["seconds"], row["inputs"]) == ("NA", 1.5, "0123")


def test_parts_of_several_processes_are_resumed(checkpoint, tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    rows = {name: dict.fromkeys(COLUMNS, 0.5) | {"name": name, "reference": "label"} for name in ("001", "002", "003")}
    folder.write_rows([rows["003"] | {"inputs": "old"}])
    for part, name in enumerate(("001", "002")):
        folder.write_rows([rows[name] | {"inputs": f"of {name}"}], part)
    found = folder.read_rows()
    # What the processes left when they broke off is newer than the whole table.
    assert {name: row["inputs"] for name, row in found.items()} == {"001": "of 001", "002": "of 002"}
    (unfinished := tmp_path / ".metrics.csv.1.tmp").touch()
    folder.remove_parts()
    assert not unfinished.exists()
    assert {name: row["inputs"] for name, row in folder.read_rows().items()} == {"003": "old"}


def test_resume_scores_again_when_labels_are_given(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=1, label=True)]
    assert run(checkpoint, tmp_path / "out", *options[:-2]) == 0
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert read_table(tmp_path / "out/CT/metrics.csv")["rmse"].notna().all()


def command(checkpoint: Path, output: Path, *options: str) -> list[str]:
    script_path = str(REPOSITORY / "EDARFusion_test_val.py")
    return [script_path, "--checkpoint", str(checkpoint), "--output", str(output), "--modality", "CT", *options]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_interruption_keeps_what_is_done(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=40)
    table_path = tmp_path / "out/CT/metrics.csv"
    process = subprocess.Popen(
        [sys.executable, *command(checkpoint, tmp_path / "out", *options, "--workers", "1")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not table_path.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == INTERRUPTED and "Traceback" not in errors
    assert "--resume goes on" in errors.rstrip().split("\n")[-1]
    names = list(read_table(table_path)["name"])
    assert 2 <= len(names) < 41 and names[-1] == "mean"
    fused = {p.stem for p in (tmp_path / "out/CT/fused").iterdir()}
    assert fused == set(names[:-1])
    kept = {name: (tmp_path / f"out/CT/fused/{name}.png").stat() for name in names[:-1]}
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--resume") == 0
    assert len(read_table(table_path)) == 41
    assert kept == {name: (tmp_path / f"out/CT/fused/{name}.png").stat() for name in kept}


def test_two_processes_share_the_pairs(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=5, label=True)
    assert run(checkpoint, tmp_path / "one", "--modality", "CT", *options) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launcher, *command(checkpoint, tmp_path / "two", *options, "--workers", "1")],
        check=True, capture_output=True, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = (read_table(tmp_path / run_ / "CT/metrics.csv").drop(columns="seconds") for run_ in ("one", "two"))
    # Processes that share the cores round otherwise.
    pd.testing.assert_frame_equal(one, two, rtol=1e-2, atol=1e-2)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*"))


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="one file there")
def test_names_must_differ_in_more_than_capitals(checkpoint, tmp_path, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    for folder in (options[3], options[5]):
        shutil.copy(Path(folder, "001.png"), Path(folder, "P1.png"))
        shutil.copy(Path(folder, "001.png"), Path(folder, "p1.png"))
    assert run(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.png: expected a name that differs from " in line and " in more than capitals" in line
    assert run(checkpoint, tmp_path / "out", *options, "--keep-going") == 1
    assert len(list((tmp_path / "out/CT/fused").iterdir())) == 3


def test_what_several_processes_finished_outlives_a_run_that_is_killed_as_it_begins(checkpoint, tmp_path, monkeypatch):
    options, folder = ["--modality", "CT", *folders(tmp_path, pairs=1)], tmp_path / "out/CT"
    assert run(checkpoint, tmp_path / "out", *options) == 0
    for name, part in {"metrics.csv": ".metrics-1.csv", "inputs.json": ".inputs-1.json"}.items():
        (folder / name).rename(folder / part)
    made, remove = (folder / "fused/001.png").stat(), ResultFolder.remove_parts

    def remove_and_die(folder: ResultFolder) -> None:
        remove(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(ResultFolder, "remove_parts", remove_and_die)
        assert run(checkpoint, tmp_path / "out", *options, "--resume") == INTERRUPTED
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert (folder / "fused/001.png").stat() == made


def test_pairs_of_a_process_whose_folder_is_another_are_missed(checkpoint, tmp_path, monkeypatch, capsys):
    options = ["--modality", "CT", *folders(tmp_path, pairs=3)]
    with monkeypatch.context() as first_of_two:
        first_of_two.setenv("WORLD_SIZE", "2")
        for name in ("init_process_group", "barrier"):
            first_of_two.setattr(torch.distributed, name, lambda *_, **__: None)
        assert run(checkpoint, tmp_path / "out", *options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'out/CT'}: expected a folder that all processes see" in line
    assert "found none of 1 pair, such as 002" in line
    # What it made itself is not lost.
    kept = (tmp_path / "out/CT/fused/001.png").stat()
    assert run(checkpoint, tmp_path / "out", *options, "--resume") == 0
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["name"]) == ["001", "002", "003", "mean"]
    assert (tmp_path / "out/CT/fused/001.png").stat() == kept


def test_each_pair_is_one_process_s_and_its_row_is_in_the_table_before_the_parts_go(checkpoint, tmp_path, monkeypatch):
    """Two processes, the second run where the first one waits for it after its last pair."""
    options = ["--modality", "CT", *folders(tmp_path, pairs=5)]
    waits, found = [], []

    def become(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))

    def barrier() -> None:
        waits.append(processes.rank())
        if processes.rank() == 0 and waits.count(0) == 3:
            become(1)
            assert run(checkpoint, tmp_path / "out", *options) == 0
            become(0)

    def look_and_remove(folder: ResultFolder) -> None:
        tables = folder.path.glob("*metrics*.csv")
        found.append({path.name: list(read_table(path)["name"])[:-1] for path in tables})
        remove(folder)

    remove = ResultFolder.remove_parts
    monkeypatch.setattr(ResultFolder, "remove_parts", look_and_remove)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.barrier", barrier)
    monkeypatch.setenv("WORLD_SIZE", "2")
    become(0)
    assert run(checkpoint, tmp_path / "out", *options) == 0
    parts = {".metrics-0.csv": ["001", "003", "005"], ".metrics-1.csv": ["002", "004"]}
    assert found[-1] == parts | {"metrics.csv": ["001", "002", "003", "004", "005"]}
    assert [path.name for path in (tmp_path / "out/CT").glob("*metrics*")] == ["metrics.csv"]


def test_slices_without_anything_are_named_and_left_as_they_are(checkpoint, tmp_path, capsys):
    options = folders(tmp_path, pairs=2)
    write_image(tmp_path / "moving/001.png", np.zeros(SHAPE))
    assert run(checkpoint, tmp_path / "out", "--modality", "CT", "--average", "--save-flow", *options) == 0
    assert "CT: 1 pair with a blank image: not aligned, but counted in the means" in capsys.readouterr().err
    fused = read_image(tmp_path / "out/CT/fused/001.png")
    assert np.array_equal(fused, read_image(tmp_path / "fixed/001.png"))
    rows = read_table(tmp_path / "out/CT/metrics.csv").set_index("name")
    assert np.isnan(rows.loc["001", "disagreement"]) and rows.loc["002", "disagreement"] > 0
    assert not np.load(tmp_path / "out/CT/flow/001.npy").any() and np.load(tmp_path / "out/CT/flow/002.npy").any()
