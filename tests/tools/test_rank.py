"""tools/rank.py and tools/baselines.py: systems scored from their files, ranked, and run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tools import baselines, rank
from utils.arguments import SAMPLE_ROOT
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow, save_flow
from utils.imaging.images import read_image, write_image

NAMES = {"CT": ("simulated_070", "simulated_090"), "PET": ("simulated_076",)}
ROLES = ("fixed", "moving", "label", "flow")


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Three pairs of the sample with a table; the patient is the number's first digit."""
    rows = []
    for modality, names in NAMES.items():
        for name in names:
            files = {r: f"{modality}/{r}/{name}.{'npy' if r == 'flow' else 'png'}" for r in ROLES}
            rows.append({**files, "modality": modality, "group": name[-3:]})
    folder = tmp_path / "bench"
    for row in rows:
        for role in ROLES:
            (folder / row[role]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SAMPLE_ROOT / row[role], folder / row[role])
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture
def results(bench: Path, tmp_path: Path) -> dict[str, Path]:
    """``exact`` has the true flow; ``half`` half of it; ``images`` gives no flow, only what half of it aligns."""
    folders = {}
    for system, share in (("exact", 1.0), ("half", 0.5), ("images", 0.5)):
        folders[system] = tmp_path / system
        for modality, names in NAMES.items():
            for name in names:
                moving = read_image(bench / modality / "moving" / f"{name}.png")
                flow = share * load_flow(bench / modality / "flow" / f"{name}.npy", moving.shape)
                aligned = apply_flow(moving, flow)
                fixed = read_image(bench / modality / "fixed" / f"{name}.png")
                place = folders[system] / modality
                write_image(place / "aligned" / f"{name}.png", aligned)
                write_image(place / "fused" / f"{name}.png", (fixed + aligned) / 2)
                if system != "images":
                    save_flow(place / "flow" / f"{name}.npy", flow)
    return folders


def arguments(bench: Path, results: dict[str, Path], output: Path, *extra: str) -> list[str]:
    given = [part for name, folder in results.items() for part in ("--results", f"{name}={folder}")]
    return ["--csv", str(bench / "pairs.csv"), *given, "--output", str(output), "--workers", "1", *extra]


def test_systems_are_ranked_by_their_distance_to_the_truth(
    bench: Path, results: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "ranking"
    assert rank.main(arguments(bench, results, output)) == 0
    table = pd.read_csv(output / "ranking.csv")
    of_ct = table[table["modality"] == "CT"].set_index("system")
    # "images" gives no flow, so that all are ranked by RMSE; it has the images of "half".
    assert list(of_ct.index)[0] == "exact" and list(of_ct.index)[-1] == rank.BEFORE_ALIGNMENT
    assert of_ct.loc["half", "rank"] == of_ct.loc["images", "rank"] == 2
    scores = pd.read_csv(output / "CT_pairs.csv").set_index(["system", "name"])
    exact, half = (scores.loc[(system, "simulated_070")] for system in ("exact", "half"))
    before = scores.loc[(rank.BEFORE_ALIGNMENT, "simulated_070")]
    assert exact["epe"] == pytest.approx(0, abs=1e-5)
    # Half of the true flow leaves half of the error of no flow.
    assert half["epe"] == pytest.approx(before["epe"] / 2, rel=1e-5)
    assert np.isnan(scores.loc[("images", "simulated_070"), "epe"])
    assert exact["rmse"] < half["rmse"] < before["rmse"]
    assert np.isnan(before["qabf"]) and 0 < exact["qabf"] < 1
    page = (output / "ranking.html").read_text()
    assert "CT simulated_070" in page and "http" not in page
    assert (output / "error_against_time.png").stat().st_size > 1000


def test_the_checksum_follows_every_file(bench: Path, results: dict[str, Path]) -> None:
    pairs = rank.read_pairs(bench / "pairs.csv", bench)
    first = rank.results_checksum(results["half"], pairs)
    assert first == rank.results_checksum(results["half"], pairs) != rank.results_checksum(results["exact"], pairs)
    path = results["half"] / "PET" / "flow" / "simulated_076.npy"
    save_flow(path, np.load(path) + 1e-3)
    assert rank.results_checksum(results["half"], pairs) != first


def test_registration_is_scored_in_other_grey_levels_where_the_table_names_them(
    bench: Path, results: dict[str, Path], tmp_path: Path
) -> None:
    table = pd.read_csv(bench / "pairs.csv")
    for row in table.itertuples():
        for role in ("moving", "label"):
            write_image(bench / "grey" / role / f"{row.group}.png", read_image(bench / getattr(row, role)) / 2)
        table.loc[row.Index, ["grey_moving", "grey_label"]] = [f"grey/{r}/{row.group}.png" for r in ("moving", "label")]
    plain = rank.score_systems(rank.read_pairs(bench / "pairs.csv", bench), results, workers=1)
    table.to_csv(bench / "pairs.csv", index=False)
    grey = rank.score_systems(rank.read_pairs(bench / "pairs.csv", bench), results, workers=1)
    ratio = grey["CT"]["half"]["rmse"] / plain["CT"]["half"]["rmse"]
    np.testing.assert_allclose(ratio, 0.5, rtol=0.02)
    # Fusion is scored against the label all the same.
    pd.testing.assert_series_equal(grey["CT"]["half"]["qabf"], plain["CT"]["half"]["qabf"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("file", "expected a result for each of 2 pairs, found none for simulated_090"),
        ("modality", "expected a folder PET with the results"),
        ("label", "expected a column label"),
    ],
)
def test_what_is_missing_is_named(
    bench: Path, results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, change: str, message: str
) -> None:
    if change == "file":
        (results["half"] / "CT" / "flow" / "simulated_090.npy").unlink()
    elif change == "modality":
        shutil.rmtree(results["exact"] / "PET")
    else:
        pd.read_csv(bench / "pairs.csv").drop(columns=["label", "flow"]).to_csv(bench / "pairs.csv", index=False)
    assert rank.main(arguments(bench, results, tmp_path / "ranking")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("table", [b'name,seconds\n"x', b"name,seconds\nsimulated_070,fast\n", b"\xff\xfe\x00", b""])
def test_a_broken_table_beside_results_is_named(
    bench: Path, results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, table: bytes
) -> None:
    path = results["half"] / "CT" / "metrics.csv"
    path.write_bytes(table)
    assert rank.main(arguments(bench, {"half": results["half"]}, tmp_path / "ranking", "--modality", "CT")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert f"{path}: expected a CSV table with numbers in the column seconds, found " in line


def test_a_name_stands_once(bench: Path, results: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        rank.main(arguments(bench, results, bench / "out", "--results", "half=elsewhere"))
    assert "found 'half' more than once" in capsys.readouterr().err


# --- running the baselines ----------------------------------------------------------------------------------


def test_baselines_are_run_fused_and_resumed(bench: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []

    def register(name: str, fixed: np.ndarray, moving: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
        calls.append(name)
        if len(calls) == 2:
            raise baselines.RegistrationFailed("not done within 5 s")
        return np.zeros((2, *fixed.shape), np.float32), 1.5

    monkeypatch.setattr(baselines, "register_within", register)
    monkeypatch.setattr(baselines, "_missing_packages", lambda names: [])
    output = tmp_path / "out"
    command = ["--csv", str(bench / "pairs.csv"), "--output", str(output), "--systems", "rigid", "--workers", "1"]
    assert baselines.main([*command, "--time-limit", "5"]) == 0
    assert calls == ["rigid"] * 3
    table = pd.read_csv(output / "rigid" / "CT" / "metrics.csv").set_index("name")
    assert table.loc["simulated_070", "seconds"] > 1.5 and table.loc["simulated_090", "seconds"] > 5
    assert list(json.loads((output / "rigid" / "CT" / "failures.json").read_text())) == ["simulated_090"]
    assert "1 of 3 pairs failed, CT simulated_090 as not done within 5 s" in (output / "ranking.md").read_text()
    ranking = pd.read_csv(output / "ranking.csv").set_index(["modality", "system"])
    assert ranking.loc[("CT", "EDARFusion"), "rank"] == 1
    # Zero flow leaves the error of the pair as it lies.
    scores = pd.read_csv(output / "CT_pairs.csv").set_index(["system", "name"])
    assert scores.loc[("rigid", "simulated_070"), "epe"] == scores.loc[(rank.BEFORE_ALIGNMENT, "simulated_070"), "epe"]
    # The table of the result folder and the ranking score the same files alike.
    for column in ("qabf", "rmse", "folding"):
        assert scores.loc[("rigid", "simulated_070"), column] == pytest.approx(table.loc["simulated_070", column])
    # Nothing is registered twice, but other settings are refused.
    assert baselines.main([*command, "--time-limit", "5"]) == 0
    assert len(calls) == 3
    assert baselines.main([*command, "--time-limit", "6"]) == 2
    assert "settings.json" in capsys.readouterr().err
