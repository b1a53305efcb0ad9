"""--batch-size: pairs of one size go through the network together, with the results of single pairs."""

import numpy as np
import pandas as pd
import pytest
import torch

import EDARFusion_test_val
from inference.pair_fuser import PairFuser
from models.edarfusion import EDARFusion
from models.outputs import Output
from tests.examples import folders, picture, read_table, run_command
from utils.imaging.images import read_image, write_image

WIDE = (72, 96)


class Counting(torch.nn.Module):
    """Runs a model and notes how many pairs each run had, and how many registrations."""

    def __init__(self, model: EDARFusion) -> None:
        super().__init__()
        self.model = model
        self.runs: list[tuple[int, int]] = []

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor, passes: int, average: bool, **extra) -> Output:
        self.runs.append((len(fixed), passes))
        return self.model(fixed, moving, passes, average, **extra)


def assert_same(results, singles) -> None:
    for result, single in zip(results, singles, strict=True):
        for name in ("fused", "aligned"):
            np.testing.assert_allclose(getattr(result, name), getattr(single, name), atol=1e-4)
        np.testing.assert_allclose(result.flow, single.flow, atol=1e-3)
        assert result.maps.keys() == single.maps.keys()
        for name, values in single.maps.items():
            np.testing.assert_allclose(result.maps[name], values, atol=1e-3)
        assert result.disagreement == pytest.approx(single.disagreement, abs=1e-4)


def test_pairs_of_one_size_run_together_and_give_what_single_ones_do(model):
    counting = Counting(model)
    fuse = PairFuser(counting, torch.device("cpu"), average=True, multistart=False)
    pairs = [{"fixed": picture(seed), "moving": picture(seed + 1)} for seed in (10, 20, 30)]
    pairs.insert(1, {"fixed": picture(40, WIDE), "moving": picture(41, WIDE)})
    results = fuse.together(pairs)
    assert [count for count, passes in counting.runs if passes] == [3, 1]
    singles = [fuse(**pair) for pair in pairs]
    assert_same(results, singles)
    assert np.abs(singles[0].flow - singles[2].flow).max() > 0.5  # so that an exchange of pairs would show
    assert all(result.seconds > 0 for result in results)


def test_colours_blanks_masks_and_known_fields_find_their_way_in_a_batch(model):
    counting = Counting(model)
    fuse = PairFuser(counting, torch.device("cpu"), average=True, multistart=False, colormap="hot", blend=0.5)
    mask = np.zeros((64, 80), bool)
    mask[20:30, 20:30] = True
    pairs = [
        {"fixed": picture(1), "moving": picture(2, channels=3)},
        {"fixed": picture(3), "moving": picture(4)},
        {"fixed": picture(5), "moving": np.zeros((64, 80), np.float32)},
        {"fixed": picture(6), "moving": picture(7), "mask": mask},
        {"fixed": picture(8), "moving": picture(9), "flow": np.full((2, 64, 80), 2, np.float32), "disagreement": 0.5,
         "expected_error": np.full((64, 80), 3, np.float32)},
    ]  # fmt: skip
    results = fuse.together(pairs)
    assert [count for count, passes in counting.runs if passes] == [2, 1]
    assert_same(results, [fuse(**pair) for pair in pairs])
    assert results[2].disagreement is None and (results[3].maps["gate"][mask] == 0).all()
    assert (results[4].flow == 2).all() and results[4].disagreement == 0.5
    assert results[4].expected_error == pytest.approx(3)


def test_further_starts_are_tried_for_pairs_of_a_batch(model):
    fuse = PairFuser(model, torch.device("cpu"), average=True)
    pairs = [{"fixed": picture(seed), "moving": picture(seed + 1)} for seed in (10, 20)]
    assert_same(fuse.together(pairs), [fuse(**pair) for pair in pairs])


def test_seconds_are_shared_by_the_pairs_of_a_batch(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("inference.pair_fuser.time.perf_counter", lambda: now[0])

    def slow(*inputs, **extra) -> Output:
        now[0] += 8.0
        return model(*inputs, **extra)

    fuse = PairFuser(slow, torch.device("cpu"))
    results = fuse.together([{"fixed": picture(seed), "moving": picture(seed + 1)} for seed in (10, 20, 30, 40)])
    assert [result.seconds for result in results] == [2.0] * 4  # the first run, which makes ready, does not count


def test_the_command_gives_the_same_table_and_images_in_batches(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=4, label=True), "--save-flow"]
    for offset, role in enumerate(("fixed", "moving", "label")):
        write_image(tmp_path / role / "0.png", picture(50 + offset, WIDE))
    assert run_command(checkpoint, tmp_path / "single", *options) == 0
    assert run_command(checkpoint, tmp_path / "batches", *options, "--batch-size", "3", "--workers", "2") == 0
    single, batches = (tmp_path / name / "CT" for name in ("single", "batches"))
    assert_same_tables(batches, single)
    for path in single.glob("fused/*.png"):
        assert np.abs(read_image(batches / "fused" / path.name) - read_image(path)).max() < 1.5 / 255
    for path in single.glob("flow/*.npy"):
        np.testing.assert_allclose(np.load(batches / "flow" / path.name), np.load(path), atol=1e-3)


def test_resume_goes_on_with_another_batch_size(checkpoint, tmp_path):
    options = ["--modality", "CT", *folders(tmp_path, pairs=5)]
    assert run_command(checkpoint, tmp_path / "single", *options) == 0
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    folder = tmp_path / "out/CT"
    table = read_table(folder / "metrics.csv")
    table[~table["name"].isin(["002", "003", "005"])].to_csv(folder / "metrics.csv", index=False)
    kept = (folder / "fused/001.png").stat()
    assert run_command(checkpoint, tmp_path / "out", *options, "--resume", "--batch-size", "2") == 0
    assert (folder / "fused/001.png").stat() == kept
    assert_same_tables(folder, tmp_path / "single/CT")


def test_a_batch_size_that_does_not_go_is_one_line(capsys):
    for line, text in (
        (["--engine", "openvino-bf16", "--batch-size", "4"], "--batch-size: expected 1 with --engine openvino-bf16"),
        (["--batch-size", "0"], "--batch-size"),
    ):
        with pytest.raises(SystemExit):
            EDARFusion_test_val.parse_arguments(line)
        assert text in capsys.readouterr().err


def assert_same_tables(folder, other) -> None:
    tables = [read_table(path / "metrics.csv") for path in (folder, other)]
    assert (tables[0]["seconds"] > 0).all()
    # The images are scored with their 8 bits, which rounding may move by one level.
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables), rtol=1e-2, atol=1e-2)
