"""utils/geometry/field_of_view.py: which pixels the moving image has a value for."""

import numpy as np

from utils.geometry.field_of_view import field_of_view
from utils.geometry.warp import apply_flow


def test_zero_flow_and_half_a_pixel_stay_inside():
    flow = np.zeros((2, 4, 6), np.float32)
    assert field_of_view(flow).all()
    assert field_of_view(flow + 0.5).all()
    assert field_of_view(flow - 0.5).all()


def test_pixels_that_come_from_outside():
    flow = np.zeros((2, 4, 6), np.float32)
    flow[0] = 2.0  # from two columns to the right
    expected = np.ones((4, 6), bool)
    expected[:, 4:] = False
    assert np.array_equal(field_of_view(flow), expected)
    flow[1] = -1.0  # and from one row above
    expected[0] = False
    assert np.array_equal(field_of_view(flow), expected)


def test_beyond_the_view_is_background():
    image = np.arange(24, dtype=np.float32).reshape(4, 6) + 1
    flow = np.zeros((2, 4, 6), np.float32)
    flow[0] = 2.0
    shifted = apply_flow(image, flow, background=-7.0)
    np.testing.assert_allclose(shifted[:, :4], image[:, 2:], atol=1e-4)
    assert (shifted[:, 4:] == -7).all()
    np.testing.assert_allclose(apply_flow(image, flow)[:, 4:], np.repeat(image[:, 5:], 2, axis=1), atol=1e-4)
