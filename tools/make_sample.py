"""Simulate pairs of an MRI slice and an aligned CT, PET or SPECT slice, such as the embedded sample.

    python -m tools.make_sample --output DIR                # the embedded sample
    python -m tools.make_sample --training 80 --output DIR  # pairs to train on

Everything here is simulated: the anatomy is the ICBM152 2009a template (T1, grey and white matter at 1 mm, brain
only) that the nilearn package carries, the skull and scalp are shells around it, and the contrasts follow from tissue
classes. It serves to show that the programs run and to test them; it is no substitute for patients' images.

Making the sample needs nilearn (requirements-dev.txt); reading it does not.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from data.deformation import BENCHMARK, DeformationRange, random_flow
from data.simulated_heads import COLORS, SIZE, Array
from data.tissue import Tissue as Label
from tools.misalign import write_misaligned
from utils.arguments import OneLineParser, natural, positive, print_anywhere
from utils.command import run_command
from utils.files import FileError, InputError, write_bytes
from utils.geometry.warp import resize_flow
from utils.imaging.images import write_image

SLICES = {"CT": (70, 90, 116), "PET": (76, 96, 108), "SPECT": (72, 84, 102)}
"""Axial slices of the template in the embedded sample, in voxels of 1 mm from its lowest one."""
TRAINING_SLICES = (50, 141)
"""First and last + 1 of the slices that training pairs show."""

_SHELL_MARGIN = 36
_SHELL_STEP = 2
_INDIVIDUAL = DeformationRange(amplitude=(1.0, 3.0), sigma=(30.0, 45.0))

class Anatomy(NamedTuple):
    """Template volumes; axes are left to right, back to front, bottom to top."""

    grey: Array
    """(197, 233, 189) share of grey matter in each voxel of 1 mm, 0 to 1."""
    white: Array
    """The same of white matter."""
    depth: Array
    """Distance in mm from the inner surface of the skull, negative inside; every 2 mm, with a margin of 36 mm."""


class TissueShares(NamedTuple):
    """One slice of one simulated head: shares of each tissue, (H, W), 0 to 1; what is left of 1 is air."""

    grey: Array
    white: Array
    fluid: Array
    skull: Array
    marrow: Array
    """How much of the skull at this place is marrow instead of hard bone, 0 to 1."""
    scalp: Array
    skin: Array
    """How much of the scalp at this place is skin instead of fat, 0 to 1."""


@functools.cache
def load_anatomy() -> Anatomy:
    """Load the template from the nilearn package, without a download.

    Raises:
        ImportError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError("simulating images needs nilearn: pip install -r requirements-dev.txt") from error
    brain, grey, white = (load(resolution=1).get_fdata(dtype=np.float32) for load in (
        datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template))
    inside = np.pad(brain > 0, _SHELL_MARGIN)[::_SHELL_STEP, ::_SHELL_STEP, ::_SHELL_STEP]
    # Closing by 30 mm bridges the fissures; it is 1 mm short on the way back, a film of fluid under the skull.
    reach = distance_transform_edt(~inside, sampling=_SHELL_STEP) > 30
    inside = distance_transform_edt(~reach, sampling=_SHELL_STEP) > 29
    depth = distance_transform_edt(~inside, sampling=_SHELL_STEP) - distance_transform_edt(inside, sampling=_SHELL_STEP)
    return Anatomy(grey, white, gaussian_filter(depth, 2).astype(np.float32))


def simulate_pair(
    slice_index: float,
    modality: str,
    generator: torch.Generator,
    *,
    weighting: str | None = None,
    max_tilt: float = 8.0,
    max_rotation: float = 6.0,
) -> tuple[Array, Array]:
    """Simulate an MRI slice and the CT, PET or SPECT slice that is aligned with it.

    Position, size, shape, folding of the cortex, thickness of skull and scalp, contrast and noise are drawn anew for
    each pair, so that one slice gives any number of heads.

    Args:
        slice_index: height in the template in mm from its lowest slice; 60 (temporal lobes) to 140 (vertex).
        modality: CT, PET or SPECT.
        generator: the only source of randomness.
        weighting: MRI contrast, ``T1`` or ``T2``; None takes what the Harvard atlas mostly shows beside the modality,
            T1 for PET and T2 for the others.
        max_tilt: largest tilt of the plane about the left-right axis, degrees; half of it about the front-back axis.
        max_rotation: largest rotation within the plane, degrees.

    Returns:
        fixed (256, 256) and moving_aligned, (256, 256) for CT or RGB (256, 256, 3); float32 in [0, 1].

    Raises:
        ValueError: unknown modality or weighting.
        ImportError: nilearn is not installed.
    """
    if modality not in SLICES:
        raise ValueError(f"modality: expected one of {', '.join(SLICES)}, found {modality!r}")
    weighting = weighting or ("T1" if modality == "PET" else "T2")
    if weighting not in ("T1", "T2"):
        raise ValueError(f"weighting: expected T1 or T2, found {weighting!r}")
    draw = _Draw(generator)
    tissue = _cut(load_anatomy(), slice_index, draw, max_tilt, max_rotation)
    fixed = _mri(tissue, weighting, draw)
    if modality == "CT":
        return fixed, _ct(tissue, draw)
    uptake = _pet(tissue, draw) if modality == "PET" else _spect(tissue, draw)
    return fixed, _colored(uptake, modality)


def simulated_tissue(
    slice_index: float, weighting: str, generator: torch.Generator
) -> tuple[Array, NDArray[np.uint8]]:
    """Simulate an MRI slice with its tissue labels.

    Args:
        slice_index: height in the template, as in `simulate_pair`.
        weighting: ``T1`` or ``T2``.
        generator: the only source of randomness.

    Returns:
        MRI (256, 256), float32 in [0, 1], and labels (256, 256) of `data.tissue.Tissue`.
    """
    draw = _Draw(generator)
    tissue = _cut(load_anatomy(), slice_index, draw, max_tilt=8.0, max_rotation=6.0)
    shares = {
        Label.SCALP: tissue.scalp, Label.BONE: tissue.skull, Label.FLUID: tissue.fluid, Label.GREY: tissue.grey,
        Label.WHITE: tissue.white,
    }  # fmt: skip
    shares[Label.AIR] = 1 - np.sum(list(shares.values()), axis=0)
    return _mri(tissue, weighting, draw), np.argmax([shares[label] for label in Label], axis=0).astype(np.uint8)


class _Draw:
    """Random numbers and smooth random fields from one torch generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def field(self, sigma: float) -> Array:
        """Draw a Gaussian random field (SIZE, SIZE), zero mean, unit variance; ``sigma`` in px, 0 for white noise."""
        noise = torch.randn(SIZE, SIZE, generator=self.generator).numpy()
        if sigma == 0:
            return noise
        # White noise blurred by sigma keeps 1 / (2 sqrt(pi) sigma) of its standard deviation.
        return gaussian_filter(noise, sigma, mode="wrap") * np.float32(2 * np.sqrt(np.pi) * sigma)


def _cut(anatomy: Anatomy, slice_index: float, draw: _Draw, max_tilt: float, max_rotation: float) -> TissueShares:
    """Cut a tilted plane out of the template and give it an individual head's shape."""
    spin, pitch = draw.uniform(-max_rotation, max_rotation), draw.uniform(-max_tilt, max_tilt)
    roll = draw.uniform(-max_tilt, max_tilt) / 2
    shape = resize_flow(random_flow((SIZE, SIZE), _INDIVIDUAL, draw.generator), (SIZE, SIZE))[0].numpy()
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2
    spacing = draw.uniform(0.95, 1.08)
    plane = np.stack([(columns + shape[0]) * spacing, -(rows + shape[1]) * spacing, np.zeros_like(rows)])
    # About the left-right, front-back and vertical axis, each carried along by those before it.
    rotation = Rotation.from_euler("XYZ", [pitch, roll, spin], degrees=True).as_matrix()
    points = np.tensordot(rotation, plane, 1)
    # Voxel (98, 116) is on the midline, halfway between the frontal and the occipital pole.
    points += np.array([98 + draw.uniform(-4, 4), 116 + draw.uniform(-4, 4), slice_index]).reshape(3, 1, 1)

    depth = map_coordinates(anatomy.depth, (points + _SHELL_MARGIN) / _SHELL_STEP, order=1, mode="nearest")
    grey, white = (map_coordinates(volume, points, order=1) for volume in (anatomy.grey, anatomy.white))
    brain = _at_most(depth, 0)
    # The template is a mean of 152 brains. Sharper shares, pushed about by smooth noise, fold its cortex anew.
    shares = np.stack([grey, white, np.clip(1 - grey - white, 0, 1)]) + np.float32(0.02)
    folds = np.stack([draw.field(2.2), draw.field(2.2), 1.6 * draw.field(1.8)])
    odds = np.exp(2.2 * np.log(shares) + 0.75 * folds)
    grey, white, fluid = odds / odds.sum(0) * brain

    skull_end = draw.uniform(5, 7.5) * np.exp(0.15 * draw.field(30))
    scalp_end = skull_end + draw.uniform(4, 6.5) * np.exp(0.2 * draw.field(30))
    skull = _at_most(depth, skull_end) - brain
    scalp = _at_most(depth, scalp_end) - brain - skull
    marrow = np.exp(-(((depth / skull_end - 0.5) / 0.22) ** 2))
    skin = _at_most(scalp_end - depth, 1.5)
    return TissueShares(*(np.asarray(a, np.float32) for a in (grey, white, fluid, skull, marrow, scalp, skin)))


def _at_most(value: Array, limit: Array | float) -> Array:
    """Return 1 where value < limit and 0 where it is larger, with an edge of about 1 px."""
    return 1 / (1 + np.exp(np.clip((value - limit) / 0.35, -40, 40)))


def _mri(tissue: TissueShares, weighting: str, draw: _Draw) -> Array:
    """Paint a T1- or T2-weighted image: bright scalp, dark skull with some marrow, bias field and noise."""
    if weighting == "T1":
        grey, white, fluid, fat = (draw.uniform(*r) for r in ((0.5, 0.6), (0.7, 0.8), (0.1, 0.2), (0.9, 1.1)))
    else:
        grey, white, fluid, fat = (draw.uniform(*r) for r in ((0.42, 0.52), (0.28, 0.36), (0.75, 1), (0.4, 0.6)))
    # Vessels, membranes and partial volume keep the fluid of the sulci from being one even tone.
    fluid = fluid * np.exp(0.08 * draw.field(1.5))
    image = grey * tissue.grey + white * tissue.white + fluid * tissue.fluid
    image += tissue.skull * (0.03 + 0.3 * fat * tissue.marrow)
    image += tissue.scalp * fat * (1 - 0.45 * tissue.skin) * np.exp(0.12 * draw.field(2))
    image *= np.exp(0.06 * draw.field(60) + 0.03 * draw.field(1.2))
    real, imaginary = (draw.uniform(0.006, 0.014) * draw.field(0) for _ in range(2))
    return np.clip(np.hypot(gaussian_filter(image, 0.5) + real, imaginary), 0, 1).astype(np.float32)


def _ct(tissue: TissueShares, draw: _Draw) -> Array:
    """Paint attenuation in Hounsfield units through a brain window."""
    air = 1 - tissue.grey - tissue.white - tissue.fluid - tissue.skull - tissue.scalp
    hu = 38 * tissue.grey + 29 * tissue.white + 6 * tissue.fluid - 1000 * air
    hu += tissue.skull * (1400 - 900 * tissue.marrow) + tissue.scalp * (-95 + 125 * tissue.skin)
    hu = gaussian_filter(hu, 0.6) + 1.2 * draw.field(3) + draw.uniform(1.8, 3.2) * draw.field(0.7)
    center, width = draw.uniform(32, 40), draw.uniform(75, 100)
    return np.clip((hu - center) / width + 0.5, 0, 1).astype(np.float32)


def _pet(tissue: TissueShares, draw: _Draw) -> Array:
    """Paint FDG-like uptake: grey matter about four times white matter, blur of 6 mm full width at half maximum."""
    uptake = draw.uniform(3.7, 4.3) * tissue.grey + tissue.white + 0.3 * tissue.scalp
    uptake = uptake * np.exp(0.11 * draw.field(14))
    return _scanned(uptake, 6, 0.06 * draw.field(2.5), draw.uniform(0.88, 1))


def _spect(tissue: TissueShares, draw: _Draw) -> Array:
    """Paint perfusion-like uptake: less contrast than PET, some in the scalp, blur of 10 mm (half maximum)."""
    uptake = draw.uniform(3.2, 4) * tissue.grey + 1.3 * tissue.white + 1.1 * tissue.scalp
    uptake = uptake * np.exp(0.15 * draw.field(14))
    return _scanned(uptake, 10, 0.07 * draw.field(4), draw.uniform(0.86, 1))


def _scanned(uptake: Array, blur: float, noise: Array, exposure: float) -> Array:
    """Simulate a scanner: blurred to ``blur`` px full width at half maximum, with noise that grows as the root of
    the counts, and scaled so that the hottest places come near the end of the colour table."""
    blurred = gaussian_filter(uptake, blur / 2.355)
    blurred += noise * np.sqrt(blurred)
    return np.clip(blurred / np.percentile(blurred, 99.5) * exposure, 0, 1)


def _colored(uptake: Array, modality: str) -> Array:
    """Map uptake (H, W) in [0, 1] to RGB (H, W, 3) in [0, 1] by the modality's colour table."""
    level, *channels = np.array(COLORS[modality], np.float64).T
    return np.stack([np.interp(uptake, level, channel) for channel in channels], -1).astype(np.float32) / 255


def make_sample(output: Path, seed: int) -> None:
    """Write the sample: ``output/MODALITY/{fixed,moving,label}/NAME.png`` and ``flow/NAME.npy``.

    Raises:
        FileError: a file cannot be written.
        ImportError: nilearn is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    for modality, slices in SLICES.items():
        for slice_index in slices:
            folder, name = output / modality, f"simulated_{slice_index:03d}"
            fixed, label = simulate_pair(slice_index, modality, generator)
            write_misaligned(folder, name, fixed, label, random_flow((SIZE, SIZE), BENCHMARK, generator))


def make_training(output: Path, count: int, seed: int) -> None:
    """Write aligned pairs in the layout of the training data: ``output/MODALITY-MRI/{MRI,MODALITY}/simXXX.png``.

    A `split.csv` marks them all for training, so that validation stays with real images. No pair shows a slice within
    1 mm of one of the sample's, and every pair has its own anatomy, pose and contrast.

    Raises:
        FileError: a file cannot be written, or there are pairs already, which the new `split.csv` would not name.
        ImportError: nilearn is not installed.
    """
    for modality in SLICES:
        if (folder := output / f"{modality}-MRI").exists():
            expected = "nothing there, as pairs get a split.csv of their own (choose another --output)"
            raise FileError.at(folder, expected, "a folder")
    generator = torch.Generator().manual_seed(seed)
    for modality, used in SLICES.items():
        free = [s for s in range(*TRAINING_SLICES) if min(abs(s - u) for u in used) > 1]
        for number in tqdm(range(count), desc=modality, unit="pair"):
            fixed, moving = simulate_pair(free[number * len(free) // count % len(free)], modality, generator)
            folder = output / f"{modality}-MRI"
            write_image(folder / "MRI" / f"sim{number:03d}.png", fixed)
            write_image(folder / modality / f"sim{number:03d}.png", moving)
        rows = "".join(f"train,sim{number:03d}.png\n" for number in range(count))
        write_bytes(output / f"{modality}-MRI" / "split.csv", f"split,name\n{rows}".encode())


def run(options: argparse.Namespace) -> None:
    """Write the sample, or the pairs to train on.

    Raises:
        InputError: a file cannot be written, or nilearn is missing.
    """
    try:
        if options.training is not None:
            make_training(options.output, options.training, options.seed)
        else:
            make_sample(options.output, options.seed)
    except ImportError as error:
        raise InputError(str(error)) from error
    count = (options.training or 0) * len(SLICES) or sum(map(len, SLICES.values()))
    print(f"Wrote {count} simulated pairs to {options.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.make_sample``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.make_sample", description=__doc__)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    parser.add_argument("--training", type=positive, metavar="N",
                        help="make N aligned pairs of each modality to train on, instead of the sample")
    parser.add_argument("--seed", type=natural, default=0, metavar="N",
                        help="seed of all random draws (default: %(default)s, that of the embedded sample)")
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
