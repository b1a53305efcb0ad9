"""Carry images, label maps and landmarks along with displacement fields that were found before.

    python -m tools.apply_flow --images DIR --flow out/PET/flow --output DIR
    python -m tools.apply_flow --images DIR --labels --flow out/CT/flow --output DIR
    python -m tools.apply_flow --points DIR --flow out/CT/flow --output DIR

Images are another rendering of the moving images, such as the uptake in grey beside the colour picture that was
aligned. What is written has 8 bits, also where the image has 16; `utils.geometry.warp.apply_flow` keeps all digits. Of
label maps the nearest label is taken, and none is mixed. Landmarks are CSV files with the columns x and y, in px. They
go from the fixed to the moving image, or back with --inverse. Volumes are carried by `python -m tools.carry`.

Flows of one modality are not applied to images of another. The flows' modality is read from settings.json, that of the
images from the names of their folders, such as CT or CT-MRI.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from data.table import MODALITIES, modality_name
from inference.modality import named_modality, stated_modality
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.files import FileError, check_inputs_stay, lacking
from utils.geometry.warp import apply_flow
from utils.imaging.flows import flow_files, load_flow
from utils.imaging.images import read_image, write_image
from utils.imaging.label_maps import carry_labels, read_label_map, write_label_map
from utils.imaging.pairing import list_files, list_images, plain_stem
from utils.landmarks import carry_points, carry_points_back, read_landmarks, write_landmarks
from utils.messages import counted, listed, log

OFF_CENTRE = 0.2
"""Distance, as a share of an image's sides, between its middle and that of the places to which its flow points."""

FEW_LEVELS = 32
"""Number of grey levels up to which a picture is taken for a label map if interpolation would add further ones."""

Carry = Callable[[Path, Path, Path], None]
"""A function that carries a file along a flow: the file, the flow's file, the file to write."""


def apply_flows(
    images: str | os.PathLike,
    flows: str | os.PathLike,
    output: str | os.PathLike,
    modality: str | None = None,
    *,
    labels: bool = False,
) -> tuple[int, list[str]]:
    """Warp every image of a folder that has a flow of its name; or one image by one flow.

    Args:
        images, flows: folders that are read, or one file each.
        output: folder that is written to.
        modality: of the images; None goes by the names of the folders that they lie in.
        labels: the images are label maps.

    Returns:
        How many there were, and the names of the images without a flow.

    Raises:
        FileError: a file cannot be used, a flow's size is not its image's, no image has a flow, the flows are of
            another modality than the images, interpolation would add labels, or a result would be written over an
            image.
    """
    _check_modality(images, flows, modality)
    files = [Path(images)] if os.path.isfile(images) else list_images(images)
    return _carry_all(files, flows, output, ".png", _carry_labels if labels else _carry_image)


def apply_flows_to_points(
    points: str | os.PathLike, flows: str | os.PathLike, output: str | os.PathLike, *, inverse: bool = False
) -> tuple[int, list[str]]:
    """Carry the landmarks of every table of a folder that has a flow of its name; or one table by one flow.

    Args:
        points: CSV files with columns x, y in px of the fixed image.
        flows, output: as of `apply_flows`.
        inverse: the points are of the moving image and go to the fixed one.

    Returns:
        As `apply_flows`.

    Raises:
        FileError: a file cannot be used, or a result would be written over one.
    """
    files = [Path(points)] if os.path.isfile(points) else list_files(points, (".csv",), "table")
    return _carry_all(files, flows, output, ".csv", _carry_points_back if inverse else _carry_points)


def _carry_all(
    files: list[Path], flows: str | os.PathLike, output: str | os.PathLike, suffix: str, carry: Carry
) -> tuple[int, list[str]]:
    """Check all files, then carry each that has a flow."""
    if os.path.isfile(flows):
        fields = {plain_stem(files[0]): Path(flows)} if len(files) == 1 else {}
    else:
        fields = flow_files(flows)
    todo = [(path, fields[plain_stem(path)]) for path in files if plain_stem(path) in fields]
    if not todo:
        nouns = "images" if suffix == ".png" else "tables"
        raise FileError.at(flows, f"flows named like the {nouns} in {files[0].parent}", "none")
    targets = [Path(output, f"{path.stem}{suffix}") for path, _ in todo]
    check_inputs_stay((path for path, _ in todo), targets)
    for path in (path for pair in todo for path in pair):
        if reason := lacking(path):
            raise FileError.at(path, "a file with its content", reason)
    for (path, file), target in zip(todo, targets, strict=True):
        carry(path, file, target)
    return len(todo), [path.stem for path in files if plain_stem(path) not in fields]


def _carry_image(path: Path, file: Path, target: Path) -> None:
    image = read_image(path, color=None)
    warped = apply_flow(image, _flow_for(image, file), background=0.0)
    levels = np.unique(image)
    if len(levels) <= FEW_LEVELS and len(np.setdiff1d(np.rint(warped * 65535), np.rint(levels * 65535))):
        expected = f"an image of more than {FEW_LEVELS} grey levels, or --labels with a label map"
        raise FileError.at(path, expected, f"{counted(len(levels), 'level')}, which interpolation would mix")
    write_image(target, warped)


def _carry_labels(path: Path, file: Path, target: Path) -> None:
    labels = read_label_map(path)
    write_label_map(target, carry_labels(labels, _flow_for(labels, file)))


def _carry_points(path: Path, file: Path, target: Path) -> None:
    flow = load_flow(file)
    _write_moved(path, target, carry_points(read_landmarks(path, size=flow.shape[1:]), flow))


def _carry_points_back(path: Path, file: Path, target: Path) -> None:
    _write_moved(path, target, carry_points_back(read_landmarks(path), load_flow(file)))


def _write_moved(path: Path, target: Path, points: np.ndarray) -> None:
    """Write a table with other coordinates; a point without a partner gets empty cells."""
    table = pd.read_csv(path, skipinitialspace=True)
    for column in table.columns:
        if (axis := str(column).strip().lower()) in ("x", "y"):
            table[column] = points[:, "xy".index(axis)]
    write_landmarks(target, table)


def _check_modality(images: str | os.PathLike, flows: str | os.PathLike, modality: str | None) -> None:
    of_flows = modality_of_flows(Path(flows).parent if os.path.isfile(flows) else flows)
    of_images = modality or named_modality(images)
    if of_flows and of_images and of_flows != of_images:
        expected = f"{of_flows} images, whose flows are in {os.fspath(flows)}"
        hint = "" if modality else f" by the name of the folder (--modality {of_flows} if that misleads)"
        raise FileError.at(images, expected, f"{of_images} images{hint}")
    if of_flows and not of_images:
        log.warning(f"{os.fspath(images)}: taken for {of_flows} images, as the flows are (--modality says otherwise)")


def _flow_for(image: np.ndarray, file: Path) -> np.ndarray:
    """Load a flow at the resolution of the fixed image, for an image that may have another size.

    Raises:
        FileError: it is no flow, or one for images of another size.
    """
    flow = load_flow(file, None)
    size = flow.shape[1:]
    # A flow for images of another size than the fixed one points at the middle of them; any other flow does not.
    middle = np.array([np.median(np.indices(size)[axis] + flow[1 - axis]) for axis in (0, 1)])
    fits = np.abs(middle / image.shape[:2] - 0.5).max() <= OFF_CENTRE
    return flow if fits and image.shape[:2] != size else load_flow(file, image.shape[:2])


def modality_of_flows(folder: str | os.PathLike) -> str | None:
    """Find the modality of saved flows, by settings.json beside their folder or by its path; None if nothing tells."""
    return stated_modality(Path(os.path.abspath(folder)).parent) or named_modality(folder)


def run(options: argparse.Namespace) -> None:
    """Carry the images or points of the options and say how many there were.

    Raises:
        FileError: as `apply_flows` and `apply_flows_to_points`.
    """
    if options.points:
        noun = "table"
        count, left_out = apply_flows_to_points(options.points, options.flow, options.output, inverse=options.inverse)
    else:
        noun, flows = "label map" if options.labels else "image", options.flow
        count, left_out = apply_flows(options.images, flows, options.output, options.modality, labels=options.labels)
    print(f"Wrote {counted(count, noun)} to {options.output}")
    if left_out:
        missing = f"left out {counted(len(left_out), noun)} without a flow: {listed(left_out)}"
        print(f"python -m tools.apply_flow: {missing}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.apply_flow``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.apply_flow", description=__doc__)
    carried = parser.add_mutually_exclusive_group(required=True)
    carried.add_argument("--images", metavar="DIR", help="folder of the images to warp, or one file")
    carried.add_argument("--points", metavar="DIR",
                         help="folder of CSV files of landmarks (columns x and y in px), or one file")
    parser.add_argument("--flow", metavar="DIR", required=True,
                        help="folder flow/ that the test command wrote with --save-flow, or one file")
    parser.add_argument("--output", metavar="DIR", required=True,
                        help="folder to write the warped images NAME.png or the points NAME.csv to")
    parser.add_argument("--labels", action="store_true",
                        help="the images are label maps: each pixel takes the nearest label, and none are mixed")
    parser.add_argument("--inverse", action="store_true", help="carry points from the moving to the fixed image")
    parser.add_argument("--modality", type=modality_name, choices=MODALITIES,
                        help="modality of the images, where the names of their folders do not tell it or mislead "
                             "(flows of another modality are refused)")
    options = parser.parse_args(arguments)
    if options.points and options.labels:
        parser.error("--labels: expected --images with it, found --points")
    if options.images and options.inverse:
        parser.error("--inverse: expected --points with it, found --images (--flow flow_inverse warps fixed images)")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
