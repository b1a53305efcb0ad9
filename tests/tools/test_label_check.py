import pytest
import torch

from tests.tools.test_unseen import Answer, Shifted
from tools.label_check import Estimates, estimate, judge, report


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
    assert table["misaligned"].tolist() == pytest.approx([4.0, 4.0], abs=1e-3)
    assert table["pairs"].tolist() == [2, 1]


def test_pairs_that_lie_right_are_not_misaligned_whatever_the_network_answers():
    table = judged(Shifted(), 3.0)
    assert table["best"].tolist() == [0.0, 0.0] and table["misaligned"].tolist() == [0.0, 0.0]
    assert (table["as it lies"] > table["with the answer"]).all()


def test_only_the_affine_part_of_an_answer_counts():
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0, ::2], flow[:, 0, 1::2] = 3.0, -1.0  # a shift of 1 px, and stripes

    class Stripes:
        def __call__(self, fixed, moving, passes, average):
            return Estimates(fixed, moving, flow=flow.repeat(len(fixed), 1, 2, 2), head=fixed)

    estimates = estimate(Stripes(), Shifted(), torch.device("cpu"))
    assert estimates.flow[:, 0].mean() == pytest.approx(1.0, abs=0.01)
    assert estimates.flow[:, 0].std() < 0.1  # of the answer itself it is 2


def test_the_report_has_a_line_a_patient_and_the_mean():
    lines = report(judged(Misaligned(), 4.0)).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["a", "b", "mean"]
    assert "| 3 | 4.00 | 1.00 | 4.00 |" in lines[-1]
