"""Carry label maps, further volumes and landmarks along with the results of a pair of volumes.

    python -m tools.carry --results out/CT --fixed mri.nii.gz \\
        --volume labels.nii.gz --labels --output carried.nii.gz
    python -m tools.carry --results out/CT --points fixed.csv \\
        --truth moving.csv --output found.csv

The results need pose.tfm or a displacement field (--save-flow), or both. A volume of the moving space comes onto the
fixed grid in one step, unless it is of another modality than the results. Points, in columns x, y, z of RAS mm as in
NIfTI viewers, go from the fixed to the moving space, or back with --inverse. With --truth, the distance to where they
belong is printed (target registration error).
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray

from data.table import MODALITIES, modality_name
from inference.modality import modality_of_volume, named_modality, stated_modality
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.files import FileError, check_inputs_stay
from utils.imaging.resampling import resample_labels, resample_volume
from utils.imaging.volumes import Volume, read_volume, write_volume
from utils.landmarks import read_landmarks
from utils.tables import write_table

AXES = ("x", "y", "z")
"""Columns of points in RAS mm."""

_FLIP = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS


def read_steps(results: str | os.PathLike, inverse: bool = False) -> list[sitk.Transform]:
    """Read pose and displacement of a result folder, in the order in which SimpleITK's composite transform takes them.

    Args:
        results: OUTPUT/MODALITY of the test script.
        inverse: of the way from the moving to the fixed space.

    Raises:
        FileError: there is neither, or one cannot be read.
    """
    pose, name = Path(results, "pose.tfm"), "displacement_inverse.nii.gz" if inverse else "displacement.nii.gz"
    steps = []
    # MetaImage is what --flow-format itk writes.
    field = next((path for path in (Path(results, name), Path(results, name[:-7] + ".mha")) if path.exists()), None)
    try:
        if pose.exists():
            transform = sitk.ReadTransform(str(pose))
            steps.append(transform.GetInverse() if inverse else transform)
        if field:
            steps.append(sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64)))
    except RuntimeError as error:
        raise FileError.at(results, "a pose and a displacement field", str(error).splitlines()[-1]) from error
    if not steps:
        raise FileError.at(results, f"pose.tfm or {name} (the test script with --save-flow)", "neither")
    return steps[::-1] if inverse else steps


def carry_points(points: NDArray[np.float64], steps: list[sitk.Transform]) -> NDArray[np.float64]:
    """Carry points (N, 3), RAS mm, through transforms of which the last comes first."""
    transform = sitk.CompositeTransform(steps)
    return np.array([transform.TransformPoint((point * _FLIP).tolist()) for point in points]) * _FLIP


def carry_volume(options: argparse.Namespace) -> None:
    """Bring a volume of the moving space onto the fixed grid and write it.

    Raises:
        FileError: a file cannot be used, or the volume is of another modality than the results.
    """
    volume, like = read_volume(options.volume), read_volume(options.fixed)
    _check_modality(volume, options)
    pose, displacement = _by_kind(read_steps(options.results))
    resample = resample_labels if options.labels else resample_volume
    try:
        carried = resample(volume, like, pose, displacement)
    except ValueError as error:
        raise FileError.at(options.volume, f"a volume of the moving space of {options.results}", str(error)) from error
    write_volume(options.output, carried.slices, like)


def _check_modality(volume: Volume, options: argparse.Namespace) -> None:
    """Check that the volume is of the modality whose displacement carries it, as far as that can be known.

    Raises:
        FileError: it is of another one.
    """
    expected = stated_modality(options.results) or named_modality(options.results)
    modality = options.modality or modality_of_volume(volume, options.volume, expected)
    if expected and modality and modality != expected:
        hint = "" if options.modality else f" by its file or name (--modality {expected} if that misleads)"
        needed = f"a {expected} volume, whose displacement is in {options.results}"
        raise FileError.at(options.volume, needed, f"a {modality} volume{hint}")


def _by_kind(steps: list[sitk.Transform]) -> tuple[sitk.Transform | None, sitk.Transform | None]:
    """Divide the steps into pose and displacement; None stands for what is missing."""
    fields = [step for step in steps if step.GetTransformEnum() == sitk.sitkDisplacementField]
    poses = [step for step in steps if step.GetTransformEnum() != sitk.sitkDisplacementField]
    return (poses or [None])[0], (fields or [None])[0]


def carry_table(options: argparse.Namespace) -> None:
    """Carry the points of a table, write where they come to lie, and print how far that is from the truth.

    Raises:
        FileError: a file cannot be used, or the truth has another number of points.
    """
    points = read_landmarks(options.points, AXES)
    carried = carry_points(points, read_steps(options.results, options.inverse))
    table = pd.DataFrame(carried, columns=["x", "y", "z"])
    if options.truth:
        truth = read_landmarks(options.truth, AXES)
        if len(truth) != len(carried):
            raise FileError.at(options.truth, f"the {len(carried)} points of {options.points}", f"{len(truth)}")
        table["error_mm"] = np.linalg.norm(carried - truth, axis=1)
        before = np.linalg.norm(points - truth, axis=1).mean()
        print(f"target registration error: {before:.2f} mm by the headers, {table['error_mm'].mean():.2f} mm now")
    write_table(options.output, table)


def run(options: argparse.Namespace) -> None:
    """Carry the volume or the points that the options name.

    Raises:
        FileError: as `carry_volume` and `carry_table`, or a result would be written over an input.
    """
    inputs = filter(None, (options.volume, options.points, options.fixed, options.truth))
    check_inputs_stay(inputs, [options.output], "--output FILE")
    carry_volume(options) if options.volume else carry_table(options)
    print(f"Wrote {options.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.carry``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.carry", description=__doc__)
    parser.add_argument("--results", metavar="DIR", required=True,
                        help="folder OUTPUT/MODALITY that the test command wrote for the pair of volumes")
    parser.add_argument("--output", metavar="FILE", required=True,
                        help="file to write: NIfTI for a volume, a CSV table for points")
    carried = parser.add_mutually_exclusive_group(required=True)
    carried.add_argument("--volume", metavar="FILE",
                         help="volume in the space of the moving volume, to bring onto the grid of --fixed")
    carried.add_argument("--points", metavar="CSV",
                         help="table of points in the space of the fixed volume: columns x, y, z in RAS mm")
    parser.add_argument("--fixed", metavar="FILE", help="fixed volume, whose grid the carried volume gets")
    parser.add_argument("--modality", type=modality_name, choices=MODALITIES,
                        help="modality of the volume, where its file or name does not tell it or misleads "
                             "(results of another modality are refused)")
    parser.add_argument("--labels", action="store_true",
                        help="the volume holds labels: each voxel takes the nearest one, and none are mixed")
    parser.add_argument("--truth", metavar="CSV",
                        help="table of the places where the points belong, to print the distance to them")
    parser.add_argument("--inverse", action="store_true",
                        help="the points are of the moving volume; carry them to the fixed one")
    options = parser.parse_args(arguments)
    if options.volume and not options.fixed:
        parser.error("--volume: expected --fixed with it, found none")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
