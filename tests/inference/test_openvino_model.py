"""inference/openvino_model.py: OpenVINO gives what the network gives, size by size."""

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from tools.export import sample_pair
from utils.arguments import DEFAULT_CHECKPOINT
from utils.files import InputError

pytest.importorskip("openvino", reason="openvino is optional (requirements-openvino.txt)")
from inference.openvino_model import OpenVINOModel  # noqa: E402

SIZE = (72, 100)
"""No multiple of any stride, so that padding is part of the graph."""


@pytest.fixture(scope="module")
def model() -> EDARFusion:
    return load_checkpoint(DEFAULT_CHECKPOINT).model


def by_openvino(model: EDARFusion) -> OpenVINOModel:
    try:
        return OpenVINOModel(model)
    except InputError as error:
        pytest.skip(str(error))


def test_openvino_gives_what_the_network_gives(model):
    stand_in, pair = by_openvino(model), sample_pair(SIZE)
    with torch.inference_mode():
        actual, expected = stand_in(*pair), model(*pair)
    assert actual.expected_error is expected.expected_error is None
    for name, ours, theirs in zip(expected._fields[:-1], actual[:-1], expected[:-1], strict=True):
        # Across a sharp edge a tenth of a px moves single pixels far; in the mean over the image bfloat16 stays near.
        most = 0.19 if "flow" in name else 0.15
        assert (ours - theirs).abs().max() <= most, name
        assert (ours - theirs).abs().mean() <= most / 10, name
    assert expected.flow.abs().max() > 1.9


def test_passes_and_averaging_count_as_in_the_network(model):
    fixed, moving = sample_pair((96, 96))
    moving = moving.roll(7, dims=3)
    stand_in = by_openvino(model)
    with torch.inference_mode():
        actual, expected = (run(fixed, moving, passes=2, average=True) for run in (stand_in, model))
        once = model(fixed, moving, average=True)
    assert (actual.flow - expected.flow).abs().mean() < 0.3 * (expected.flow - once.flow).abs().mean()
    assert expected.disagreement > 0
    assert actual.disagreement.item() == pytest.approx(expected.disagreement.item(), rel=0.1)


def test_results_outlive_the_next_pair_and_a_size_is_compiled_once(model, monkeypatch):
    stand_in = by_openvino(EDARFusion("tiny").eval())
    made = []
    compile_graph = stand_in._compile
    monkeypatch.setattr(stand_in, "_compile", lambda *call: made.append(call) or compile_graph(*call))
    fixed, moving = sample_pair((64, 64))
    first = stand_in(fixed, moving).aligned
    kept = first.clone()
    assert not torch.equal(stand_in(fixed, 1 - moving).aligned, kept)
    assert torch.equal(first, kept)
    assert len(made) == 1
