"""The scanner's table beside a head, and anatomy that looks a little like it."""

import cv2
import numpy as np
import pytest

from utils.geometry.scanner_table import scanner_table

SIDE = 128


def canvas() -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.float32)


def head(value: float = 0.5, size: int = 40) -> np.ndarray:
    return cv2.ellipse(canvas(), (64, 56), (size - 8, size), 0, 0, 360, value, -1)


def arc(image: np.ndarray, radius: int, thickness: int = 2, first: int = 20, last: int = 160) -> np.ndarray:
    """Draw a bow below the head."""
    return cv2.ellipse(image.copy(), (64, 56), (radius, radius), 0, first, last, 1.0, thickness)


def test_the_shell_of_a_head_rest_is_marked_with_its_blur_and_nothing_else() -> None:
    moving = head()
    with_table = arc(moving, 55)
    found = scanner_table(with_table, head(0.7))
    assert found[with_table != moving].all() and not found[moving > 0].any()
    assert found.sum() < 3 * (with_table != moving).sum()


def test_a_shell_that_coarse_pixels_break_into_specks_is_marked() -> None:
    specks = (arc(canvas(), 55) > 0) & (np.indices((SIDE, SIDE)).sum(axis=0) % 8 < 3)
    found = scanner_table(np.maximum(head(), specks), head(0.7))
    assert found[specks].mean() > 0.95 and not found[head() > 0].any()


@pytest.mark.parametrize(
    "moving",
    [
        head(),
        cv2.ellipse(head(), (64, 56), (37, 45), 0, 0, 360, 1.0, 1),  # skin that dark fat parts from the skull
        arc(head(), 55, 14),  # shoulders
        cv2.circle(head(), (16, 56), 3, 1.0, -1),  # a round thing
        cv2.line(arc(head(), 55), (64, 90), (64, 111), 1.0, 2),  # what hangs together with the head
    ],
    ids=["no table", "skin", "shoulders", "round", "attached"],
)
def test_anatomy_stays(moving: np.ndarray) -> None:
    assert not scanner_table(moving, head(0.7)).any()


def test_a_table_under_tissue_that_the_fixed_image_alone_shows_is_no_table() -> None:
    assert not scanner_table(arc(head(size=20), 30), head(0.7)).any()


def test_above_the_vertex_the_length_of_the_head_tells_a_table() -> None:
    table = arc(canvas(), 55)
    assert not scanner_table(table, canvas()).any()
    assert scanner_table(table, canvas(), length=80)[table > 0].all()
    crown = cv2.circle(table.copy(), (64, 56), 8, 0.5, -1)
    found = scanner_table(crown, canvas(), length=80)
    assert found[table > 0].all() and not found[crown == 0.5].any()
