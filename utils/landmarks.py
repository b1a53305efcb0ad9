"""Landmarks: tables of points, and points carried along displacement fields of images."""

import os

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from utils.files import FileError, lacking
from utils.tables import write_table

ROUNDS, CLOSE = 50, 1e-4
"""Most steps of the search for the point that a field leads to a place, and the error that ends it, px."""

FAR = 0.5  # px beyond which no point was found


def read_landmarks(
    path: str | os.PathLike, columns: tuple[str, ...] = ("x", "y"), size: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Read points from a CSV file with a header. Other columns, such as names, are left alone.

    Args:
        path: the file.
        columns: of the coordinates, in any capitals.
        size: height and width of the image, px, that points x, y must lie in; None takes any.

    Returns:
        (N, len(columns)), N at least 1.

    Raises:
        FileError: the file cannot be read, lacks a column, holds no points, no numbers, or points beside the image.
    """
    expected = f"a table with numbers in the columns {', '.join(columns)}"
    if problem := lacking(path):
        raise FileError.at(path, expected, problem)
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError) as error:
        # pandas' own errors are ValueErrors.
        raise FileError.at(path, expected, str(error)) from error
    table.columns = [str(name).strip().lower() for name in table]
    if missing := [name for name in columns if name not in table]:
        raise FileError.at(path, expected, f"no {', '.join(missing)} ({', '.join(table) or 'no column'})")
    if table.empty:
        raise FileError.at(path, expected, "no points")
    points = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise FileError.at(path, expected, f"none in line {int(bad.argmax()) + 2}")
    if size is not None:
        beside = ((points < -0.5) | (points > np.array(size[::-1]) - 0.5)).any(axis=1)
        if beside.any():
            line = int(beside.argmax())
            place = f"({points[line, 0]:g}, {points[line, 1]:g}) in line {line + 2}"
            raise FileError.at(path, f"points x, y within the image, {size[1]} x {size[0]} px", place)
    return points


def read_landmark_pair(
    paths: tuple[str | os.PathLike, str | os.PathLike],
    columns: tuple[str, ...] = ("x", "y"),
    sizes: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the same points in a fixed and a moving image, row by row: two arrays (N, len(columns)).

    Raises:
        FileError: as of `read_landmarks`, or the tables differ in length.
    """
    fixed, moving = (read_landmarks(path, columns, size) for path, size in zip(paths, sizes, strict=True))
    if len(fixed) != len(moving):
        raise FileError.at(paths[1], f"the {len(fixed)} points of {os.fspath(paths[0])}", f"{len(moving)}")
    return fixed, moving


def write_landmarks(path: str | os.PathLike, points: pd.DataFrame) -> None:
    """Write a table of points, whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    write_table(path, points, "%.6f")


def carry_points(points: NDArray[np.float64], flow: NDArray[np.float32]) -> NDArray[np.float64]:
    """Carry points of the fixed image to the moving one: p + flow(p).

    Args:
        points: (N, 2), as (x, y) in px.
        flow: (2, H, W), px; beyond its grid its border goes on.
    """
    shifts = [map_coordinates(x.astype(np.float64), points.T[::-1], order=1, mode="nearest") for x in flow]
    return points + np.stack(shifts, axis=-1)


def carry_points_back(points: NDArray[np.float64], flow: NDArray[np.float32]) -> NDArray[np.float64]:
    """Carry points of the moving image to the fixed one: those p with p + flow(p) = q.

    Newton steps with the field's mean derivative, which also takes up a change of scale, such as that of a flow for
    images of two sizes. Where no point leads there, the result is NaN.

    Args:
        points: (N, 2), as (x, y) in px of the moving image.
        flow: (2, H, W), px.
    """
    size = np.array(flow.shape[:0:-1])
    corners = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]) * (size - 1)
    ends = carry_points(corners, flow)
    along = np.stack((ends[1] - ends[0] + ends[3] - ends[2], ends[2] - ends[0] + ends[3] - ends[1]), axis=-1)
    back = np.linalg.inv(along / (size - 1))
    centre, middle = corners.mean(axis=0), ends.mean(axis=0)
    origins = centre + (points - middle) @ back.T
    for _ in range(ROUNDS):
        missed = points - carry_points(origins, flow)
        if np.abs(missed).max() < CLOSE:
            break
        origins = origins + missed @ back.T
    origins[np.linalg.norm(missed, axis=1) > FAR] = np.nan
    return origins
