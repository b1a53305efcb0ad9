"""inference/classical.py: known shifts are found in the project's convention; what goes wrong is one line."""

import cv2
import numpy as np
import pytest

from inference.classical import CLASSICAL, ClassicalMethod, RegistrationFailed, register_within


@pytest.fixture(scope="module")
def shifted() -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture in a disc, higher than wide, and the same shifted by 3 px to the right and 2 px up."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((160, 128), np.float32), (0, 0), 6)
    image = (noise - noise.min()) / np.ptp(noise)
    y, x = np.mgrid[:160, :128]
    image *= np.hypot((x - 64) / 50, (y - 80) / 65) < 1
    return image, cv2.warpAffine(image, np.float32([[1, 0, 3], [0, 1, -2]]), (128, 160))


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_shift_is_found(name: str, shifted: tuple[np.ndarray, np.ndarray]) -> None:
    pytest.importorskip(CLASSICAL[name].package, reason="needs requirements-baselines.txt")
    flow, seconds = register_within(name, *shifted, limit=120)
    assert flow.shape == (2, 160, 128) and flow.dtype == np.float32
    # A deformation without an affine part reaches a shift only as far as its few iterations lead.
    tolerance = 0.8 if name == "syn-identity" else 0.3
    np.testing.assert_allclose(flow[:, 60:100, 40:88].mean(axis=(1, 2)), [3, -2], atol=tolerance)
    assert 0 < seconds < 120


def test_the_time_limit_ends_a_registration(shifted: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(RegistrationFailed, match="not done within 0.01 s"):
        register_within("rigid", *shifted, limit=0.01)


def test_an_error_of_a_package_is_one_line() -> None:
    pytest.importorskip("SimpleITK", reason="needs requirements-baselines.txt")
    # A constant image has no mutual information with anything.
    blank = np.zeros((64, 64), np.float32)
    with pytest.raises(RegistrationFailed) as raised:
        register_within("rigid", blank, blank, limit=120)
    assert "\n" not in str(raised.value)


def test_methods_say_how_they_are_set() -> None:
    for method in CLASSICAL.values():
        assert isinstance(method, ClassicalMethod) and len(method.settings) > 20
