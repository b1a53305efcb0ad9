"""On every accelerator that is here the network computes and learns what it does on a CPU."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.dataset import VAL_SEED, Pair, PairDataset
from inference.luma_fit import fit_luma
from losses import steps
from losses.fusion import FusionWeights
from losses.registration import RegistrationWeights
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import SAMPLE, aligned_sample
from training.options import STAGES, Options
from training.stages import average_weights, begin_stage
from utils.arguments import DEFAULT_CHECKPOINT
from utils.device import choose_device

CPU = torch.device("cpu")
OPTIONS = Options()


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest) -> torch.device:
    try:
        return choose_device(request.param)
    except ValueError:
        pytest.skip(f"no {request.param} here")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return next(iter(DataLoader(PairDataset(aligned_sample(), SAMPLE, seed=VAL_SEED, size=128), batch_size=3)))


def test_the_shipped_weights_give_the_same_flow_and_image(device, pair):
    model = load_checkpoint(DEFAULT_CHECKPOINT).model
    with torch.inference_mode():
        expected = model(pair.fixed, pair.moving, 2, True)
        actual = model.to(device)(pair.fixed.to(device), pair.moving.to(device), 2, True)
    assert (actual.flow.cpu() - expected.flow).abs().max() < 0.02
    assert (actual.fused.cpu() - expected.fused).abs().max() < 2 / 255
    assert expected.flow.abs().max() > 1


def test_the_luma_is_fitted_alike(device, pair):
    images = pair.fixed, torch.cat((pair.moving_aligned, 0.5 * pair.moving_aligned, pair.fixed), dim=1), pair.fixed
    expected, actual = fit_luma(*images, 4), fit_luma(*(image.to(device) for image in images), 4).cpu()
    # Each step's slopes carry the rounding of those before it on.
    assert (actual - expected).abs().mean() < 0.2 / 255
    assert (expected - pair.fixed).abs().mean() > 1 / 255


@pytest.fixture(scope="module")
def network() -> EDARFusion:
    # Trained: where a layer is still zero, the gradients behind it are rounding.
    return load_checkpoint(DEFAULT_CHECKPOINT).model


def gradients(stage: str, network: EDARFusion, pair: Pair, device: torch.device = CPU) -> dict[str, Tensor]:
    module, _ = begin_stage(stage, copy.deepcopy(network).to(device).train(), OPTIONS)
    module(pair.to(device), nullcontext()).total.backward()
    return {name: value.grad.cpu() for name, value in module.named_parameters() if value.grad is not None}


def assert_alike(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Relative to the largest gradient: those of biases in front of a normalisation are nothing but rounding."""
    assert actual.keys() == expected.keys()
    tolerance = 0.01 * max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=tolerance, msg=name)


def weights_after(
    steps: int, stage: str, network: EDARFusion, gradients: dict[str, Tensor], device: torch.device = CPU
) -> dict[str, Tensor]:
    """The mean weights after steps along the same gradients."""
    model = copy.deepcopy(network).to(device).train()
    averaged = copy.deepcopy(model)
    module, optimizer = begin_stage(stage, model, OPTIONS)
    parameters = dict(module.named_parameters())
    for step in range(steps):
        for name, value in gradients.items():
            parameters[name].grad = value.to(device, copy=True)
        optimizer.step()
        average_weights(averaged, model, step, 0.5)
    return {name: value.cpu() for name, value in averaged.state_dict().items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_training_moves_the_weights_to_the_same_place(device, pair, network, monkeypatch, stage):
    # On by default, with 10 of the 23 bits of a float32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = gradients(stage, network, pair)
    assert_alike(gradients(stage, network, pair, device), expected)
    # Adam makes a whole step of the smallest gradient, so that all are to start from the same.
    on_cpu, on_device = (weights_after(2, stage, network, expected, place) for place in (CPU, device))
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, on_cpu[name])]
    assert len(moved) > 20
    for name in moved:
        torch.testing.assert_close(on_device[name], on_cpu[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("stage", "term", "weight"),
    [
        ("registration", "matching", RegistrationWeights().matching),
        ("fusion", "consistency", FusionWeights().consistency),
    ],
)
def test_gradients_are_told_from_others_but_not_from_rounding(pair, network, monkeypatch, stage, term, weight):
    expected = gradients(stage, network, pair)
    rounding = copy.deepcopy(network)
    for layer in rounding.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: output * (1 + 1e-7 * torch.randn_like(output)))
    torch.manual_seed(0)
    actual = gradients(stage, rounding, pair)
    assert not all(torch.equal(actual[name], value) for name, value in expected.items())
    assert_alike(actual, expected)
    loss_of = getattr(steps, f"{stage}_loss")

    def without_one_term(*arguments):
        loss = loss_of(*arguments)
        return loss._replace(total=loss.total - weight * getattr(loss, term))

    monkeypatch.setattr(steps, f"{stage}_loss", without_one_term)
    with pytest.raises(AssertionError):
        assert_alike(gradients(stage, network, pair), expected)
