"""evaluation/metrics: agreement with the field's toolboxes, identities, hand-computed values, bad input."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import structural_similarity

from evaluation import metrics, scoring
from evaluation.metrics.common import stretch
from tools import score
from utils.imaging.images import ImageError, read_image, write_image
from utils.maps import jacobian_determinant

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "../shared"
SAMPLE = ROOT / "data/sample"
SAMPLE_METRICS = Path(__file__).parents[1] / "golden" / "sample_metrics.csv"

GOLDEN_NAMES = {
    "qvif": "viff",
    "qs": "qs_clamped",
    "qssim": "ssim_sum",
    "qy": "qy_clamped",
    "mi": "mi_bits",
    "qw": "qw_clamped",
    "vif": "vif_sum",
}
FIRST_COLUMNS = ["qabf", "qcv", "qvif", "qs", "qssim", "qcb", "qy", "mi", "en", "sd", "sf", "ag"]
BEST = {
    "qcv": 0,
    "qvif": 1,
    "qs": 1,
    "qssim": 2,
    "qssim_mean": 1,
    "qcb": 1,
    "qy": 1,
    "qw": 1,
    "vif": 2,
    "cc": 1,
}
"""Metrics with a best value that F = A = B must reach."""


def tolerance(metric: str) -> float:
    # Round-off decides Q_CB in black areas.
    return 5e-3 if metric == "qcb" else 1e-6


@pytest.fixture
def sources() -> list[np.ndarray]:
    """Three related images: fixed, reference and fused, with black background, whole grey levels."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1:1:96j, -1:1:80j]
    head = np.hypot(x, y) < 0.8
    waves = 120 + 60 * np.sin(9 * x) * np.cos(7 * y), 120 + 90 * np.cos(12 * x + 5 * y)
    first, second = (np.rint(np.clip(w + rng.normal(0, 10, w.shape), 0, 255)) * head for w in waves)
    return [first, second, np.rint((first + second) / 2)]


# --- agreement with other implementations -------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "PET", "SPECT"])
def test_values_of_the_reference_toolboxes(modality: str) -> None:
    path = SHARED / "golden" / f"{modality}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    golden = pd.read_csv(path, dtype={"name": str}).set_index("name")
    pairs = SHARED / "data/unaligned" / f"{modality}-MRI"
    fused = SHARED / "data/published/BSAFusion" / f"{modality}-MRI/fused"
    for name, expected in golden.iterrows():
        folders = (pairs / "MRI", pairs / f"{modality}_label", fused)
        actual = metrics.fusion_metrics(*(scoring.read_grey(folder / f"{name}.png") for folder in folders))
        actual = {GOLDEN_NAMES.get(metric, metric): value for metric, value in actual.items()}
        for metric in golden.columns:
            assert actual[metric] == pytest.approx(expected[metric], rel=tolerance(metric)), (name, metric)


def sample_scores() -> Iterator[dict]:
    """Scores of the embedded sample, the pixelwise maximum standing in for a fused image."""
    for modality in ("CT", "PET", "SPECT"):
        for path in sorted((SAMPLE / modality / "fixed").iterdir()):
            fixed = scoring.read_grey(path)
            label = scoring.read_grey(SAMPLE / modality / "label" / path.name)
            moving = scoring.read_grey(SAMPLE / modality / "moving" / path.name)
            row = {"modality": modality, "name": path.stem}
            row |= metrics.fusion_metrics(fixed, label, np.maximum(fixed, label))
            yield row | metrics.registration_metrics(moving, label)


def test_values_of_the_embedded_sample() -> None:
    # Written by this module, run as a program, when it agreed with the toolboxes on the golden pairs.
    expected = pd.read_csv(SAMPLE_METRICS)
    actual = pd.DataFrame(sample_scores())
    assert actual[["modality", "name"]].equals(expected[["modality", "name"]])
    for metric in expected.columns.drop(["modality", "name"]):
        # Simulated images are smooth: round-off, which differs between processors, turns the angles of faint edges.
        limit = max(tolerance(metric), 1e-4)
        np.testing.assert_allclose(actual[metric], expected[metric], rtol=limit, err_msg=metric)


def test_ssim_is_scikit_images(sources: list[np.ndarray]) -> None:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(sources[0], sources[1], **options)
    assert metrics.ssim(sources[0], sources[1]) == pytest.approx(expected, rel=1e-9)


# --- identities ---------------------------------------------------------------------------------------------


def test_all_at_once_are_the_single_metrics(sources: list[np.ndarray]) -> None:
    fused = sources[2]
    single = {
        "qabf": metrics.qabf(*sources),
        "qcv": metrics.qcv(*sources),
        "qvif": metrics.viff(*sources),
        "qs": metrics.structure(*sources).piella_q,
        "qssim": metrics.structure(*sources).ssim_sum,
        "qcb": metrics.qcb(*sources),
        "qy": metrics.qy(*sources),
        "mi": metrics.mi_bits(*sources),
        "en": metrics.entropy(fused),
        "sd": metrics.standard_deviation(fused),
        "sf": metrics.spatial_frequency(fused),
        "ag": metrics.average_gradient(fused),
        "qssim_mean": metrics.structure(*sources).ssim_sum / 2,
        "qw": metrics.structure(*sources).piella_qw,
        "vif": metrics.vif_sum(*sources),
        "cc": metrics.cc(*sources),
        "scd": metrics.scd(*sources),
        "qabf_zliu": metrics.qabf(*sources, variant="zliu"),
        "mi_nats": metrics.mi_nats(*sources),
    }
    actual = metrics.fusion_metrics(*sources)
    assert list(actual)[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    assert actual == pytest.approx(single, rel=1e-12)


def test_identical_images_score_best(sources: list[np.ndarray]) -> None:
    image = sources[0]
    actual = metrics.fusion_metrics(image, image, image)
    for metric, best in BEST.items():
        assert actual[metric] == pytest.approx(best, abs=1e-6), metric
    # Sigmoids keep these below 1.
    assert actual["qabf"] == pytest.approx(0.9994 * 0.9879 / (1 + np.exp(-22 * 0.2)), abs=1e-3)
    assert actual["qabf_zliu"] == pytest.approx(1 / (1 + np.exp(-5)) ** 2, abs=1e-6)
    assert actual["mi"] == pytest.approx(2 * actual["en"])
    changed = metrics.fusion_metrics(image, image, sources[1])
    for metric in [*BEST, "qabf", "qabf_zliu", "mi", "mi_nats"]:
        worse = changed[metric] > actual[metric] if metric == "qcv" else changed[metric] < actual[metric]
        assert worse, metric


def test_sources_may_be_swapped(sources: list[np.ndarray]) -> None:
    first, second, fused = sources
    forward, backward = (
        metrics.fusion_metrics(first, second, fused),
        metrics.fusion_metrics(second, first, fused),
    )
    # The tie rule of VIFF is not symmetric.
    del forward["qvif"], backward["qvif"]
    assert forward == pytest.approx(backward, rel=1e-9)


def test_transposed_images_score_alike(sources: list[np.ndarray]) -> None:
    actual = metrics.fusion_metrics(*sources)
    transposed = metrics.fusion_metrics(*(image.T for image in sources))
    for metric in (
        "qcv",
        "qvif",
        "qs",
        "qssim",
        "qy",
        "qw",
        "vif",
        "mi",
        "en",
        "sd",
        "sf",
        "ag",
        "cc",
        "scd",
    ):
        assert transposed[metric] == pytest.approx(actual[metric], rel=1e-9), metric


@pytest.mark.parametrize("levels", [(0, 0, 0), (128, 128, 128), (255, 255, 255), (0, 128, 255), (90, 90, 0)])
def test_constant_images_give_defined_values(levels: tuple[int, int, int]) -> None:
    images = [np.full((64, 70), float(level)) for level in levels]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = metrics.fusion_metrics(*images)
        registration = metrics.registration_metrics(images[0], images[2])
    assert np.isfinite(list(actual.values())).all()
    assert np.isfinite(list(registration.values())).all()
    assert actual["en"] == actual["sd"] == actual["sf"] == actual["ag"] == actual["mi"] == 0
    if len(set(levels)) == 1:
        for metric in BEST.keys() - {"cc"}:
            assert actual[metric] == pytest.approx(BEST[metric], abs=1e-6), metric
        assert registration["ncc"] == 1


@pytest.mark.parametrize("constant", [0, 1, 2])
def test_one_constant_image_gives_defined_values(sources: list[np.ndarray], constant: int) -> None:
    sources[constant] = np.zeros_like(sources[constant])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = metrics.fusion_metrics(*sources)
    assert np.isfinite(list(actual.values())).all()
    if constant == 2:
        assert actual["qcb"] == actual["mi"] == actual["cc"] == 0
        assert actual["qabf"] < 1e-4


def test_edges_invented_over_flat_sources_score_nothing(sources: list[np.ndarray]) -> None:
    black = np.zeros_like(sources[0])
    assert metrics.qabf(black, black, sources[0]) == 0
    assert metrics.qabf(black, black, black) == pytest.approx(0.975, abs=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (65, 97), (130, 71)])
def test_any_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b, f = (rng.uniform(0, 255, shape) for _ in range(3))
    actual = metrics.fusion_metrics(a, b, f)
    for metric in ("qabf", "qcb", "qabf_zliu"):
        assert 0 < actual[metric] < 1, metric
    for metric in ("qs", "qssim_mean", "qy", "qw", "cc"):
        assert abs(actual[metric]) < 0.5, metric
    assert actual["qvif"] > 0 and actual["qcv"] > 0


# --- values computed by hand --------------------------------------------------------------------------------


def test_values_of_single_images() -> None:
    halves = np.zeros((64, 64))
    halves[:, 32:] = 200
    assert metrics.entropy(halves) == pytest.approx(1)
    assert metrics.standard_deviation(halves) == pytest.approx(100)
    # One step of 200 in 63 differences of each row, none in the columns.
    assert metrics.spatial_frequency(halves) == pytest.approx(np.sqrt(200**2 / 63))
    ramp = np.tile(np.arange(64.0), (80, 1))
    assert metrics.average_gradient(ramp) == pytest.approx(np.sqrt(0.5) * 64 * 80 / (63 * 79))
    assert metrics.entropy(ramp) == pytest.approx(6)


def test_values_of_mutual_information_and_correlation() -> None:
    columns = np.zeros((64, 64))
    columns[:, 32:] = 200
    rows = columns.T
    assert metrics.mutual_information(columns, columns) == pytest.approx(1)
    assert metrics.mutual_information(columns, rows) == pytest.approx(0, abs=1e-12)
    assert metrics.mi_bits(columns, rows, columns) == pytest.approx(1)
    assert metrics.mi_nats(columns, rows, columns) == pytest.approx(np.log(2))
    assert metrics.cc(columns, rows, columns) == pytest.approx(0.5)
    # The halved sum holds half of each: F - B = (A - B) / 2 correlates with A at 1 / sqrt(2).
    assert metrics.scd(columns, rows, (columns + rows) / 2) == pytest.approx(np.sqrt(2))


def test_levels_are_stretched_with_halves_rounded_up() -> None:
    # 3 of 0..10 becomes 76.5 and so 77, where 77 of 0..255 is already.
    levels = np.array([0.0, 3, 10])
    assert stretch(levels).tolist() == [0, 77, 255] and stretch(np.full(3, 7.0)).tolist() == [0, 0, 0]


def test_two_flat_sources_weigh_half_each() -> None:
    # Their variances are round-off, of either sign, and must not decide.
    fixed, reference = np.full((64, 64), 90.3), np.full((64, 64), 40.7)
    constant = (0.01 * 255) ** 2
    luminance = (2 * 90.3 * 40.7 + constant) / (90.3**2 + 40.7**2 + constant)
    assert metrics.structure(fixed, reference, fixed).piella_q == pytest.approx((1 + luminance) / 2, abs=1e-6)
    assert metrics.structure(fixed, reference, fixed).piella_qw == pytest.approx((1 + luminance) / 2, abs=1e-6)


def test_viff_goes_by_the_reference_where_the_gains_tie(sources: list[np.ndarray]) -> None:
    # Of a flat image and of an inverted one nothing is gained; only the latter had something to lose.
    flat, reference = np.full_like(sources[0], 100), sources[1]
    assert metrics.viff(flat, reference, 255 - reference) < 0.01
    assert metrics.viff(reference, flat, 255 - reference) > 0.99


def test_values_of_registration() -> None:
    label = np.tile(np.arange(64.0), (64, 1))
    assert metrics.registration_metrics(label, label) == pytest.approx(
        {"rmse": 0, "ssim": 1, "ncc": 1, "mi_label": 6}
    )
    shifted = metrics.registration_metrics(label + 10, label)
    assert shifted["rmse"] == pytest.approx(10)
    assert shifted["ncc"] == pytest.approx(1)
    assert shifted["ssim"] < 1
    assert metrics.ncc(255 - label, label) == pytest.approx(-1)


def test_endpoint_error() -> None:
    flow, truth = np.zeros((2, 4, 5)), np.zeros((2, 4, 5))
    flow[:, 0, 0] = 3, -4
    assert metrics.endpoint_error(flow, truth) == pytest.approx(5 / 20)
    mask = np.zeros((4, 5))
    mask[0, :2] = 1
    assert metrics.endpoint_error(flow, truth, mask) == pytest.approx(2.5)


def test_folding_share() -> None:
    y, x = np.mgrid[0.0:20, 0.0:30]
    zero = np.zeros_like(x)
    assert metrics.folding_share(np.stack([zero, zero])) == 0
    assert metrics.folding_share(np.stack([-2 * x, zero])) == 1
    assert metrics.folding_share(np.stack([zero, -y])) == 1
    # Mirrored in both axes is a rotation by 180 degrees, which does not fold.
    assert metrics.folding_share(np.stack([-2 * x, -2 * y])) == 0
    # x mirrored in the left half: columns 0 to 14 fold, the turning point by its mean slope of 0.
    assert metrics.folding_share(np.stack([np.where(x < 15, -2 * x, -30), zero])) == pytest.approx(16 / 30)


def test_folding_share_counts_what_the_jacobian_map_shows() -> None:
    flow = np.random.default_rng(1).normal(0, 1, (2, 40, 50))
    shown = jacobian_determinant(torch.from_numpy(flow)[None])
    assert metrics.folding_share(flow) == pytest.approx((shown <= 0).double().mean().item())


# --- bad input ----------------------------------------------------------------------------------------------

GOOD = np.zeros((64, 64))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            (GOOD, np.zeros((64, 65)), GOOD),
            r"reference: expected shape \(64, 64\) like fixed, found \(64, 65\)",
        ),
        ((GOOD, GOOD, np.zeros((64, 64, 3))), r"fused: expected a grey image .* found shape \(64, 64, 3\)"),
        ((np.zeros((63, 64)), GOOD, GOOD), r"fixed: expected at least 64 pixels"),
        ((GOOD, GOOD, GOOD + 300), "fused: expected grey levels in 0..255, found values from 300 to 300"),
        ((GOOD, GOOD - np.inf, GOOD), "reference: expected grey levels"),
        ((GOOD * np.nan, GOOD, GOOD), "fixed: expected grey levels"),
    ],
)
def test_bad_images_are_named(images: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.fusion_metrics(*images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.qabf(GOOD, GOOD, GOOD, variant="mine"), "xydeas, zliu, found 'mine'"),
        (lambda: metrics.registration_metrics(GOOD, np.zeros((32, 32))), "label: expected shape"),
        (lambda: metrics.folding_share(np.zeros((8, 8, 2))), r"flow: expected a flow of shape \(2, H, W\)"),
        (lambda: metrics.folding_share(np.full((2, 8, 8), np.nan)), "flow: expected finite values"),
        (
            lambda: metrics.endpoint_error(np.zeros((2, 8, 8)), np.zeros((2, 8, 9))),
            "true_flow: expected shape",
        ),
        (lambda: metrics.endpoint_error(*np.zeros((2, 2, 8, 8)), np.ones((4, 4))), "mask: expected shape"),
        (lambda: metrics.endpoint_error(*np.zeros((2, 2, 8, 8)), np.zeros((8, 8))), "at least one pixel"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three pairs of random images: grey fixed images, the others in colour."""
    rng = np.random.default_rng(5)
    for role in ("fixed", "reference", "fused", "aligned", "moving", "label"):
        for name in ("1", "2", "10"):
            shape = (64, 72) if role == "fixed" else (64, 72, 3)
            write_image(tmp_path / role / f"{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
    return {path.name: path for path in tmp_path.iterdir()}


def arguments(folders: dict[str, Path], *roles: str) -> list[str]:
    return [part for role in roles for part in (f"--{role}", str(folders[role]))]


def test_grey_files_are_read_exactly(tmp_path: Path) -> None:
    levels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    write_image(tmp_path / "grey.png", levels)
    np.testing.assert_array_equal(scoring.read_grey(tmp_path / "grey.png"), levels.astype(float))


def test_colour_files_are_read_as_luma(tmp_path: Path) -> None:
    write_image(tmp_path / "colour.png", np.tile(np.array([10, 200, 30], np.uint8), (64, 64, 1)))
    luma = 0.299 * 10 + 0.587 * 200 + 0.114 * 30
    np.testing.assert_allclose(scoring.read_grey(tmp_path / "colour.png"), luma, rtol=1e-6)


def test_command_scores_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    csv = tmp_path / "out" / "scores.csv"
    command = [*arguments(folders, *folders), "--csv", str(csv)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.score", *command, "--workers", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr
    table = pd.read_csv(csv, dtype={"name": str}).set_index("name")
    assert list(table.index) == ["1", "2", "10", "mean"]
    registration = ["rmse", "ssim", "ncc", "mi_label"]
    assert list(table.columns[: len(FIRST_COLUMNS)]) == FIRST_COLUMNS
    assert list(table.columns[-8:]) == [*registration, *(f"{metric}_before" for metric in registration)]
    images = {role: scoring.read_grey(path / "10.png") for role, path in folders.items()}
    expected = metrics.fusion_metrics(images["fixed"], images["reference"], images["fused"])
    colors = tuple(255.0 * read_image(folders[role] / "10.png", color=True) for role in ("reference", "fused"))
    expected |= metrics.fidelity_metrics(images["fixed"], images["aligned"], images["fused"], colors)
    expected |= metrics.registration_metrics(images["aligned"], images["label"])
    before = metrics.registration_metrics(images["moving"], images["label"])
    expected |= {f"{metric}_before": value for metric, value in before.items()}
    assert table.loc["10"].to_dict() == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(table.loc["mean"], table.iloc[:3].mean(), rtol=1e-8)


def test_grey_images_against_colour_labels_are_named(folders: dict[str, Path], tmp_path: Path, capsys) -> None:
    scoring.score_folders(workers=1, **folders)
    assert "rendering" not in capsys.readouterr().err
    for path in folders["label"].iterdir():
        write_image(tmp_path / "grey" / path.name, scoring.read_image(path))
    scoring.score_folders(workers=1, **folders | {"label": tmp_path / "grey"})
    lines = [line for line in capsys.readouterr().err.splitlines() if "another rendering" in line]
    assert [Path(line.split(":")[0]).parent.name for line in lines] == ["aligned", "moving"]
    assert all("expected an image in grey like" in line and "found one in colour" in line for line in lines)
    scoring.score_folders(workers=1, fixed=folders["fixed"], reference=folders["label"], fused=folders["fused"])
    assert "rendering" not in capsys.readouterr().err


def test_pixels_beyond_the_field_of_view_count_in_no_metric(folders: dict[str, Path], tmp_path: Path) -> None:
    files = {role: path / "1.png" for role, path in folders.items()} | {"name": "1"}
    shape = scoring.read_grey(files["fixed"]).shape
    seen = np.ones(shape, bool)
    seen[:, -6:] = False
    expected = scoring.score_pair(files, seen)
    assert expected["rmse"] != scoring.score_pair(files)["rmse"]
    changed = dict(files)
    for role in ("fixed", "aligned", "label", "fused", "reference"):
        image = scoring.read_image(files[role], color=None)
        image[:, -6:] = 0.5
        changed[role] = tmp_path / f"{role}.png"
        write_image(changed[role], image)
    actual = scoring.score_pair(changed, seen)
    counted = [name for name in expected if name != "name" and not name.endswith("_before")]
    assert [actual[name] for name in counted] == pytest.approx([expected[name] for name in counted], rel=1e-9)
    difference = scoring.read_grey(files["aligned"]) - scoring.read_grey(files["label"])
    assert expected["rmse"] == pytest.approx(np.sqrt((difference[:, :-6] ** 2).mean()))
    assert scoring.score_pair(files, np.ones(shape, bool)) == scoring.score_pair(files)


def test_command_without_registration(folders: dict[str, Path], tmp_path: Path) -> None:
    csv = tmp_path / "scores.csv"
    roles = arguments(folders, "fixed", "reference", "fused")
    assert score.main([*roles, "--csv", str(csv), "--workers", "1"]) == 0
    assert "rmse" not in pd.read_csv(csv).columns


def test_command_names_what_is_missing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders["fused"] / "2.png").unlink()
    roles = arguments(folders, "fixed", "reference", "fused")
    assert score.main([*roles, "--csv", str(tmp_path / "scores.csv")]) == 2
    error = capsys.readouterr().err
    assert str(folders["fused"]) in error and "none for 2" in error
    assert not (tmp_path / "scores.csv").exists()


def test_files_of_different_size_are_named(folders: dict[str, Path]) -> None:
    write_image(folders["fused"] / "2.png", np.zeros((80, 72)))
    roles = ("fixed", "reference", "fused")
    with pytest.raises(ImageError, match="fused/2.png.*72 x 64.*found 72 x 80"):
        scoring.score_folders(workers=1, **{role: folders[role] for role in roles})


@pytest.mark.parametrize("extra", [["--aligned"], ["--moving"], ["--label"], ["--workers", "0"]])
def test_command_refuses_options_that_do_not_fit(folders: dict[str, Path], extra: list[str]) -> None:
    extra = arguments(folders, extra[0][2:]) if len(extra) == 1 else extra
    with pytest.raises(SystemExit) as stopped:
        score.main([*arguments(folders, "fixed", "reference", "fused"), "--csv", "x.csv", *extra])
    assert stopped.value.code == 2


if __name__ == "__main__":
    pd.DataFrame(sample_scores()).to_csv(SAMPLE_METRICS, index=False, float_format="%.10g")


def test_normalised_mutual_information_by_hand():
    left, top = np.indices((8, 8)) // 4
    everywhere = np.ones((8, 8), bool)
    assert metrics.normalised_mutual_information(left, 5 - 3 * left, everywhere) == pytest.approx(2)
    assert metrics.normalised_mutual_information(left, top, everywhere) == pytest.approx(1)
    assert metrics.normalised_mutual_information(left, 0 * left, everywhere) == pytest.approx(1)
    # Where only one half counts, one of the images is constant.
    assert metrics.normalised_mutual_information(left, left + top, left == 0) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one pixel"):
        metrics.normalised_mutual_information(left, top, ~everywhere)
