"""On every accelerator that is here the network computes and learns what it does on a CPU."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from data.dataset import VAL_SEED, Pair, PairDataset
from EDARFusion_train import STAGES, begin_stage, parse_arguments, running_mean
from models.edarfusion import EDARFusion
from tests.test_dataset import SAMPLE, sample_table
from utils.arguments import DEFAULT_CHECKPOINT
from utils.checkpoint import load_checkpoint
from utils.device import choose_device


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest) -> torch.device:
    try:
        return choose_device(request.param)
    except ValueError:
        pytest.skip(f"no {request.param} here")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return next(iter(DataLoader(PairDataset(sample_table(), SAMPLE, seed=VAL_SEED, size=128), batch_size=3)))


def test_the_shipped_weights_give_the_same_flow_and_image(device, pair):
    model = load_checkpoint(DEFAULT_CHECKPOINT).model
    with torch.inference_mode():
        expected = model(pair.fixed, pair.moving, 2, True)
        found = model.to(device)(pair.fixed.to(device), pair.moving.to(device), 2, True)
    assert (found.flow.cpu() - expected.flow).abs().max() < 0.02
    assert (found.fused.cpu() - expected.fused).abs().max() < 2 / 255
    assert expected.flow.abs().max() > 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_training_moves_the_weights_to_the_same_place(device, pair, stage):
    torch.manual_seed(0)
    start = EDARFusion("tiny")
    options = parse_arguments(["--root", "nowhere", "--epochs", "1"])
    after = []
    for place in (torch.device("cpu"), device):
        model = copy.deepcopy(start).to(place).train()
        averaged = AveragedModel(copy.deepcopy(model), multi_avg_fn=running_mean(0.5))
        module, optimizer = begin_stage(stage, model, options)
        for _ in range(2):
            loss = module(pair.to(place), nullcontext()).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
        after.append({name: value.cpu() for name, value in averaged.module.state_dict().items()})
    moved = [name for name, value in start.state_dict().items() if not torch.equal(value, after[0][name])]
    assert len(moved) > 20
    for name in moved:
        torch.testing.assert_close(after[1][name], after[0][name], atol=2e-4, rtol=1e-2, msg=name)
