"""utils/landmarks.py: tables of points, and points along displacement fields, either way."""

import numpy as np
import pytest

from utils.files import FileError
from utils.geometry.fit import Fit
from utils.landmarks import carry_points, carry_points_back, read_landmark_pair, read_landmarks

POINTS = np.array([[10.0, 20.0], [40.5, 30.25], [60.0, 50.0]])


def smooth_flow() -> np.ndarray:
    """A displacement field of up to 5 px that folds nowhere."""
    rows, columns = np.indices((64, 80), dtype=np.float32) / 16
    return np.stack((5 * np.sin(rows + columns), 4 * np.cos(rows - 1.3 * columns)))


def test_points_move_by_the_flow_where_they_lie() -> None:
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0], flow[1] = 3, np.indices((64, 80))[1] / 10
    np.testing.assert_allclose(carry_points(POINTS, flow), POINTS + np.stack((np.full(3, 3), POINTS[:, 0] / 10), 1))


@pytest.mark.parametrize("fit", [None, Fit(2.4, -10.0, 30.0)], ids=["one size", "two sizes"])
def test_points_come_back_to_where_they_were(fit) -> None:
    flow = smooth_flow() if fit is None else fit.to_original(smooth_flow())
    np.testing.assert_allclose(carry_points_back(carry_points(POINTS, flow), flow), POINTS, atol=1e-3)


def test_tables_are_read_whatever_their_capitals_and_further_columns(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name, X, Y\nnose,1,2.5\near,3,4\n")
    np.testing.assert_array_equal(read_landmarks(path), [[1, 2.5], [3, 4]])


@pytest.mark.parametrize(
    ("content", "actual"),
    [
        (None, "nothing there"),
        ("x,z\n1,2\n", "found no y"),
        ("x,y\n", "no points"),
        ("x,y\n1,2\n3,nan\n", "line 3"),
        ("x,y\n1,two\n", "line 2"),
        ("x,y\n1,64\n", r"\(1, 64\) in line 2"),
    ],
)
def test_what_is_no_table_of_points_is_named(tmp_path, content, actual) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileError, match=f"a.csv: expected .*{actual}"):
        read_landmarks(path, size=(64, 80))


def test_both_tables_have_the_same_points(tmp_path) -> None:
    paths = tmp_path / "fixed.csv", tmp_path / "moving.csv"
    for path, rows in zip(paths, (2, 3), strict=True):
        path.write_text("x,y\n" + "1,2\n" * rows)
    with pytest.raises(FileError, match=r"moving.csv: expected the 2 points of .*fixed.csv, found 3"):
        read_landmark_pair(paths)
