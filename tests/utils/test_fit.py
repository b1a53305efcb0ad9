"""utils/geometry/fit.py: heads in images of other sizes come to lie about alike."""

import numpy as np
import pytest

from utils.geometry.fit import Fit, fit_frame, fit_sizes


def head(size: tuple[int, int], middle: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """An ellipse with one bright quarter; sizes as rows, columns."""
    rows, columns = np.indices(size, dtype=np.float32)
    v, u = (rows - middle[0]) / radii[0], (columns - middle[1]) / radii[1]
    return np.where(u**2 + v**2 < 1, np.where((u > 0) & (v > 0), 0.9, 0.5), 0).astype(np.float32)


def test_heads_get_one_middle_and_one_size() -> None:
    fixed = head((256, 256), (130, 120), (90, 70))
    moving = head((512, 480), (300, 200), (180, 140))
    fit = fit_frame(moving, fixed)
    assert fit.scale == pytest.approx(2, rel=0.05)
    shown = fit.apply(moving, fixed.shape)
    assert shown.shape == fixed.shape and np.corrcoef(shown.ravel(), fixed.ravel())[0, 1] > 0.95


def test_without_heads_the_whole_image_is_shown_with_its_aspect() -> None:
    assert fit_frame(np.zeros((512, 400), np.float32), head((256, 256), (128, 128), (90, 90))) == fit_sizes(
        (512, 400), (256, 256)
    )
    fit = fit_sizes((512, 400), (256, 256))
    assert fit.scale == 2
    image = np.zeros((512, 400, 3), np.float32)
    image[256:260, 200:204] = 1  # just right of and below the middle
    shown = fit.apply(image, (256, 256))
    assert shown.shape == (256, 256, 3)
    np.testing.assert_allclose(np.argwhere(shown[..., 0] > 0.5).mean(axis=0), [128.5, 128.5], atol=0.5)


def test_what_is_far_from_the_frames_scale_is_no_head() -> None:
    speck = head((512, 512), (256, 256), (40, 40))
    fixed = head((256, 256), (128, 128), (110, 110))
    assert fit_frame(speck, fixed) == fit_sizes((512, 512), (256, 256))


def test_a_field_for_the_frame_becomes_one_for_the_original_image() -> None:
    original = np.random.default_rng(0).random((90, 100)).astype(np.float32)
    fit, flow = Fit(0.5, 20.0, 10.0), np.full((2, 40, 50), 3.0, np.float32)
    places = fit.to_original(flow) + np.indices((40, 50))[::-1]
    # Pixel (x 7, y 4) of the frame, displaced to (10, 7), lies at (25, 13.5) of the original.
    np.testing.assert_allclose(places[:, 4, 7], [25, 13.5])
    shown = fit.apply(original, (40, 50))
    assert shown[7, 10] == pytest.approx((original[13, 25] + original[14, 25]) / 2, abs=1e-3)


def test_beyond_the_original_image_the_frame_is_black() -> None:
    # What touches the border, such as the table of a scanner, is not drawn out.
    shown = Fit(1.0, -20.0, -10.0).apply(np.ones((40, 50), np.float32), (60, 90))
    assert shown[10:50, 20:70].min() == 1 and shown.sum() == 40 * 50
