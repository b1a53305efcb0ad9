"""Measure how well volumes are brought together, on simulated pairs whose truth is known.

    python -m tools.volume_accuracy --mri T1.mgz --labels aparc+aseg.mgz --poses 20
    python -m tools.volume_accuracy --mri T1.mgz --labels aparc+aseg.mgz --deform

The moving volumes are CT and PET in turn, painted on the labels of the MRI's own head. They are turned by up to 15
degrees about all axes and shifted by up to 25 mm along each, in voxels of other sizes and thick slices of other planes.
With --deform a smooth displacement within the axial slices, of the public benchmark's kind, comes on top, and the whole
registration is run. Errors are distances at points of the brain in mm, as means over the points (target registration
error).
"""

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from data.pairs import PairFiles
from data.tissue import Tissue
from evaluation.figures import new_figure, save_figure
from inference.pair_fuser import PairFuser
from inference.volumes.field import STRIDE, VolumeField
from inference.volumes.pair import BRAIN_WINDOW, VolumePair
from inference.volumes.pose import PoseError, estimate_pose
from inference.volumes.registration import register_volume
from models.checkpoint import load_checkpoint
from tools.make_heads import SLICE_STEP, slices_of_volume
from utils.arguments import OneLineParser, add_checkpoint, natural, positive, print_anywhere
from utils.command import run_command
from utils.geometry.head_box import SMALL, head_length
from utils.imaging.resampling import affine_transform, itk_image, resample_volume
from utils.imaging.volumes import Volume, robust_window, window
from utils.tables import write_table

TURN, SHIFT = 15.0, 25.0
"""Largest rotation about each axis, degrees, and shift along each, mm."""

SIGMA, LENGTH = 16.0, 3.7
"""Of the deformation: smoothness and mean length in the head, mm. The benchmark's are the same in px of about 1 mm."""

GRIDS = {
    "CT": ((0.6, 0.6, 3.0), (0.8, 0.8, 5.0), (1.0, 1.0, 1.0), (0.5, 0.5, 1.5)),
    "PET": ((2.0, 2.0, 2.0), (2.5, 2.5, 3.3), (4.0, 2.0, 2.0), (2.0, 4.0, 2.0)),
}
"""Voxel sizes along columns, rows and slices, mm; the last two of PET are thick sagittal and coronal slices."""

VALUES = {
    "CT": {Tissue.AIR: -1000, Tissue.SCALP: 20, Tissue.BONE: 900, Tissue.FLUID: 8, Tissue.GREY: 38, Tissue.WHITE: 29},
    "PET": {Tissue.AIR: 0, Tissue.SCALP: 15, Tissue.BONE: 8, Tissue.FLUID: 8, Tissue.GREY: 100, Tissue.WHITE: 35},
}
BLUR, NOISE = {"CT": 0.6, "PET": 2.5}, {"CT": 4.0, "PET": 2.0}
"""Standard deviation of the scanner's blur, px of 1 mm, and of its noise, in the values' units."""

_POINTS, _EXTENT = 400, (230.0, 260.0, 230.0)  # points of the brain; mm along columns, rows and slices
_FLIP = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS


class SimulatedPair(NamedTuple):
    """Two volumes of one head.

    Attributes:
        modality: CT or PET.
        fixed, moving: the volumes.
        points, truth: (N, 3), RAS mm: points of the brain in the fixed space and where they lie in the moving space.
    """

    modality: str
    fixed: Volume
    moving: Volume
    points: NDArray[np.float64]
    truth: NDArray[np.float64]


class Head(NamedTuple):
    """An MRI and the tissue of the same head, (S, H, W) each, on the grid of `affine`, (4, 4), RAS mm."""

    mri: NDArray[np.float32]
    tissue: NDArray[np.uint8]
    affine: NDArray[np.float64]


def read_head(mri: str, labels: str | None) -> Head:
    """Read a head at 1 mm, with a slice every `SLICE_STEP` mm.

    Raises:
        FileError: a file cannot be read.
    """
    slices = list(slices_of_volume(mri, labels))
    affine = np.diag([-1.0, -1.0, SLICE_STEP, 1.0])
    affine[:3, 3] = 127.5, 127.5, -SLICE_STEP * len(slices) / 2
    return Head(np.stack([x.mri for x in slices]), np.stack([x.tissue for x in slices]), affine)


def simulate(head: Head, number: int, modality: str, deform: bool) -> SimulatedPair:
    """Make a pair; the same number makes the same one.

    Args:
        deform: displace the moving head smoothly as well.
    """
    generator = np.random.default_rng([number, modality == "PET"])
    values = np.array([VALUES[modality][tissue] for tissue in Tissue], np.float32)[head.tissue]
    source = Volume(gaussian_filter(values, BLUR[modality]), head.affine, "", "HU" if modality == "CT" else "")
    fixed = source._replace(slices=head.mri, units="")
    brain = np.argwhere(head.tissue >= Tissue.FLUID)[:, ::-1]
    points = generator.choice(brain, _POINTS) @ head.affine[:3, :3].T + head.affine[:3, 3]

    pose, centre = np.eye(4), points.mean(axis=0)
    pose[:3, :3] = Rotation.from_euler("xyz", generator.uniform(-TURN, TURN, 3), degrees=True).as_matrix()
    pose[:3, 3] = centre - pose[:3, :3] @ centre + generator.uniform(-SHIFT, SHIFT, 3)
    steps: list[sitk.Transform] = [affine_transform(np.linalg.inv(pose))]
    origins = points
    if deform:
        field = _deformation(head, generator)
        steps.insert(0, field)
        origins = _before(field, points)
    sides = np.array(GRIDS[modality][number // 2 % len(GRIDS[modality])])
    counts = np.ceil(np.array(_EXTENT) / sides).astype(int)
    affine = np.diag([-sides[0], -sides[1], sides[2], 1.0])
    affine[:3, 3] = pose[:3, :3] @ centre + pose[:3, 3] - affine[:3, :3] @ ((counts - 1) / 2)
    grid = Volume(np.zeros(counts[::-1], np.float32), affine, "", source.units)
    moving = resample_volume(source, grid, sitk.CompositeTransform(steps))
    noise = generator.normal(0, NOISE[modality], moving.slices.shape).astype(np.float32)
    moving = moving._replace(slices=moving.slices + noise)
    return SimulatedPair(modality, fixed, moving, points, origins @ pose[:3, :3].T + pose[:3, 3])


def _deformation(head: Head, generator: np.random.Generator) -> sitk.DisplacementFieldTransform:
    """Draw a smooth displacement within the axial slices."""
    depth, height, width = (side // step for side, step in zip(head.mri.shape, (2, 4, 4), strict=True))
    steps = np.array([width, height, depth])
    affine = head.affine @ np.diag([*np.array(head.mri.shape[::-1]) / steps, 1])
    sigma = SIGMA / np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    vectors = np.zeros((depth, height, width, 3))
    for axis in (0, 1):
        vectors[..., axis] = gaussian_filter(generator.normal(size=vectors.shape[:3]), sigma)
    inside = head.tissue[::2, ::4, ::4][:depth, :height, :width] > 0
    vectors *= LENGTH / np.linalg.norm(vectors[inside], axis=1).mean()
    return sitk.DisplacementFieldTransform(itk_image(vectors, affine))


def _before(field: sitk.Transform, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the points, (N, 3) RAS mm, that a smooth displacement leads to these points."""
    origins = points.copy()
    for _ in range(30):
        origins += points - _moved(field, origins)
    return origins


def _moved(transform: sitk.Transform, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([transform.TransformPoint((point * _FLIP).tolist()) for point in points]) * _FLIP


def error(pair: SimulatedPair, transform: sitk.Transform) -> float:
    """Compute the mean distance between where a transform puts the points and where they lie, mm."""
    return float(np.linalg.norm(_moved(transform, pair.points) - pair.truth, axis=1).mean())


def register(pair: SimulatedPair, pose: sitk.Transform, fuse: PairFuser) -> VolumeField:
    """Estimate the displacement field of a pair after its pose."""
    volumes = {"fixed": pair.fixed, "moving": resample_volume(pair.moving, pair.fixed, pose)}
    shown = BRAIN_WINDOW if pair.modality == "CT" else robust_window(pair.moving.slices)
    windows = {"fixed": robust_window(pair.fixed.slices), "moving": shown}
    levels = {role: window(volume.slices, *windows[role]) for role, volume in volumes.items()}
    sources = {"fixed": pair.fixed, "moving": pair.moving}
    whole = VolumePair("simulated", volumes, levels, shown, {"moving": 1.0}, sources)
    longest = min(SMALL, max(head_length(slice_) for slice_ in levels["fixed"]))
    pairs = [PairFiles("simulated", Path(), Path(), longest=longest)] * len(levels["fixed"])
    return register_volume(whole, pairs, fuse, threading.Event())


def score(pair: SimulatedPair, fuse: PairFuser | None, picture: Path | None = None) -> dict[str, float | str]:
    """Find the pose of a pair, and its displacement where something estimates it; return a row of the table.

    Args:
        picture: PNG file to draw coronal views to; None draws none.
    """
    by_headers = sitk.Transform(3, sitk.sitkIdentity)
    row: dict[str, float | str] = {"modality": pair.modality, "before": error(pair, by_headers)}
    start = time.perf_counter()
    try:
        pose = estimate_pose(pair.fixed, pair.moving).transform
    except PoseError:
        return row | {"pose": np.inf}
    row |= {"pose": error(pair, pose), "pose_seconds": time.perf_counter() - start}
    if fuse:
        start = time.perf_counter()
        field = register(pair, pose, fuse)
        after = sitk.CompositeTransform([pose, field.transform(pair.fixed)])
        row |= {"all": error(pair, after), "all_seconds": time.perf_counter() - start}
        # A step is SLICE_STEP mm: at 1 mm it is that share of it.
        row["jump"] = jump(field.flows) / SLICE_STEP
        if picture:
            draw(pair, {"by the headers": None, "after the pose": pose, "after all": after}, picture)
    return row


def draw(pair: SimulatedPair, transforms: dict[str, sitk.Transform | None], path: Path) -> None:
    """Draw a coronal view of the fixed volume, and of the moving one through each transform with the fixed one's edges.

    Raises:
        FileError: the file cannot be written.
    """
    row = pair.fixed.slices.shape[1] // 2
    views = {"MRI": window(pair.fixed.slices, *robust_window(pair.fixed.slices))[::-1, row]}
    shown = BRAIN_WINDOW if pair.modality == "CT" else robust_window(pair.moving.slices)
    for name, transform in transforms.items():
        moved = resample_volume(pair.moving, pair.fixed, transform).slices[::-1, row]
        views[f"{pair.modality}, {name}"] = window(moved, *shown)
    figure = new_figure(3 * len(views), 3.2)
    figure.set_layout_engine("constrained")
    for panel, (title, view) in zip(figure.subplots(1, len(views)), views.items(), strict=True):
        panel.imshow(view, cmap="gray", vmin=0, vmax=1, aspect=SLICE_STEP)
        panel.contour(gaussian_filter(views["MRI"], 1), [0.25], colors="tab:orange", linewidths=0.7)
        panel.set(title=title, xticks=[], yticks=[])
    save_figure(path, figure)


def run(options: argparse.Namespace) -> None:
    """Register the simulated pairs of the options, and print and write their errors.

    Raises:
        InputError: a file cannot be used.
    """
    head, fuse = read_head(options.mri, options.labels), None
    if options.deform:
        checkpoint = load_checkpoint(options.checkpoint)
        fuse = PairFuser(checkpoint.model, torch.device("cpu"), **checkpoint.inference() | {"multistart": False})
    rows = []
    numbers = range(options.first, options.first + options.poses)
    for number in tqdm(numbers, desc="poses", unit="pair", disable=None):
        pair = simulate(head, number, ("CT", "PET")[number % 2], options.deform)
        rows.append({"number": number, **score(pair, fuse, options.picture)})
        table = pd.DataFrame(rows)
        if options.output:  # each time, as a run takes long
            write_table(options.output, table, "%.3f")
    print(table.to_string(index=False, float_format="{:.2f}".format))
    if options.deform:
        return  # the pose alone cannot be right then
    right = int((table["pose"] < 1.5).sum())
    print(f"after the pose: {right} of {len(table)} below 1.5 mm, median {table['pose'].median():.2f} mm, "
          f"largest {table['pose'].max():.2f} mm")  # fmt: skip


def jump(flows: NDArray[np.float32]) -> float:
    """Compute the mean difference between the fields of neighbouring slices, px of the image.

    Args:
        flows: (S, 2, h, w), px of a grid of every `STRIDE`-th pixel.
    """
    return float(np.linalg.norm(np.diff(flows, axis=0), axis=1).mean() * STRIDE)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.volume_accuracy``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.volume_accuracy", description=__doc__)
    parser.add_argument("--mri", metavar="FILE", required=True, help="MRI of a whole head: NIfTI or MGH")
    parser.add_argument("--labels", metavar="FILE",
                        help="FreeSurfer's labels of the MRI (default: tissue by intensity)")
    parser.add_argument("--poses", type=positive, default=20, metavar="N",
                        help="number of pairs to simulate (default: %(default)s)")
    parser.add_argument("--first", type=natural, default=0, metavar="N",
                        help="number of the first pose, to go on with others (default: %(default)s)")
    parser.add_argument("--deform", action="store_true", help="deform the moving heads and run the whole registration")
    add_checkpoint(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV table to write, with a row for each pair")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="PNG file to write, with coronal views of the last pair")
    options = parser.parse_args(arguments)
    if options.picture and not options.deform:
        parser.error("--picture: expected --deform with it, found none")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
