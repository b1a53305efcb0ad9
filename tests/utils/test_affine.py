"""utils/geometry/affine.py: affine maps as fields by hand, and fields' affine parts."""

import torch

from data.deformation import GRID_STRIDE
from tests.examples import noise
from utils.geometry.affine import affine_flow, affine_matrix, affine_part, flow_of, turn_about
from utils.geometry.warp import resize_flow

SIZE = (6, 10)


def test_affine_flow_of_a_shift():
    flow = affine_flow((8, 12), torch.eye(2)[None], torch.tensor([[3.0, -2.0]]))
    assert torch.equal(flow[0, 0], torch.full((8, 12), 3.0)) and torch.equal(flow[0, 1], torch.full((8, 12), -2.0))


def test_affine_flow_by_hand():
    # Twice as wide about the centre of 3 x 5 px, (2, 1): the point (4, 2) goes to (6, 2), (0, 0) to (-2, 0).
    flow = affine_flow((3, 5), torch.tensor([[[2.0, 0], [0, 1]]]), torch.zeros(1, 2))
    assert flow[0, 0].tolist() == [[-2, -1, 0, 1, 2]] * 3 and not flow[0, 1].any()
    # A quarter turn (x, y) -> (-y, x): the point right of the centre goes below it.
    flow = affine_flow((3, 3), torch.tensor([[[0.0, -1], [1, 0]]]), torch.zeros(1, 2))
    assert flow[0, :, 1, 2].tolist() == [-1, 1] and flow[0, :, 1, 1].tolist() == [0, 0]


def test_affine_flow_on_a_grid_is_the_full_one_resized():
    matrix, shift = torch.tensor([[[0.95, -0.1], [0.12, 1.04]]]), torch.tensor([[4.0, -7.0]])
    full = affine_flow((64, 96), matrix, shift)
    grid = affine_flow((64, 96), matrix, shift, GRID_STRIDE)
    assert grid.shape == (1, 2, 16, 24)
    inside = (resize_flow(grid, (64, 96)) - full)[..., 2:-2, 2:-2]
    assert inside.abs().max() < 1e-3


def test_affine_flow_of_a_batch():
    matrices = torch.stack((torch.eye(2), torch.diag(torch.tensor([1.0, 3.0]))))
    flow = affine_flow((5, 7), matrices, torch.tensor([[1.0, 0], [0, 0]]))
    assert torch.equal(flow[0, 0], torch.ones(5, 7)) and flow[1, 1, :, 0].tolist() == [-4, -2, 0, 2, 4]


def test_flow_of_hand_made_maps():
    shift = torch.tensor([[1.0, 0, 3], [0, 1, -2], [0, 0, 1]])
    assert torch.equal(flow_of(shift, (4, 5))[0, :, 2, 3], torch.tensor([3.0, -2]))
    twice = torch.diag(torch.tensor([2.0, 2, 1]))
    assert torch.equal(flow_of(twice, (4, 5))[0, :, 3, 4], torch.tensor([2.0, 1.5]))  # from the centre (2, 1.5)


def test_affine_part_of_an_affine_field_is_the_field():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(10.0), indexing="ij")
    field = torch.stack((1 + 0.2 * x - 0.3 * y, -2 + 0.1 * x + 0.5 * y))[None]
    for weight in (torch.ones(1, 1, *SIZE), noise(1, 1, *SIZE) + 0.01):
        assert torch.allclose(affine_part(field, weight), field, atol=1e-4)


def test_affine_part_leaves_nothing_affine_in_the_rest_and_each_image_has_its_own():
    flow, weight = 5 * noise(2, 2, *SIZE), noise(2, 1, *SIZE, seed=1) + 0.01
    rest = (flow - affine_part(flow, weight)) * weight
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(10.0), indexing="ij")
    for direction in (torch.ones_like(x), x, y):
        assert (rest * direction).sum(dim=(2, 3)).abs().max() < 1e-3
    assert rest.abs().mean() > 0.1
    for i in range(2):
        alone = affine_part(flow[i : i + 1], weight[i : i + 1])
        assert torch.allclose(affine_part(flow, weight)[i : i + 1], alone, atol=1e-5)


def test_affine_matrix_is_that_of_an_affine_flow_and_of_its_mask():
    matrix = torch.tensor([[0.9, 0.2, 5], [-0.1, 1.1, -3], [0, 0, 1]])
    flow = flow_of(matrix, (64, 96))
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 16:48, 20:70] = 1
    assert torch.allclose(affine_matrix(flow, mask), matrix, atol=1e-3)
    elsewhere = flow + 20 * (1 - mask) * noise(1, 2, 64, 96)
    assert torch.allclose(affine_matrix(elsewhere, mask), matrix, atol=0.05)


def test_a_turn_leaves_its_centre_and_goes_from_x_to_y():
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 10:31, 40:61] = 1  # about (50, 20)
    turn, centre = turn_about(mask, 90), torch.tensor([47.5, 31.5, 0])
    # The rest counts for a ten-thousandth.
    assert torch.allclose(turn @ (torch.tensor([50.0, 20, 1]) - centre) + centre, torch.tensor([50.0, 20, 1]), atol=0.1)
    assert torch.allclose(turn @ (torch.tensor([60.0, 20, 1]) - centre) + centre, torch.tensor([50.0, 30, 1]), atol=0.1)
