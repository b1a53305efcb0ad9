import torch

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
