"""The files and the table of a run: what is written, and that it is what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.map_styles import MAPS
from evaluation.metrics import fusion_metrics, registration_metrics
from evaluation.scoring import read_grey
from inference.results.folder import ResultFolder
from inference.results.table import COLUMNS, FIDELITY_METRICS, FUSION_METRICS
from inference.summary import named, scored_against
from tests.examples import REPOSITORY, SHAPE, folders, pull, read_table, run_command, with_flows
from utils.geometry.field_of_view import field_of_view
from utils.imaging import images
from utils.imaging.images import read_image, write_image
from utils.maps import jacobian_determinant


@pytest.fixture(scope="module")
def sample_run(checkpoint, tmp_path_factory) -> Path:
    """The embedded sample's results, two processes scoring."""
    output = tmp_path_factory.mktemp("sample")
    assert run_command(checkpoint, output, "--save-flow", "--workers", "2") == 0
    return output


@pytest.mark.parametrize("modality", ["CT", "PET", "SPECT"])
def test_embedded_sample(sample_run, modality):
    folder = sample_run / modality
    table = read_table(folder / "metrics.csv")
    assert list(table.columns[: len(COLUMNS) + 2]) == [*COLUMNS, "epe", "epe_before"]
    assert set(table.columns[len(COLUMNS) + 2 :]) <= set(FIDELITY_METRICS[modality])
    assert len(table) == 4 and table["name"].iloc[-1] == "mean"
    names = table["name"].iloc[:-1]
    assert (table["reference"].iloc[:-1] == "label").all()
    assert table.drop(columns="reference").notna().all(axis=None)
    assert table["rmse"].iloc[-1] == pytest.approx(table["rmse"].iloc[:-1].mean())
    assert table["epe_before"].between(2, 6).all()
    assert sorted(p.name for p in folder.iterdir()) == [
        "aligned", "flow", "flow_inverse", "fused", "inputs.json", "metrics.csv", "report.html", "settings.json",
    ]  # fmt: skip
    for kind in ("fused", "aligned"):
        assert [p.stem for p in sorted((folder / kind).iterdir())] == list(names)
    assert all(name in (folder / "report.html").read_text() for name in names)


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
    flow = np.load(sample_run / "PET/flow" / f"{row['name']}.npy")
    seen = field_of_view(flow)
    expected = fusion_metrics(*(np.where(seen, images[role], 0) for role in ("fixed", "label", "fused")))
    for when, image, counted in (("", images["aligned"], seen), ("_before", images["moving"], None)):
        scores = registration_metrics(image, images["label"], counted)
        expected |= {f"{metric}{when}": scores[metric] for metric in ("rmse", "ssim", "ncc")}
    expected["folding"] = float((jacobian_determinant(torch.from_numpy(flow)[None]) <= 0).float().mean())
    assert {name: row[name] for name in expected if name in COLUMNS} == pytest.approx(
        {name: value for name, value in expected.items() if name in COLUMNS}, abs=1e-9, rel=1e-6
    )


@pytest.mark.parametrize("average", ["--average", "--no-average"])
def test_any_size(checkpoint, tmp_path, average):
    options = folders(tmp_path, pairs=1, shape=(200, 312))
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--save-flow", average) == 0
    flow, moving = np.load(tmp_path / "out/CT/flow/001.npy"), read_image(tmp_path / "moving/001.png")
    assert flow.shape == (2, 200, 312) and np.abs(flow).max() > 0.5
    assert np.abs(pull(moving, flow) - read_image(tmp_path / "out/CT/aligned/001.png") * 255).max() <= 1


def test_without_labels_columns_of_the_truth_are_empty(checkpoint, tmp_path):
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path)) == 0
    table = read_table(tmp_path / "out/CT/metrics.csv")
    assert list(table.columns[: len(COLUMNS)]) == list(COLUMNS) and list(table["name"]) == ["001", "002", "mean"]
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
    assert run_command(checkpoint, tmp_path / "out", "--csv", str(tmp_path / "all.csv"), "--split", "val") == 0
    for modality, name in (("CT", "001"), ("PET", "002")):
        scores = read_table(tmp_path / "out" / modality / "metrics.csv")
        assert list(scores["name"]) == [name, "mean"] and scores["rmse"].notna().all()
    options = ("--csv", str(tmp_path / "bare.csv"), "--root", str(tmp_path), "--modality", "SPECT")
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert len(read_table(tmp_path / "out/SPECT/metrics.csv")) == 4


def test_true_flows_give_the_endpoint_error(checkpoint, tmp_path):
    folders(tmp_path, label=True)
    options = ["--csv", str(with_flows(tmp_path)), "--save-flow"]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    scores = read_table(tmp_path / "out/CT/metrics.csv")
    assert scores["epe_before"].to_list() == pytest.approx([1, 2, 1.5])
    for number, actual in enumerate(scores["epe"].iloc[:2], 1):
        flow = np.load(tmp_path / f"out/CT/flow/{number:03}.npy")
        # The pictures are bright nearly everywhere, so nearly every place counts.
        assert actual == pytest.approx(np.hypot(flow[0] - number, flow[1]).mean(), rel=0.1)
    assert "EPE" in (tmp_path / "out/CT/report.html").read_text()


def test_the_endpoint_error_of_a_label_without_tissue_is_that_of_the_whole_image(checkpoint, tmp_path):
    folders(tmp_path, pairs=1, label=True)
    write_image(tmp_path / "label/001.png", np.zeros(SHAPE, np.float32))
    np.save(tmp_path / "flow.npy", np.full((2, *SHAPE), 3.0, np.float32))
    row = "fixed/001.png,moving/001.png,label/001.png,flow.npy"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving,label,flow\n{row}\n")
    options = ["--modality", "CT", "--csv", str(tmp_path / "pairs.csv")]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
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
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    assert "column name" in capsys.readouterr().err
    path.write_text("fixed,moving,name\n" + "\n".join(f"{row},{name}" for row, name in zip(rows, "ab", strict=True)))
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    assert sorted(p.name for p in (tmp_path / "out/CT/fused").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(("modality", "channels", "shape"), [
    ("PET", 1, (*SHAPE, 3)), ("SPECT", 3, (*SHAPE, 3)), ("CT", 3, (*SHAPE, 3)), ("CT", 1, SHAPE),
])  # fmt: skip
def test_channels_of_the_saved_images(checkpoint, tmp_path, modality, channels, shape):
    options = folders(tmp_path, pairs=1, channels=channels)
    assert run_command(checkpoint, tmp_path / "out", "--modality", modality, *options) == 0
    for kind in ("fused", "aligned"):
        with images.Image.open(tmp_path / "out" / modality / kind / "001.png") as image:
            saved = np.asarray(image)
        assert saved.shape == shape
        if channels == 1 and saved.ndim == 3:
            # A grey tracer is shown on a colour scale, its aligned image stays as it was measured.
            assert (saved == saved[..., :1]).all() == (kind == "aligned")
    page = (tmp_path / "out" / modality / "report.html").read_text()
    assert ("tracer, hot" in page) == (modality == "PET" and channels == 1)
    assert "shown in the scale hot" in page


def test_maps_and_figures(checkpoint, tmp_path):
    options = folders(tmp_path, pairs=1)
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *options, "--save-maps", "--save-figures") == 0
    kinds = [kind for kind in MAPS if kind != "expected_error"]  # which this network has not learned
    assert {p.name for p in (tmp_path / "out/CT/maps").iterdir()} == {*kinds, "values"}
    with np.load(tmp_path / "out/CT/maps/values/001.npz") as values:
        assert set(values) == set(kinds) and all(values[kind].shape == SHAPE for kind in kinds)
        assert values["jacobian"].mean() == pytest.approx(1, abs=0.1) and 0.15 <= values["gate"].min()
    figures = [tmp_path / f"out/CT/figures/{name}" for name in ("001.png", "strips/001.png")]
    for path in (*(tmp_path / f"out/CT/maps/{kind}/001.png" for kind in kinds), *figures):
        assert read_image(path).std() > 0
    page = (tmp_path / "out/CT/report.html").read_text()
    assert all(MAPS[kind].title in page for kind in kinds)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images(checkpoint, tmp_path, value):
    options = folders(tmp_path, pairs=1, label=True)
    for role in ("moving", "label") if value else ("fixed", "moving", "label"):
        write_image(tmp_path / role / "001.png", np.full(SHAPE, value))
    assert run_command(checkpoint, tmp_path / "out", "--modality", "PET", *options) == 0
    table = read_table(tmp_path / "out/PET/metrics.csv").drop(columns=["name", "reference"])
    assert np.isfinite(table.to_numpy(float)).all()


def test_the_table_says_what_fusion_is_scored_against(checkpoint, tmp_path, capsys):
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path, pairs=1)) == 0
    assert "the own aligned image (flatters)" in " ".join(re.split(r"[\s│]+", capsys.readouterr().out))
    assert scored_against(pd.DataFrame({"reference": ["label", "label"]})) == "the label"
    mixed = scored_against(pd.DataFrame({"reference": ["label", "aligned", "aligned"]}))
    assert mixed == "the own aligned image (flatters); of 1 the label"


def test_metrics_are_named_as_in_the_documents():
    names = [named(column) for column in ("rmse", "qabf", "qvif", "qcv", "seconds")]
    assert names == ["RMSE ↓", "Q^AB/F ↑", "VIFF ↑", "Q_CV ↓", "Seconds ↓"]


def test_one_pair_is_no_pairs(checkpoint, tmp_path, capsys):
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path, pairs=1)) == 0
    summary = capsys.readouterr().out
    assert "CT, 1 pair" in summary and "1 pairs" not in summary
    assert run_command(checkpoint, tmp_path / "out", "--modality", "CT", *folders(tmp_path, pairs=2)) == 0
    assert "CT, 2 pairs" in capsys.readouterr().out


def test_processes_that_score_start_without_torch():
    modules = "sys, EDARFusion_test_val, inference.chosen_pairs"
    command = f"import {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'openvino')))"
    assert subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY).returncode == 0


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


def test_a_pair_called_NA_is_found_again(tmp_path):
    folder = ResultFolder(tmp_path, "CT")
    folder.write_rows([{"name": "NA", "seconds": 1.5, "inputs": "0123"}])
    row = folder.read_rows()["NA"]
    assert (row["name"], row["seconds"], row["inputs"]) == ("NA", 1.5, "0123")
