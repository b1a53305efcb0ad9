import pytest
import torch
import torch.nn.functional as F

from models.checkpoint import load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from models.expected_error import CHANNELS, LEAST, ExpectedError, expected_error_loss, signs_of_error
from tests.examples import noise


def test_an_untrained_network_expects_a_usual_error() -> None:
    torch.manual_seed(0)
    expected = ExpectedError()(torch.zeros(1, CHANNELS, 8, 8))
    assert expected.shape == (1, 1, 8, 8)
    assert (expected - 2).abs().max() < 1


def test_the_loss_is_least_at_the_mean_error() -> None:
    error = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2)
    losses = {
        e: expected_error_loss(torch.full_like(error, e), error, torch.ones_like(error)).item() for e in (2, 3, 4)
    }
    assert min(losses, key=losses.get) == 3


def test_it_is_never_nothing() -> None:
    network = ExpectedError()
    torch.nn.init.constant_(network.layers[-1].bias, -50.0)
    assert network(noise(1, CHANNELS, 4, 4)).min() >= LEAST


def test_signs_are_finite_where_nothing_is_to_be_seen() -> None:
    black, flow, map_ = torch.zeros(1, 1, 64, 64), torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 16, 16)
    signs = signs_of_error(black, black, flow, flow, torch.zeros(1, 1, 8, 8), (map_,) * 4, torch.zeros(1, 1, 8, 8))
    assert signs.shape == (1, CHANNELS, 8, 8)
    assert signs.isfinite().all()


@pytest.fixture(scope="module")
def network() -> EDARFusion:
    torch.manual_seed(0)
    return EDARFusion("tiny", expected_error=True).eval()


@torch.no_grad()
def test_a_network_expects_errors_of_averaged_estimates_alone(network):
    pair = noise(1, 1, 64, 96), noise(1, 1, 64, 96, seed=1)
    expected = network(*pair, average=True).expected_error
    assert expected.shape == (1, 1, 64, 96) and expected.min() >= LEAST
    assert network(*pair).expected_error is None
    assert EDARFusion("tiny").eval()(*pair, average=True).expected_error is None


@torch.no_grad()
def test_expected_errors_are_px_of_the_image(network):
    small = noise(1, 1, 32, 32, seed=2)
    pairs = [[F.interpolate(image, scale_factor=k) for image in (small, small.flip(2))] for k in (8, 16)]
    one, two = (network(*pair, average=True).expected_error for pair in pairs)
    assert two.mean().item() == pytest.approx(2 * one.mean().item(), rel=1e-3)


def test_old_checkpoints_have_no_such_part_and_new_ones_keep_theirs(network, tmp_path):
    for model, name in ((network, "new"), (EDARFusion("tiny"), "old")):
        save_checkpoint(tmp_path / name, model, modality="all", training={}, metrics={})
    new, old = (load_checkpoint(tmp_path / name).model for name in ("new", "old"))
    assert old.expected_error is None
    assert torch.equal(new.expected_error.layers[0].weight, network.expected_error.layers[0].weight)
