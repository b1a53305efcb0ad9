"""inference/volumes/field.py: the field of a volume is smooth along the slices, robust, and folds nowhere."""

import numpy as np
import pytest
import torch

from inference.volumes.field import STRIDE, VolumeField, coarse, coarse_lengths, join_errors, join_slices, shown_shares
from tools.volume_accuracy import jump
from utils.maps import jacobian_determinant

SLICES, SIDE = 40, 16


def field(*along: float) -> np.ndarray:
    """(S, 2, 16, 16): x displacement of each slice as given, y zero."""
    flows = np.zeros((len(along), 2, SIDE, SIDE), np.float32)
    flows[:, 0] = np.array(along)[:, None, None]
    return flows


def test_estimates_that_agree_stay_as_they_are() -> None:
    flows = field(*[0.7] * SLICES)
    np.testing.assert_allclose(join_slices(flows, np.ones(SLICES), [0.3] * SLICES, 1.0), flows, atol=1e-5)


def test_noise_from_slice_to_slice_is_averaged_away() -> None:
    flows = field(*np.random.default_rng(0).normal(0.5, 0.15, SLICES))
    joined = join_slices(flows, np.ones(SLICES), [0.3] * SLICES, 1.0)
    assert jump(flows) > 0.4 and jump(joined) < 0.05
    assert joined[:, 0].mean() == pytest.approx(0.5, abs=0.05)


def test_a_slice_that_contradicts_its_neighbours_has_no_say() -> None:
    flows = field(*[0.5] * 20, 5.0, *[0.5] * 19)  # 18 px off
    joined = join_slices(flows, np.ones(SLICES), [0.3] * SLICES, 1.0)
    assert abs(joined[:, 0] - 0.5).max() * STRIDE < 0.1


def test_slices_that_show_little_take_their_neighbours_field() -> None:
    shares = np.r_[np.ones(30), np.zeros(10)]
    flows = field(*[0.5] * 30, *[4.0] * 10)
    joined = join_slices(flows, shares, [0.3] * SLICES, 5.0)  # the last one lies 50 mm from the nearest that counts
    np.testing.assert_allclose(joined[:, 0], 0.5, atol=1e-3)


def test_estimates_that_disagree_count_less() -> None:
    flows = field(*[0.0, 0.5] * 20)
    joined = join_slices(flows, np.ones(SLICES), [4.0, 0.1] * 20, 1.0)
    assert joined[:, 0].mean() > 0.45


def test_nothing_known_is_no_displacement() -> None:
    flows = field(*[3.0] * 4)
    assert not join_slices(flows, np.zeros(4), [0.1] * 4, 1.0).any()
    # Single estimates do not say how far they disagree; they count all the same.
    np.testing.assert_allclose(join_slices(flows, np.ones(4), [None] * 4, 1.0), flows, atol=1e-5)


def test_the_volume_folds_nowhere() -> None:
    flows = field(*[0.0] * 6)
    flows[:, 0, :, 8:] = -4  # pixels of the right half pass those of the left
    assert jacobian_determinant(torch.from_numpy(flows)).min() < 0
    joined = join_slices(flows, np.ones(6), [0.1] * 6, 1.0)
    assert jacobian_determinant(torch.from_numpy(joined)).min() > 0


def test_displacements_along_no_slice_leave_the_determinant_in_three_dimensions_that_of_the_slice() -> None:
    generator = np.random.default_rng(1)
    flows = join_slices(generator.normal(0, 0.4, (8, 2, SIDE, SIDE)).astype(np.float32), np.ones(8), [0.1] * 8, 4.0)
    gradients = [np.gradient(flows[:, channel], axis=(2, 1, 0)) for channel in (0, 1)]
    matrices = np.stack([*(np.stack(g, -1) for g in gradients), np.zeros((8, SIDE, SIDE, 3))], -2) + np.eye(3)
    determinants = jacobian_determinant(torch.from_numpy(flows))[:, 0]
    np.testing.assert_allclose(np.linalg.det(matrices), determinants, atol=1e-5)


def test_shares_go_by_the_volume_that_shows_less() -> None:
    fixed, moving = np.zeros((2, 3, 10, 10), np.float32)
    fixed[:2], moving[0], moving[1, :1] = 1, 1, 1
    np.testing.assert_array_equal(shown_shares(fixed, moving), [1, 0, 0])


def test_the_coarse_grid_covers_sides_that_are_no_multiple() -> None:
    flow = np.ones((2, 66, 70), np.float32)
    actual = coarse(flow)
    assert actual.shape == (2, 17, 18)
    np.testing.assert_allclose(actual[0], 18 / 70, rtol=1e-5)
    np.testing.assert_allclose(actual[1], 17 / 66, rtol=1e-5)


def test_expected_errors_of_slices_that_show_little_are_those_of_their_neighbours() -> None:
    shares = np.r_[np.ones(30), np.zeros(10)]
    errors = np.concatenate([np.full((30, 4, 4), 1.5, np.float32), np.full((10, 4, 4), 30, np.float32)])
    np.testing.assert_allclose(join_errors(errors, shares, [0.3] * SLICES, 5.0), 1.5, atol=1e-3)


def test_a_slice_of_a_field_comes_with_its_expected_errors_in_px_of_the_image() -> None:
    lengths = np.tile(np.linspace(1, 3, 64, dtype=np.float32), (48, 1))
    errors = coarse_lengths(lengths)[None]
    known = VolumeField(np.zeros((1, 2, 12, 16), np.float32), [0.3], (48, 64), errors).of(0)
    np.testing.assert_allclose(known["expected_error"][:, 2:-2], lengths[:, 2:-2], atol=1e-5)
    assert "expected_error" not in VolumeField(np.zeros((1, 2, 12, 16), np.float32), [0.3], (48, 64)).of(0)
