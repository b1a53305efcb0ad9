"""utils/geometry/warp.py: the displacement convention by hand and against scipy, and its identities."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from data.deformation import BENCHMARK, random_flow
from models.eda_flowreg import FlowStep
from models.edarfusion import EDARFusion
from tests.examples import constant_flow
from utils.geometry.affine import affine_flow
from utils.geometry.warp import compose, invert, resize_flow, warp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_flow(size: tuple[int, int], seed: int = 0) -> Tensor:
    """(1, 2, *size), a deformation of the benchmark's kind in px."""
    return resize_flow(random_flow(size, BENCHMARK, seeded(seed)), size)


@pytest.mark.parametrize("size", [(64, 64), (37, 111), (1, 5), (256, 200)])
def test_zero_flow_gives_the_image_back_bit_for_bit(size):
    image = torch.rand(2, 3, *size, generator=seeded()) * 1e3 - 500
    assert torch.equal(warp(image, torch.zeros(2, 2, *size)), image)
    assert torch.equal(warp(image, torch.full((2, 2, *size), -0.0)), image)


def test_pixels_without_displacement_stay_while_others_move():
    image = torch.rand(1, 1, 33, 47, generator=seeded())
    flow = torch.zeros(1, 2, 33, 47)
    flow[0, 0, 10, 10] = 0.5
    changed = warp(image, flow) != image
    assert changed.nonzero().tolist() == [[0, 0, 10, 10]]


def test_model_with_zero_flow_returns_the_moving_image_exactly(monkeypatch):
    model = EDARFusion("tiny").eval()

    def no_displacement(fixed: Tensor, *_) -> list[FlowStep]:
        zero = fixed.new_zeros(fixed.shape[0], 2, *fixed.shape[3:])
        return [FlowStep(zero, zero, [], 0)]

    monkeypatch.setattr(model.eda_flowreg, "forward", no_displacement)
    fixed, moving = torch.rand(2, 1, 1, 70, 93, generator=seeded())
    with torch.inference_mode():
        output = model(fixed, moving)
    assert torch.equal(output.flow, torch.zeros(1, 2, 70, 93))
    assert torch.equal(output.aligned, moving)


def test_channel_0_moves_along_columns_and_channel_1_along_rows():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    right = warp(image, constant_flow(1, 0, (3, 4)))
    down = warp(image, constant_flow(0, 1, (3, 4)))
    # aligned(p) = moving(p + flow(p)); beyond the border the border repeats.
    assert torch.allclose(right[0, 0], torch.tensor([[1.0, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]), atol=1e-5)
    assert torch.allclose(down[0, 0], torch.tensor([[4.0, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]), atol=1e-5)


def test_negative_and_fractional_shifts_by_hand():
    image = torch.tensor([[0.0, 10, 30]]).view(1, 1, 1, 3)
    assert warp(image, constant_flow(-1, 0, (1, 3))).flatten().tolist() == pytest.approx([0, 0, 10], abs=1e-4)
    assert warp(image, constant_flow(0.25, 0, (1, 3))).flatten().tolist() == pytest.approx([2.5, 15, 30], abs=1e-4)


def test_only_the_displaced_pixel_looks_elsewhere():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[0, :, 2, 1] = torch.tensor([3.0, -2.0])
    expected = image.clone()
    expected[0, 0, 2, 1] = image[0, 0, 0, 4]
    assert torch.allclose(warp(image, flow), expected, atol=1e-4)


def test_far_outside_the_border_repeats():
    image = torch.rand(1, 1, 6, 9, generator=seeded())
    assert torch.allclose(warp(image, constant_flow(1e4, -1e4, (6, 9))), image[:, :, :1, -1:].expand(1, 1, 6, 9))


@pytest.mark.parametrize("size", [(64, 64), (48, 113), (130, 65)])
def test_agrees_with_scipy(size):
    image = torch.rand(1, 1, *size, generator=seeded(1))
    flow = 15 * torch.randn(1, 2, *size, generator=seeded(2))
    rows, columns = np.indices(size)
    x, y = flow[0].double().numpy()
    expected = map_coordinates(image[0, 0].double().numpy(), [rows + y, columns + x], order=1, mode="nearest")
    assert np.abs(warp(image, flow)[0, 0].numpy() - expected).max() < 2e-4


def test_batch_entries_and_channels_are_warped_alike_and_apart():
    image = torch.rand(3, 2, 20, 31, generator=seeded())
    flow = 3 * torch.randn(3, 2, 20, 31, generator=seeded(1))
    together = warp(image, flow)
    for i in range(3):
        for c in range(2):
            assert torch.equal(together[i : i + 1, c : c + 1], warp(image[i : i + 1, c : c + 1], flow[i : i + 1]))


@pytest.mark.parametrize(
    ("image", "flow"),
    [
        ((1, 1, 8, 9), (1, 2, 9, 8)),
        ((2, 1, 8, 8), (1, 2, 8, 8)),
        ((1, 1, 8, 8), (1, 1, 8, 8)),
        ((1, 1, 8, 8), (1, 3, 8, 8)),
        ((1, 8, 8), (1, 2, 8, 8)),
        ((1, 1, 8, 8), (2, 8, 8)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(image, flow):
    with pytest.raises(ValueError, match="expected image .* found"):
        warp(torch.zeros(image), torch.zeros(flow))


def test_gradient_of_the_flow_at_zero_flow_is_the_slope_of_the_image():
    # grey level 2 x - 3 y: moving the sample by one px along x adds 2, along y takes 3 away.
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij")
    flow = torch.zeros(1, 2, 16, 12, requires_grad=True)
    warp((2 * x - 3 * y)[None, None], flow).sum().backward()
    inner = flow.grad[0, :, 1:-1, 1:-1]
    assert torch.allclose(inner[0], torch.full_like(inner[0], 2), atol=1e-3)
    assert torch.allclose(inner[1], torch.full_like(inner[1], -3), atol=1e-3)


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_gradient_of_the_image_is_that_of_the_sampling_weights(shift):
    # Each result pixel is a weighted mean of image pixels, weights 1 together, at zero flow as at any other.
    image = torch.rand(1, 1, 16, 12, generator=seeded()).requires_grad_()
    warp(image, constant_flow(shift, shift, (16, 12))).sum().backward()
    assert image.grad.sum().item() == pytest.approx(16 * 12, rel=1e-4)


def test_resize_flow_scales_values_with_the_grid():
    flow = constant_flow(3, -2, (10, 20))
    assert torch.allclose(resize_flow(flow, (40, 60)), constant_flow(9, -8, (40, 60)))
    assert resize_flow(flow, (10, 20)) is flow


def test_resize_flow_there_and_back_keeps_a_smooth_flow():
    flow = smooth_flow((128, 96))
    back = resize_flow(resize_flow(flow, (256, 288)), (128, 96))
    assert (back - flow)[..., 2:-2, 2:-2].abs().max() < 0.05


def test_resized_flow_moves_the_resized_image_alike():
    y, x = torch.meshgrid(torch.linspace(0, 6, 64), torch.linspace(0, 6, 96), indexing="ij")
    image = (x.sin() * y.cos())[None, None]
    big = torch.nn.functional.interpolate(image, size=(128, 192), mode="bilinear", align_corners=False)
    flow = smooth_flow((64, 96))
    large = warp(big, resize_flow(flow, (128, 192)))
    enlarged = torch.nn.functional.interpolate(warp(image, flow), size=(128, 192), mode="bilinear", align_corners=False)
    assert (large - enlarged)[..., 16:-16, 16:-16].abs().mean() < 0.01


def test_compose_of_affine_flows_is_the_product_of_their_maps():
    # warp(warp(x, A), B)(p) = x(A(B(p))): the map of B is applied to the point first, then that of A.
    a = torch.tensor([[[1.02, 0.03], [-0.02, 0.97]]])
    b = torch.tensor([[[0.98, -0.04], [0.05, 1.01]]])
    shift_a, shift_b = torch.tensor([[1.5, -0.5]]), torch.tensor([[-2.0, 1.0]])
    size = (64, 80)
    composed = compose(affine_flow(size, a, shift_a), affine_flow(size, b, shift_b))
    expected = affine_flow(size, a @ b, (a @ shift_b[..., None])[..., 0] + shift_a)
    assert (composed - expected)[..., 8:-8, 8:-8].abs().max() < 1e-3


def test_compose_of_shifts_is_their_sum_and_of_nothing_is_the_other():
    first, second = constant_flow(2, 1, (20, 30)), constant_flow(-5, 0.5, (20, 30))
    assert torch.allclose(compose(first, second), first + second, atol=1e-5)
    flow = smooth_flow((64, 64))
    assert torch.equal(compose(flow, torch.zeros_like(flow)), flow)
    assert torch.equal(compose(torch.zeros_like(flow), flow), flow)


def test_compose_is_the_warp_of_a_warp():
    y, x = torch.meshgrid(torch.linspace(0, 5, 96), torch.linspace(0, 7, 128), indexing="ij")
    image = (x.sin() + y.cos())[None, None]
    first, second = smooth_flow((96, 128), 1), smooth_flow((96, 128), 2)
    difference = warp(warp(image, first), second) - warp(image, compose(first, second))
    assert difference[..., 12:-12, 12:-12].abs().max() < 5e-3
    swapped = warp(warp(image, first), second) - warp(image, compose(second, first))
    assert swapped.abs().mean() > 5 * difference.abs().mean()


@pytest.mark.parametrize("size", [(256, 256), (128, 200)])
def test_invert_composed_with_forward_is_near_identity(size):
    flow = smooth_flow(size, 3)
    inverse = invert(flow)
    for residual in (compose(flow, inverse), compose(inverse, flow)):
        assert residual[..., 16:-16, 16:-16].abs().max() < 0.05
    assert torch.equal(invert(torch.zeros(1, 2, 8, 8)), torch.zeros(1, 2, 8, 8))


def test_invert_of_a_shift_is_the_shift_back():
    assert torch.allclose(invert(constant_flow(3, -4, (16, 16))), constant_flow(-3, 4, (16, 16)), atol=1e-5)


def test_small_steps_invert_what_is_stretched_more_than_twofold():
    x = torch.arange(129.0).expand(1, 1, 129, -1) - 64
    flow = torch.cat(((1.5 * x).clamp(-15, 15), torch.zeros_like(x)), dim=1)  # x to 2.5 x, and shifts beyond
    expected = (-0.6 * x).clamp(-15, 15)
    inside = ..., slice(24, -24), slice(24, -24)
    actual = invert(flow, 60, 0.5)[:, :1]
    assert torch.allclose(actual[inside], expected[inside], atol=0.01)
    assert not torch.allclose(invert(flow, 60)[:, :1][inside], expected[inside], atol=1)
