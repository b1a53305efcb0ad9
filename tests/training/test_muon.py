"""training/muon.py: steps by hand, what is left to AdamW, state put back, and that it learns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.layers import conv
from tests.examples import noise
from training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4), (1, 9)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    u, _, v = torch.linalg.svd(noise(*shape) - 0.5, full_matrices=False)
    values = torch.linspace(1, 0.05, min(shape))
    actual = orthogonalise((5 * u @ values.diag() @ v)[None])[0]
    kept = u.T @ actual @ v.T
    assert kept.diag().min() > 0.6 and kept.diag().max() < 1.3
    assert (kept - kept.diag().diag()).abs().max() < 1e-3


def test_first_step_of_a_kernel_by_hand():
    kernel = nn.Parameter(torch.full((1, 1, 2, 2), 2.0))
    kernel.grad = torch.tensor([[[[3.0, 0.0], [0.0, -4.0]]]])
    expected = 2.0 * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 4**0.5 * orthogonalise(torch.tensor([[[0.6, 0, 0, -0.8]]]))
    Muon(nn.ParameterList([kernel]), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(kernel.detach().flatten(), expected.flatten(), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7), (7, 2)])
def test_the_longer_side_of_a_kernel_decides_on_the_size_of_its_step(shape):
    kernel, gradient = nn.Parameter(torch.zeros(shape)), noise(*shape) - 0.5
    kernel.grad = gradient.clone()
    Muon(nn.ParameterList([kernel]), lr=0.1).step()
    assert torch.allclose(kernel, -0.1 * 0.2 * 7**0.5 * orthogonalise(gradient[None])[0], atol=1e-5)


def test_momentum_goes_on_and_no_gradient_means_no_step():
    kernel = nn.Parameter(noise(4, 3, 3, 3))
    optimizer = Muon(nn.ParameterList([kernel]), lr=0.1)
    kernel.grad = noise(4, 3, 3, 3, seed=1)
    optimizer.step()
    before = kernel.detach().clone()
    optimizer.step()
    assert torch.equal(kernel, before)
    kernel.grad = torch.zeros_like(kernel)
    optimizer.step()
    assert not torch.equal(kernel, before)


def test_second_step_looks_ahead_of_the_mean_gradient():
    kernel = nn.Parameter(torch.zeros(2, 3))
    optimizer = Muon(nn.ParameterList([kernel]), lr=0.1, momentum=0.5)
    first, second = noise(2, 3) - 0.5, noise(2, 3, seed=1) - 0.5
    for gradient in (first, second):
        kernel.grad = gradient.clone()
        optimizer.step()
        before, kernel.data = kernel.detach().clone(), torch.zeros(2, 3)
    # The mean is first / 4 + second / 2, and half of the gradient comes to half of it.
    expected = -0.1 * 0.2 * 3**0.5 * orthogonalise((second / 2 + (first / 4 + second / 2) / 2)[None])[0]
    assert torch.allclose(before, expected, atol=1e-6)


def test_everything_else_is_left_to_adamw():
    vector = nn.Parameter(noise(5))
    twin = nn.Parameter(vector.detach().clone())
    muon, adamw = Muon(nn.ParameterList([vector]), lr=0.1), torch.optim.AdamW([twin], lr=0.1, weight_decay=1e-3)
    for seed in range(3):
        vector.grad, twin.grad = noise(5, seed=seed), noise(5, seed=seed)
        muon.step(), adamw.step()
    assert torch.equal(vector, twin)


def test_state_is_put_back():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8))
    x = noise(2, 1, 8, 8)

    def advance(model: nn.Module, optimizer: Muon) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    optimizer = Muon(one, lr=0.01)
    advance(one, optimizer)
    two = copy.deepcopy(one)
    resumed = Muon(two, lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(one, optimizer), advance(two, resumed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_networks_side_by_side_step_as_each_would_by_itself():
    # A copy, as training works on one.
    whole = copy.deepcopy(conv(4, 6, groups=2))
    parts = [conv(2, 3), conv(2, 3)]
    for part, values in zip(parts, whole.weight.detach().chunk(2), strict=True):
        part.weight.data.copy_(values)
    for seed in range(2):
        whole.weight.grad = noise(6, 2, 3, 3, seed=seed) - 0.5
        for part, gradient in zip(parts, whole.weight.grad.chunk(2), strict=True):
            part.weight.grad = gradient.clone()
        if not seed:
            optimizers = [Muon(layer, lr=0.1) for layer in (whole, *parts)]
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(whole.weight, torch.cat([part.weight for part in parts]), atol=1e-5)


def test_matrices_of_one_shape_step_together_as_each_would_alone():
    one = nn.Sequential(conv(4, 6, groups=2), conv(6, 6), conv(6, 6), nn.Linear(6, 54), nn.GroupNorm(2, 6))
    two = copy.deepcopy(one)
    optimizers = Muon(one, lr=0.1, batched=False), Muon(two, lr=0.1, batched=True)
    for seed in range(3):
        for place, (a, b) in enumerate(zip(one.parameters(), two.parameters(), strict=True)):
            a.grad = noise(*a.shape, seed=10 * seed + place) - 0.5
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_small_network_learns_a_filter():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 1, 3, padding=1))
    x = noise(4, 1, 16, 16)
    truth = x.roll(1, dims=3) - x.roll(1, dims=2)
    optimizer = Muon(network, lr=0.02)
    losses = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 150)
        optimizer.zero_grad()
        losses.append(F.mse_loss(network(x)[..., 1:-1, 1:-1], truth[..., 1:-1, 1:-1]))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.02 * losses[0]
