"""inference/openvino_model.py: the engines give what the network gives, size by size."""

import pytest
import torch

from inference.openvino_model import OpenVINOModel
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from tools.export import sample_pair
from utils.arguments import DEFAULT_CHECKPOINT

SIZE = (72, 100)
"""No multiple of any stride, so that padding is part of the graph."""


@pytest.fixture(scope="module")
def model() -> EDARFusion:
    return load_checkpoint(DEFAULT_CHECKPOINT).model


# Across a sharp edge a tenth of a px moves single pixels far; in the mean over the image bfloat16 stays near.
@pytest.mark.parametrize(("engine", "grey", "px"), [("openvino", 4e-3, 0.01), ("openvino-bf16", 0.15, 0.19)])
def test_engines_give_what_the_network_gives(model, engine, grey, px):
    try:
        by_openvino = OpenVINOModel(model, engine)
    except ValueError as error:
        pytest.skip(str(error))
    pair = sample_pair(SIZE)
    with torch.inference_mode():
        found, expected = by_openvino(*pair), model(*pair)
    for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
        assert (ours - theirs).abs().max() <= (px if "flow" in name else grey), name
        assert (ours - theirs).abs().mean() <= (px if "flow" in name else grey) / 10, name
    assert expected.flow.abs().max() > 10 * px


def test_a_second_pass_counts_as_much_as_in_the_network(model):
    fixed, moving = sample_pair((96, 96))
    moving = moving.roll(7, dims=3)
    by_openvino = OpenVINOModel(model)
    with torch.inference_mode():
        found, expected = (run(fixed, moving, passes=2, average=True) for run in (by_openvino, model))
        once = model(fixed, moving, average=True).flow
    assert (found.flow - expected.flow).abs().max() < 0.01 < 0.1 * (expected.flow - once).abs().max()
    assert (found.disagreement - expected.disagreement).abs() < 1e-3 < 0.1 * expected.disagreement


def test_results_outlive_the_next_pair_and_a_size_is_compiled_once(model, monkeypatch):
    by_openvino = OpenVINOModel(EDARFusion("tiny").eval())
    made = []
    compile_graph = by_openvino._compile
    monkeypatch.setattr(by_openvino, "_compile", lambda *call: made.append(call) or compile_graph(*call))
    fixed, moving = sample_pair((64, 64))
    first = by_openvino(fixed, moving).aligned
    kept = first.clone()
    assert not torch.equal(by_openvino(fixed, 1 - moving).aligned, kept)
    assert torch.equal(first, kept)
    assert len(made) == 1


def test_unknown_engine_is_named(model):
    with pytest.raises(ValueError, match="openvino, openvino-bf16, found 'onnx'"):
        OpenVINOModel(model, "onnx")
