"""What must hold for every input: readers, padder, warp and metrics under hypothesis, and a short run of the fuzzer."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from data.table import DataError, read_table
from evaluation import metrics
from tests import fuzz_inputs
from utils.filters import Padder
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import ImageError, check_same_size, read_image, write_image
from utils.imaging.pairing import list_images, pair_files
from utils.maps import jacobian_determinant

settings.register_profile(
    "repeatable",
    deadline=None,  # no timing in tests
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")

SIDES = st.integers(64, 90)
SHORT = st.integers(2, 40)
SEEDS = st.integers(0, 2**32 - 1)
STEMS = st.text("abcXYZ019_-é .", min_size=1, max_size=8).filter(lambda s: s == s.strip(" .") and s[0] != "-")


def array(seed: int, *shape: int, levels: int = 256) -> np.ndarray:
    """Whole grey levels; hypothesis draws the seed, since drawing thousands of pixels would take it too long."""
    return np.random.default_rng(seed).integers(0, levels, shape)


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- readers --------------------------------------------------------------------------------------------------


@given(SEEDS, SIDES, SIDES, st.sampled_from([1, 2, 256]), st.sampled_from([".png", ".tif", ".bmp"]))
def test_grey_files_are_read_exactly(tmp_path, seed, height, width, levels, suffix):
    values = array(seed, height, width, levels=levels).astype(np.uint8)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(values).save(path)
    assert np.array_equal(read_image(path), values / np.float32(255))


@given(SEEDS, SIDES, SIDES)
def test_colour_files_are_read_exactly_and_luma_lies_between_the_channels(tmp_path, seed, height, width):
    values = array(seed, height, width, 3).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(values).save(path)
    assert np.array_equal(read_image(path, color=True), values / np.float32(255))
    luma = read_image(path)
    assert luma.shape == (height, width)
    assert (luma >= values.min(axis=2) / 255 - 1e-6).all() and (luma <= values.max(axis=2) / 255 + 1e-6).all()


@given(SEEDS, SIDES, SIDES)
def test_16_bit_files_are_read_exactly(tmp_path, seed, height, width):
    values = array(seed, height, width, levels=65536).astype(np.uint16)
    path = tmp_path / "image.png"
    Image.fromarray(values).save(path)
    assert np.array_equal(read_image(path), values.astype(np.float32) / np.float32(65535))


@given(SEEDS, SIDES, SIDES, st.booleans())
def test_written_images_come_back_within_half_a_grey_level(tmp_path, seed, height, width, color):
    image = np.random.default_rng(seed).uniform(-0.2, 1.2, (height, width, 3) if color else (height, width))
    path = tmp_path / "image.png"
    write_image(path, image)
    once = read_image(path, color=color)
    assert np.abs(once - image.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    # From then on nothing changes any more.
    write_image(path, once)
    assert np.array_equal(read_image(path, color=color), once)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"P5\n"]))
def test_nonsense_is_refused_in_one_line(tmp_path, data, magic):
    path = tmp_path / "image.png"
    path.write_bytes(magic + data)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@given(st.text(max_size=300))
@example("a" * 300)
@example("zero\x00byte")
def test_any_path_gives_an_image_or_an_image_error(name):
    with pytest.raises(ImageError):
        read_image(Path("no such folder") / ("x" + name))


@given(st.lists(st.lists(st.text(max_size=12), min_size=1, max_size=4), max_size=5), st.booleans())
def test_any_table_is_read_or_refused_in_one_line(tmp_path, rows, header):
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    text = ("fixed,moving,label,split\n" if header else "") + buffer.getvalue()
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    # There are no images, so that no table can be right.
    with pytest.raises(DataError) as caught:
        read_table(path, tmp_path)
    assert "\n" not in str(caught.value) and "\r" not in str(caught.value)


ROWS = st.tuples(STEMS, STEMS, st.sampled_from(["CT", "PET"]))


@given(st.lists(ROWS, min_size=1, max_size=6, unique_by=lambda row: row[0]))
def test_good_tables_come_back_as_they_were(tmp_path, rows):
    rows = [(f"{fixed}.png", f"{moving}.png", modality) for fixed, moving, modality in rows]
    for fixed, moving, _ in rows:
        (tmp_path / fixed).touch()
        (tmp_path / moving).touch()
    table = pd.DataFrame(rows, columns=["fixed", "moving", "modality"])
    table.to_csv(tmp_path / "table.csv", index=False)
    read = read_table(tmp_path / "table.csv", tmp_path)
    assert read[["fixed", "moving", "modality"]].to_numpy().tolist() == table.to_numpy().tolist()
    assert read["name"].tolist() == [Path(fixed).stem for fixed, _, _ in rows]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True))
def test_numbered_files_pair_in_the_order_of_their_numbers(tmp_path_factory, numbers):
    root = tmp_path_factory.mktemp("pairs")
    for folder in ("a", "b"):
        (root / folder).mkdir()
        for number in numbers:
            (root / folder / f"slice{number}.png").touch()
    assert [p.stem for p in list_images(root / "a")] == [f"slice{n}" for n in sorted(numbers)]
    pairs = pair_files(fixed=root / "a", moving=root / "b")
    assert [pair["name"] for pair in pairs] == [f"slice{n}" for n in sorted(numbers)]
    assert all(pair["fixed"].name == pair["moving"].name for pair in pairs)


@given(SHORT, SHORT, SHORT, SHORT)
def test_sizes_are_compared_whole(height, width, other_height, other_width):
    images = {"fixed": np.zeros((height, width)), "moving": np.zeros((other_height, other_width, 3)), "label": None}
    paths = {"fixed": "f.png", "moving": "m.png"}
    if (height, width) == (other_height, other_width):
        check_same_size(images, paths)
    else:
        with pytest.raises(ImageError, match="m.png: expected the size of f.png"):
            check_same_size(images, paths)


# --- padder ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), SEEDS)
def test_padding_can_be_undone(height, width, stride, seed):
    image, padder = tensor(seed, 2, 3, height, width), Padder((height, width), stride)
    padded = padder.pad(image)
    assert padded.shape[2] % stride == padded.shape[3] % stride == 0
    assert padded.shape[2] - height < stride and padded.shape[3] - width < stride
    assert torch.equal(padder.unpad(padded), image)
    assert padded.min() == image.min() and padded.max() == image.max()


# --- warp -----------------------------------------------------------------------------------------------------


@given(SEEDS, SHORT, SHORT)
def test_zero_flow_is_the_identity(seed, height, width):
    image = 100 * tensor(seed, 1, 1, height, width) - 50
    assert torch.equal(warp(image, torch.zeros(1, 2, height, width)), image)


@given(SEEDS, SHORT, SHORT, st.floats(0.1, 100))
def test_warped_values_stay_between_those_of_the_image(seed, height, width, length):
    image, flow = tensor(seed, 1, 1, height, width), length * (tensor(seed + 1, 1, 2, height, width) - 0.5)
    warped = warp(image, flow)
    assert warped.min() >= image.min() - 1e-5 and warped.max() <= image.max() + 1e-5


@given(SEEDS, SHORT, SHORT, st.floats(-3, 3), st.floats(-3, 3))
def test_warp_is_linear_in_the_image(seed, height, width, a, b):
    x, y = tensor(seed, 2, 1, 1, height, width)
    flow = 8 * (tensor(seed + 1, 1, 2, height, width) - 0.5)
    assert torch.allclose(warp(a * x + b * y, flow), a * warp(x, flow) + b * warp(y, flow), atol=1e-4)


@given(SEEDS, SHORT, SHORT, st.integers(-45, 45), st.integers(-45, 45))
def test_whole_shifts_pick_the_pixel_that_the_convention_names(seed, height, width, x, y):
    image = tensor(seed, 1, 1, height, width)
    flow = torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, height, width)
    rows, columns = (torch.arange(height) + y).clamp(0, height - 1), (torch.arange(width) + x).clamp(0, width - 1)
    assert torch.allclose(warp(image, flow), image[:, :, rows][..., columns], atol=1e-4)


@given(SEEDS, SHORT, SHORT)
def test_warp_turns_with_the_image(seed, height, width):
    image, flow = tensor(seed, 1, 1, height, width), 6 * (tensor(seed + 1, 1, 2, height, width) - 0.5)
    mirrored = warp(image.flip(3), flow.flip(3) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1))
    assert torch.allclose(mirrored.flip(3), warp(image, flow), atol=1e-4)
    transposed = warp(image.transpose(2, 3), flow.transpose(2, 3).flip(1))
    assert torch.allclose(transposed.transpose(2, 3), warp(image, flow), atol=1e-4)


@given(SHORT, SHORT, SHORT, SHORT, st.floats(-9, 9), st.floats(-9, 9))
def test_resized_constant_flow_is_the_same_share_of_the_image(height, width, new_height, new_width, x, y):
    flow = torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, height, width)
    resized = resize_flow(flow, (new_height, new_width))
    assert resized.shape == (1, 2, new_height, new_width)
    assert torch.allclose(resized[:, 0] / new_width, torch.tensor(x / width, dtype=torch.float32), atol=1e-5)
    assert torch.allclose(resized[:, 1] / new_height, torch.tensor(y / height, dtype=torch.float32), atol=1e-5)


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_shifts_compose_and_invert_as_numbers_do(x, y, further_x, further_y):
    a, b = (
        torch.tensor(shift, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, 6, 7)
        for shift in ((x, y), (further_x, further_y))
    )
    assert torch.allclose(compose(a, b), a + b, atol=1e-4) and torch.allclose(invert(a), -a, atol=1e-4)


# --- metrics --------------------------------------------------------------------------------------------------

GREY = st.tuples(SEEDS, st.sampled_from([1, 2, 16, 256]))
"""Seed and number of grey levels of an image; one level makes it constant."""


def grey(draw: tuple[int, int], height: int = 64, width: int = 70) -> np.ndarray:
    return array(draw[0], height, width, levels=draw[1]).astype(float)


@settings(max_examples=15)
@given(GREY, GREY, GREY)
def test_fusion_metrics_are_finite_in_range_and_symmetric_in_the_sources(a, b, f):
    fixed, reference, fused = grey(a), grey(b), grey(f)
    scores = metrics.fusion_metrics(fixed, reference, fused)
    assert all(np.isfinite(value) for value in scores.values()), scores
    ranges = {"qabf": (0, 1), "qs": (-1, 1), "qcb": (0, 1), "qy": (-1, 1), "en": (0, 8), "sd": (0, 127.5),
              "cc": (-1, 1), "scd": (-2, 2), "mi": (0, 16), "qabf_zliu": (0, 1), "qvif": (0, np.inf),
              "qcv": (0, np.inf)}
    for name, (low, high) in ranges.items():
        assert low - 1e-9 <= scores[name] <= high + 1e-9, (name, scores[name])
    exchanged = metrics.fusion_metrics(reference, fixed, fused)
    for name in ("qabf", "qs", "mi", "cc", "scd", "qssim", "en"):
        assert exchanged[name] == pytest.approx(scores[name], abs=1e-9), name


@given(GREY, GREY, GREY)
def test_rmse_is_a_distance(a, b, c):
    a, b, c = grey(a), grey(b), grey(c)
    assert metrics.rmse(a, a) == 0 and metrics.rmse(a, b) == metrics.rmse(b, a)
    assert metrics.rmse(a, c) <= metrics.rmse(a, b) + metrics.rmse(b, c) + 1e-9


@given(GREY, st.floats(0.2, 0.9), st.floats(0, 20))
def test_ncc_is_blind_to_gain_and_offset(a, gain, offset):
    image = grey(a)
    varied = gain * image + offset
    assume(image.std() > 0)
    assert metrics.ncc(image, varied) == pytest.approx(1) and metrics.ncc(image, 255 - varied) == pytest.approx(-1)


@given(GREY, GREY)
def test_similarities_are_symmetric_and_bounded_by_the_image_itself(a, b):
    a, b = grey(a), grey(b)
    assert metrics.ssim(a, a) == pytest.approx(1) and metrics.ssim(a, b) <= 1
    assert metrics.ssim(a, b) == pytest.approx(metrics.ssim(b, a), abs=1e-9)
    shared = metrics.mutual_information(a, b)
    assert shared == pytest.approx(metrics.mutual_information(b, a), abs=1e-9)
    assert -1e-9 <= shared <= min(metrics.entropy(a), metrics.entropy(b)) + 1e-9
    assert metrics.mutual_information(a, a) == pytest.approx(metrics.entropy(a), abs=1e-9)


@given(GREY)
def test_statistics_do_not_change_with_mirroring(a):
    image = grey(a)
    for metric in (metrics.entropy, metrics.standard_deviation, metrics.spatial_frequency, metrics.average_gradient):
        value = metric(image)
        assert value >= 0 and metric(image[::-1]) == pytest.approx(value) == metric(image.T)


@given(SEEDS, SHORT, SHORT, st.floats(0, 5))
def test_folding_share_agrees_with_the_determinant(seed, height, width, length):
    flow = length * (2 * tensor(seed, 1, 2, height, width) - 1)
    determinant = jacobian_determinant(flow)
    # Where round-off decides the sign both answers are right.
    assume(determinant.abs().min() > 1e-4)
    share = metrics.folding_share(flow[0].numpy())
    assert 0 <= share <= 1 and share == pytest.approx((determinant <= 0).float().mean().item(), abs=1e-6)


@given(SEEDS, SHORT, SHORT, st.floats(-20, 20), st.floats(-20, 20))
def test_endpoint_error_of_a_constant_offset_is_its_length(seed, height, width, x, y):
    flow = 9 * tensor(seed, 2, height, width).double().numpy()
    offset = np.array([x, y])[:, None, None]
    assert metrics.endpoint_error(flow, flow) == 0
    assert metrics.endpoint_error(flow + offset, flow) == pytest.approx(np.hypot(x, y), abs=1e-9)


@given(hnp.arrays(float, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e3, 1e3)))
def test_small_or_odd_arrays_are_scored_or_refused_with_a_reason(values):
    for metric in (metrics.entropy, metrics.spatial_frequency, metrics.folding_share):
        try:
            assert np.isfinite(metric(values))
        except ValueError as error:
            assert "expected" in str(error) and "found" in str(error)


# --- fuzzing --------------------------------------------------------------------------------------------------


def test_damaged_files_give_an_image_error_or_what_they_hold(tmp_path):
    outcomes = fuzz_inputs.run(200, seed=1, keep=tmp_path)
    assert [outcome.detail for outcome in outcomes if outcome.result == "failure"] == []
    # Every result is there for all kinds, so that the inputs are neither all whole nor all rubbish.
    assert {(outcome.kind, outcome.result) for outcome in outcomes} == {
        (kind, result) for kind in fuzz_inputs.KINDS for result in ("success", "FileError")
    }
    assert not list(tmp_path.iterdir())


def test_the_fuzzer_keeps_and_counts_what_fails(tmp_path, monkeypatch, capsys):
    def broken(path: Path, **_) -> None:
        raise ZeroDivisionError("as if the reader had a fault")

    monkeypatch.setattr(fuzz_inputs, "read_image", broken)
    assert fuzz_inputs.main(["--count", "8", "--seed", "3", "--keep", str(tmp_path)]) == 1
    kept = [f"seed3_{name}" for name in ("0.png", "2.tif", "4.png", "6.tif")]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    printed = capsys.readouterr()
    assert "2 failure" in printed.out and "ZeroDivisionError" in printed.err and "seed3_0.png" in printed.err
