"""Which network is used and how: checkpoint, engine, passes, averaging, other starts."""

import json
import sys

import numpy as np
import pytest

from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import folders, read_table, run_command
from tools.publish import publish
from utils.arguments import DEFAULT_CHECKPOINT
from utils.imaging.images import read_image


def test_a_checkpoint_of_one_modality_takes_tables_of_it(model, tmp_path, capsys):
    path = tmp_path / "ct.safetensors"
    save_checkpoint(path, model, modality="CT", training={"note": "untrained"}, metrics={})
    folders(tmp_path)
    rows = [f"fixed/{name}.png,moving/{name}.png" for name in ("001", "002")]
    (tmp_path / "ct.csv").write_text(f"fixed,moving,modality\n{rows[0]},CT\n{rows[1]},CT\n")
    (tmp_path / "both.csv").write_text(f"fixed,moving,modality\n{rows[0]},CT\n{rows[1]},PET\n")
    assert run_command(path, tmp_path / "out", "--csv", str(tmp_path / "ct.csv")) == 0
    assert run_command(path, tmp_path / "both", "--csv", str(tmp_path / "both.csv")) == 2
    assert f"{path}: expected a checkpoint for all, found one for CT" in capsys.readouterr().err


def test_settings_of_the_checkpoint_are_the_defaults(model, tmp_path):
    path = tmp_path / "two.safetensors"
    training = {"inference": {"passes": 2, "average": True}, "note": "untrained"}
    save_checkpoint(path, model, modality="CT", training=training, metrics={})
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--save-flow"]
    flows, tables = [], []
    for number, more in enumerate(([], ["--passes", "2", "--average"], ["--passes", "1"], ["--no-average"])):
        assert run_command(path, tmp_path / str(number), *options, *more) == 0
        flows.append(np.load(tmp_path / str(number) / "CT/flow/001.npy"))
        tables.append(read_table(tmp_path / str(number) / "CT/metrics.csv"))
    assert (tables[0]["disagreement"] > 0).all() and "disagreement" not in tables[3]
    assert np.array_equal(flows[0], flows[1])
    assert not np.allclose(flows[0], flows[2]) and not np.allclose(flows[0], flows[3])


def test_the_luma_of_spect_is_fitted_unless_told_otherwise(checkpoint, tmp_path, capsys):
    images = folders(tmp_path, pairs=1, channels=3)
    cases = (("SPECT", [], 24), ("SPECT", ["--luma-steps", "2"], 2), ("SPECT", ["--luma-steps", "0"], 0),
             ("SPECT", ["--colour", "luma"], 0), ("PET", [], 0), ("PET", ["--luma-steps", "2"], 2))  # fmt: skip
    fused = {}
    for number, (modality, more, steps) in enumerate(cases):
        folder = tmp_path / str(number) / modality
        assert run_command(checkpoint, folder.parent, "--modality", modality, *images, *more) == 0
        assert json.loads((folder / "settings.json").read_text())["luma_steps"] == steps
        report = (folder / "report.html").read_text()
        assert (f"of coloured pairs fitted in {steps} steps" in report) == bool(steps)
        fused[number] = (folder / "fused/001.png").read_bytes()
    assert len({fused[number] for number in (0, 1, 2, 3)}) == 4 and fused[2] == fused[4] and fused[1] == fused[5]
    capsys.readouterr()
    assert run_command(checkpoint, tmp_path / "0", "--modality", "SPECT", *images, *cases[1][1], "--resume") == 2
    assert "expected results with luma_steps 2 to resume, found some with luma_steps 24" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run_command(checkpoint, tmp_path / "out", "--modality", "SPECT", *images, "--luma-steps", "-1")


def test_other_starts_are_tried_unless_told_otherwise(model, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("inference.pair_fuser.register_from_afar", lambda *given: calls.append(given) or given[-1])
    options = ["--modality", "CT", *folders(tmp_path, pairs=2)]
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, model, modality="CT", training={}, metrics={})
    for more, expected in ((["--average"], 2), (["--average", "--no-multistart"], 0), ([], 0)):
        calls.clear()
        assert run_command(path, tmp_path / "out", *options, *more) == 0
        assert len(calls) == expected
        settings = json.loads((tmp_path / "out/CT/settings.json").read_text())
        assert settings["multistart"] == (expected > 0)


def test_a_barely_trained_network_is_named_and_tries_no_other_starts(model, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("inference.pair_fuser.register_from_afar", lambda *given: calls.append(given) or given[-1])
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--average"]
    for left, barely in ((3.6, True), (3.2, False)):
        path = tmp_path / f"{left}.safetensors"
        save_checkpoint(path, model, modality="CT", training={}, metrics={"epe_CT": left, "zero_CT": 4.0})
        assert run_command(path, tmp_path / "out", *options) == 0
        captured = capsys.readouterr()
        message = f"{path}: expected a network trained to remove displacement, found one that left 90 % of it"
        assert (message in captured.err) == barely
        assert not (barely and "look closely" in captured.out)
        assert bool(calls) != barely


def test_pairs_that_are_aligned_can_be_fused_only(model, tmp_path):
    path = tmp_path / "average.safetensors"
    training = {"inference": {"passes": 2, "average": True}, "note": "untrained"}
    save_checkpoint(path, model, modality="PET", training=training, metrics={})
    options = ["--modality", "PET", *folders(tmp_path, channels=3, label=True), "--passes", "0"]
    output = tmp_path / "out"
    assert run_command(path, output, *options) == 0
    for moving in (tmp_path / "moving").iterdir():
        aligned = read_image(output / "PET/aligned" / moving.name, color=True)
        assert np.array_equal(aligned, read_image(moving, color=True))
    table = read_table(output / "PET/metrics.csv")
    assert np.array_equal(table["rmse"], table["rmse_before"]) and "disagreement" not in table
    settings = json.loads((output / "PET/settings.json").read_text())
    assert settings["passes"] == 0 and settings["average"] is False
    with pytest.raises(SystemExit, match="2"):
        run_command(path, output, *options[:-1], "-1")


def test_a_fusion_without_training_is_named(checkpoint, model, tmp_path, capsys):
    # Of a run broken off in its registration: the stage says so; after `tools.publish` only the weights do.
    path = tmp_path / "broken_off.safetensors"
    training = {"stage": "registration", "step": 5, "stage_step": 0, "options": {"stage": "all"}, "history": []}
    save_checkpoint(path, EDARFusion("tiny"), modality="all", training=training, metrics={})
    publish(path, tmp_path / "published.safetensors")
    options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
    for weights in (path, tmp_path / "published.safetensors"):
        assert run_command(weights, tmp_path / "out", *options) == 0
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "fusion" in line)
        assert f"{weights}: expected a trained fusion, found an untrained one" in line
    # A run of the registration alone that began with a trained fusion (--init) has one.
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(trained, model, modality="all", training=training, metrics={})
    for weights in (trained, *DEFAULT_CHECKPOINT.parent.glob("*.safetensors")):
        assert run_command(weights, tmp_path / "out", *options) == 0
        assert "untrained" not in capsys.readouterr().err


def test_an_engine_computes_what_is_written(checkpoint, tmp_path):
    pytest.importorskip("openvino")
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--engine", "openvino-bf16"]
    if run_command(checkpoint, tmp_path / "out", *options) == 2:
        pytest.skip("this processor does not compute in bfloat16")
    assert "openvino-bf16" in (tmp_path / "out/CT/report.html").read_text()
    assert json.loads((tmp_path / "out/CT/settings.json").read_text())["engine"] == "openvino-bf16"


def test_an_engine_whose_package_is_lacking_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "inference.openvino_model", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--engine", "openvino-bf16"]
    assert run_command(checkpoint, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--engine openvino-bf16: expected the package openvino (pip install" in line and line.endswith("found none")
