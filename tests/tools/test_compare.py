"""tools/compare.py: statistics of hand-made tables, the report, the command, and the published systems."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from evaluation.comparison_views import figure_comparison, to_table
from evaluation.report.columns import METRICS
from tools import compare
from utils.imaging.images import read_image, write_image

SHARED = Path(__file__).resolve().parents[2] / "../shared"


def table(**columns: list[float]) -> pd.DataFrame:
    names = [f"pair {i}" for i in range(len(next(iter(columns.values()))))]
    return pd.DataFrame(columns, index=pd.Index(names, name="name"))


def row(summary: pd.DataFrame, metric: str, system: str) -> pd.Series:
    (actual,) = summary[(summary["metric"] == metric) & (summary["system"] == system)].to_dict("records")
    return pd.Series(actual)


# --- statistics ---------------------------------------------------------------------------------------------

OURS = table(qabf=[0.5, 0.6, 0.7, 0.8, 0.4, 0.9], rmse=[1, 2, 3, 4, 5, 6])
PEER = table(qabf=[0.4, 0.5, 0.71, 0.6, 0.4, 0.1], rmse=[2, 3.5, 2.9, 7, 9, 11])


def test_mean_and_sample_standard_deviation() -> None:
    actual = row(compare.summarise({"ours": OURS, "peer": PEER}, "ours"), "rmse", "ours")
    assert actual["pairs"] == 6
    assert actual["mean"] == pytest.approx(3.5)
    assert actual["std"] == pytest.approx(np.sqrt(3.5))
    assert np.isnan(actual["p"]) and np.isnan(actual["ours_better"])


def test_share_and_test_against_ours_follow_the_direction_of_the_metric() -> None:
    summary = compare.summarise({"peer": PEER, "ours": OURS}, "ours")
    higher, lower = row(summary, "qabf", "peer"), row(summary, "rmse", "peer")
    assert (higher["better"], lower["better"]) == ("higher", "lower")
    # Of six pairs one is a tie and one is worse, which is no win either.
    assert higher["ours_better"] == pytest.approx(4 / 6)
    assert lower["ours_better"] == pytest.approx(5 / 6)
    # Signed ranks of the differences 1, 1.5, -0.1, 3, 4, 5: the negative one has rank 1 of 6, and 2 of the
    # 64 sign patterns sum to 1 or less on one side.
    assert lower["p"] == pytest.approx(2 * 2 / 64)
    assert higher["p"] == pytest.approx(stats.wilcoxon(OURS["qabf"], PEER["qabf"]).pvalue)


def test_equal_systems_do_not_differ() -> None:
    actual = row(compare.summarise({"ours": OURS, "copy": OURS}, "ours"), "qabf", "copy")
    assert actual["p"] == 1
    assert actual["ours_better"] == 0


def test_systems_may_lack_metrics_but_not_pairs() -> None:
    summary = compare.summarise({"ours": OURS, "fused only": PEER[["qabf"]]}, "ours")
    assert set(summary.loc[summary["system"] == "fused only", "metric"]) == {"qabf"}
    with pytest.raises(ValueError, match="short: expected the same pairs as ours"):
        compare.summarise({"ours": OURS, "short": PEER.iloc[:4]}, "ours")
    with pytest.raises(ValueError, match="expected one of ours, peer, found mine"):
        compare.summarise({"ours": OURS, "peer": PEER}, "mine")


def test_pairs_are_matched_by_name_not_by_order() -> None:
    shuffled = compare.summarise({"ours": OURS, "peer": PEER.iloc[::-1]}, "ours")
    expected = compare.summarise({"ours": OURS, "peer": PEER}, "ours")
    pd.testing.assert_frame_equal(shuffled, expected)


def test_one_pair_has_no_spread() -> None:
    summary = compare.summarise({"ours": OURS.iloc[:1], "peer": PEER.iloc[:1]}, "ours")
    assert summary["std"].isna().all()
    assert "| Q^AB/F ↑ | **0.500** | 0.400 |" in compare.comparison_report(summary, "ours", "CT")


# --- report -------------------------------------------------------------------------------------------------


def test_report_marks_the_best_and_the_direction() -> None:
    summary = compare.summarise({"ours": OURS, "a|b": PEER[["rmse"]] - 2}, "ours")
    lines = compare.comparison_report(summary, "ours", "CT: ours, a|b").splitlines()
    assert lines[0] == "# CT: ours, a|b"
    assert r"| metric | ours | a\|b |" in lines
    assert any(re.fullmatch(r"\| Q\^AB/F ↑ \| \*\*0.650 \[0.5\d\d, 0.7\d\d\]\*\* \| – \|", line) for line in lines)
    assert any(line.startswith("| RMSE ↓ | **3.500 [2") and "| 3.900 [1" in line for line in lines)
    tested = row(summary, "rmse", "a|b")
    effect, share = f"{tested['effect']:+.2f}", f"{tested['ours_better']:.0%}"
    assert f"| RMSE ↓ | p = {tested['p_holm']:.3f}, r = {effect}, {share} |" in lines


def test_report_of_one_system_has_no_tests() -> None:
    report = compare.comparison_report(compare.summarise({"ours": OURS}, "ours"), "ours", "CT")
    assert "Wilcoxon" not in report


def test_table_has_effects_and_stars_where_the_corrected_test_is_clear() -> None:
    many = pd.concat([OURS] * 5, ignore_index=True)
    worse = many.assign(rmse=many["rmse"] + 1 + np.arange(30) / 30)
    summary = compare.summarise({"ours": many, "[b]": worse}, "ours")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(to_table(summary, "ours", "CT"))
    text = console.export_text()
    assert "RMSE ↓" in text and "Q^AB/F ↑" in text
    assert "[b]" in text and "] +1.00*" in text  # rmse: all pairs are worse
    assert "] +0.00 " in text  # qabf: no pair differs, no star
    assert "0.650 [" in text


def test_figure_has_a_panel_a_metric_with_every_interval() -> None:
    summary = compare.summarise({"ours": OURS, "peer": PEER[["rmse"]]}, "ours")
    panels = [axes for axes in figure_comparison(summary, "ours").axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [f"{METRICS['qabf'].text} ↑", "RMSE ↓"]
    drawn = {tuple(line.get_xdata()) for line in panels[1].lines}
    for system in ("ours", "peer"):
        actual = row(summary, "rmse", system)
        assert {(actual["low"], actual["high"]), (actual["mean"],)} <= drawn


# --- command ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Four pairs; ``good`` is the label with little noise, ``bad`` with much; grey files are darker."""
    rng = np.random.default_rng(0)
    for name in "1234":
        fixed, label = (np.kron(rng.integers(60, 196, (8, 9)), np.ones((8, 8))) for _ in range(2))
        images = {"fixed": fixed, "label": label, "grey_label": label / 2, "moving": np.roll(label, 3)}
        images["grey_moving"] = images["moving"] / 2
        for system, noise in (("good", 4), ("bad", 40)):
            images[f"{system}_fused"] = (fixed + label) / 2 + rng.normal(0, noise, label.shape)
            images[f"{system}_aligned"] = label + rng.normal(0, noise, label.shape)
        for role, image in images.items():
            write_image(tmp_path / role / f"{name}.png", image / 255)
    return {path.name: path for path in tmp_path.iterdir()}


def arguments(folders: dict[str, Path], output: Path, *extra: str) -> list[str]:
    command = ["--modality", "CT", "--ours", "good", "--output", str(output), "--workers", "1"]
    for role in ("fixed", "label", "moving"):
        command += [f"--{role}", str(folders[role])]
    for system in ("bad", "good"):
        command += ["--system", system, str(folders[f"{system}_fused"]), str(folders[f"{system}_aligned"])]
    return [*command, *extra]


def test_command_writes_report_summary_pairs_and_figure(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "comparison"
    assert compare.main(arguments(folders, output)) == 0
    assert sorted(path.name for path in output.iterdir()) == ["CT.csv", "CT.md", "CT.png", "CT_pairs.csv"]
    printed = capsys.readouterr().out
    assert "CT: bad, good" in printed and "|" not in printed  # a table, no Markdown
    assert read_image(output / "CT.png").std() > 0
    summary = pd.read_csv(output / "CT.csv")
    assert row(summary, "qabf", "bad")["ours_better"] == 1
    assert row(summary, "rmse", "good")["mean"] == pytest.approx(4, abs=0.2)
    assert row(summary, "rmse", "bad")["mean"] > row(summary, "rmse", "good")["mean"]
    assert row(summary, "ssim", compare.BEFORE_ALIGNMENT)["ours_better"] == 1
    assert "qabf" not in set(summary.loc[summary["system"] == compare.BEFORE_ALIGNMENT, "metric"])
    pairs = pd.read_csv(output / "CT_pairs.csv")
    assert list(pairs["system"].unique()) == ["bad", "good", compare.BEFORE_ALIGNMENT]
    of_good = pairs[pairs["system"] == "good"]
    assert of_good["qabf"].mean() == pytest.approx(row(summary, "qabf", "good")["mean"], rel=1e-8)
    assert "# CT: bad, good" in (output / "CT.md").read_text()


def test_registration_is_scored_on_grey_files_where_given(folders: dict[str, Path], tmp_path: Path) -> None:
    grey = ["--grey-label", str(folders["grey_label"]), "--grey-moving", str(folders["grey_moving"])]
    assert compare.main(arguments(folders, tmp_path / "colour")) == 0
    assert compare.main(arguments(folders, tmp_path / "grey", *grey)) == 0
    colour, grey = (pd.read_csv(tmp_path / folder / "CT.csv") for folder in ("colour", "grey"))
    expected = row(colour, "rmse", compare.BEFORE_ALIGNMENT)["mean"] / 2
    assert row(grey, "rmse", compare.BEFORE_ALIGNMENT)["mean"] == pytest.approx(expected, rel=0.02)
    assert row(grey, "rmse", "good")["mean"] > 30
    # Fusion is scored against --label all the same.
    assert row(grey, "qabf", "good")["mean"] == row(colour, "qabf", "good")["mean"]


def test_system_without_aligned_images(folders: dict[str, Path], tmp_path: Path) -> None:
    extra = ["--system", "fused only", str(folders["bad_fused"]), "-"]
    assert compare.main(arguments(folders, tmp_path / "out", *extra)) == 0
    summary = pd.read_csv(tmp_path / "out" / "CT.csv")
    actual = set(summary.loc[summary["system"] == "fused only", "metric"])
    assert "qabf" in actual and "rmse" not in actual


def test_command_names_a_missing_file(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders["bad_fused"] / "3.png").unlink()
    assert compare.main(arguments(folders, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert str(folders["bad_fused"]) in error and "none for 3" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ours", "mine"], "expected one of bad, good, found 'mine'"),
        (["--system", "good", "x", "y"], "found 'good' more than once"),
        (["--system", compare.BEFORE_ALIGNMENT, "x", "y"], "is the name of the moving images"),
        (["--grey-label", "x"], "--grey-moving and --grey-label go together"),
        (["--modality", "../CT"], "expected letters, digits"),
    ],
)
def test_command_refuses_options_that_do_not_fit(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(arguments(folders, tmp_path / "out", *extra))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# --- published systems --------------------------------------------------------------------------------------


def test_published_values_are_reproduced() -> None:
    pairs, published = SHARED / "data/unaligned/CT-MRI", SHARED / "data/published"
    if not published.is_dir():
        pytest.skip(f"{published} is absent")
    systems = {name: published / name / "CT-MRI" for name in ("BSAFusion", "EDARFusion")}
    scores = compare.compare_folders(
        {name: (folder / "fused", folder / "aligned") for name, folder in systems.items()},
        fixed=pairs / "MRI",
        reference=pairs / "CT_label",
        label=pairs / "CT_label",
        moving=pairs / "CT",
        workers=1,
    )
    summary = compare.summarise(scores, "EDARFusion")
    # The published means are over 20 pairs, of which half are public.
    assert row(summary, "qabf", "BSAFusion")["mean"] == pytest.approx(0.38, abs=0.03)
    assert row(summary, "qabf", "EDARFusion")["mean"] == pytest.approx(0.32, abs=0.03)
    assert row(summary, "rmse", "BSAFusion")["mean"] == pytest.approx(37.9, abs=3)
    assert row(summary, "rmse", "EDARFusion")["mean"] == pytest.approx(43.4, abs=3)
    assert row(summary, "rmse", compare.BEFORE_ALIGNMENT)["mean"] == pytest.approx(47.6, abs=3)
