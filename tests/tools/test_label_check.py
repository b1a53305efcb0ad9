"""tools/label_check.py: what mutual information says of an answer, and what cannot be judged is named."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.examples import SAMPLE, picture, sample_table
from tests.tools.test_unseen import Answer, Shifted
from tools import unseen
from tools.label_check import estimate, judge, main, report
from utils.arguments import DEFAULT_CHECKPOINT
from utils.imaging.images import write_image


class Misaligned(Shifted):
    """Pairs that count as aligned, and whose moving image lies 4 px beside the fixed one, with another contrast."""

    def __getitem__(self, number):
        pair = super().__getitem__(number)
        return pair._replace(moving_aligned=1 - pair.moving)


def judged(pairs: Shifted, answer: float):
    estimates = estimate(Answer(answer, still=answer), pairs, torch.device("cpu"), batch=2)
    return judge(estimates, ["a", "a", "b"]).assign(images="PET")


@pytest.mark.parametrize(("answer", "best"), [(4.0, 1.0), (2.0, 2.0), (-4.0, -1.0), (8.0, 0.5)])
def test_mutual_information_finds_the_misalignment_whatever_the_network_answers(answer, best):
    table = judged(Misaligned(), answer)
    assert table["best"].tolist() == [best, best]
    assert table["misalignment"].tolist() == pytest.approx([4.0, 4.0], abs=1e-3)
    assert table["pairs"].tolist() == [2, 1]


def test_pairs_that_lie_right_are_not_misaligned_whatever_the_network_answers():
    table = judged(Shifted(), 3.0)
    assert table["best"].tolist() == [0.0, 0.0] and table["misalignment"].tolist() == [0.0, 0.0]
    assert (table["nmi"] > table["nmi_aligned"]).all()


def test_the_truth_is_judged_by_the_same_measure():
    right, wrong = judged(Shifted(), 4.0), judged(Shifted(), -4.0)
    assert right["nmi_by_network"].tolist() == pytest.approx(right["nmi_by_truth"].tolist())
    assert (right["nmi_by_truth"] > right["nmi_deformed"] + 0.01).all()
    assert (wrong["nmi_by_network"] < wrong["nmi_by_truth"] - 0.01).all()


def test_an_answer_of_0_has_no_other_multiple():
    assert judged(Misaligned(), 0.0)["best"].tolist() == [0.0, 0.0]


def test_only_the_affine_part_of_an_answer_counts():
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0, ::2], flow[:, 0, 1::2] = 3.0, -1.0  # a shift of 1 px, and stripes

    class Stripes:
        def __call__(self, fixed, moving, passes, average):
            return SimpleNamespace(flow=flow.repeat(len(fixed), 1, 2, 2))

    estimates = estimate(Stripes(), Shifted(), torch.device("cpu"))
    assert estimates.flow[:, 0].mean() == pytest.approx(1.0, abs=0.01)
    assert estimates.flow[:, 0].std() < 0.1  # of the answer itself it is 2


def test_the_report_has_a_line_a_patient_and_the_mean():
    lines = report(judged(Misaligned(), 4.0)).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["a", "b", "mean"]
    assert "| 3 | 4.00 | 1.00 | 4.00 |" in lines[-1]


@pytest.mark.parametrize("command", [main, unseen.main])
def test_no_input_is_written_over(tmp_path, capsys, command):
    table = sample_table(tmp_path / "pairs.csv")
    before = table.read_bytes()
    line = ["--root", str(SAMPLE), "--csv", str(table), "--checkpoint", str(DEFAULT_CHECKPOINT), "--device", "cpu"]
    assert command([*line, "--output", str(table)]) == 2
    assert "an input that no result is written over (--output FILE)" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.fixture
def patients(tmp_path) -> Path:
    """Two patients in a table without the column group; no moving image of the second one shows anything."""
    rows = ["fixed,moving,modality,split"]
    for name, strength in (("1001", 1), ("1002", 1), ("2001", 0)):
        for number, role in enumerate(("fixed", "moving")):
            write_image(tmp_path / role / f"{name}.png", picture(number) * (strength if number else 1))
        rows.append(f"fixed/{name}.png,moving/{name}.png,CT,val")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(.+)[0-9]{3}", "patient 2: expected moving images with tissue, found none"),
     ("(", "group pattern: expected a regular expression, found '('")],
)  # fmt: skip
def test_what_cannot_be_judged_is_one_line(patients, capsys, pattern, message):
    line = ["--root", str(patients), "--csv", str(patients / "pairs.csv"), "--group-pattern", pattern]
    assert main([*line, "--checkpoint", str(DEFAULT_CHECKPOINT), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_pattern_tells_patients_where_the_table_does_not(patients, capsys):
    table = patients / "pairs.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:3]))
    line = ["--root", str(patients), "--csv", str(table), "--output", str(patients / "check.csv"), "--device", "cpu"]
    assert main([*line, "--checkpoint", str(DEFAULT_CHECKPOINT)]) == 0
    assert "| CT | 1 | 2 | " in capsys.readouterr().out
    assert (patients / "check.csv").read_text().startswith("group,pairs,answer,best,misalignment,nmi,")
