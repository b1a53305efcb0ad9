"""Pairs of images with exact truth that no scanner made: labelled heads and random shapes, painted anew at each draw.

Three patients of PET are learned by heart; heads without end are not. A draw takes the MRI and the labels of a real
head and paints a CT, PET or SPECT image on the labels. Or it shows a head of random shapes, with random grey values in
both images (SynthMorph, Hoffmann et al. 2022). Both images come from one grid, so they lie on each other exactly.
"""

import functools
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data.deformation import random_field
from data.table import DataError, read_csv
from data.tissue import Tissue
from utils.filters import resize
from utils.imaging.images import read_image

SIZE = 256
"""Height and width of a simulated image; a pixel is about 1 mm."""

SHAPES = 0.4
"""Share of the draws that show random shapes; the others show labelled heads. Without labelled heads it is 1."""

COLORS = {
    "PET": ((0, 0, 0, 0), (0.2, 0, 0, 135), (0.4, 0, 80, 240), (0.55, 115, 160, 120), (0.68, 240, 235, 0),
            (0.8, 255, 150, 0), (0.91, 255, 0, 0), (1, 255, 0, 220)),
    "SPECT": ((0, 0, 0, 0), (0.18, 32, 66, 70), (0.36, 72, 0, 132), (0.54, 140, 42, 128), (0.7, 205, 90, 92),
              (0.84, 250, 106, 4), (0.93, 255, 175, 150), (1, 255, 255, 255)),
}  # fmt: skip
"""Colours from no to full uptake, each (level, R, G, B), in the manner of the two displays of the Harvard atlas."""

_MAPS = ("hot", "jet", "nipy_spectral", "gist_heat", "inferno")
"""Colour tables of other displays, as matplotlib names them."""

Array = NDArray[np.float32]


class HeadSlice(NamedTuple):
    """One slice of a head.

    Attributes:
        mri: (256, 256) in [0, 1].
        tissue: (256, 256) of `data.tissue.Tissue`, uint8.
    """

    mri: Array
    tissue: NDArray[np.uint8]


class Recipe(NamedTuple):
    """What a draw paints.

    Attributes:
        contrast: of the moving image: CT, PET, SPECT, `thallium` (dark brain, bright scalp, glands and a lesion) or
            `random` (any grey value for any tissue).
        stripped: the fixed image shows the brain alone.
        faint: the fixed image has little contrast.
        varied: the fixed image is painted anew in some draws.
    """

    contrast: str
    stripped: bool = False
    faint: bool = False
    varied: bool = True


class Draw:
    """Random numbers, fields and shapes from one torch generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw one number, uniformly."""
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, share: float) -> bool:
        """Return True in that share of the draws."""
        return self.uniform() < share

    def values(self, count: int) -> Array:
        """Draw numbers in [0, 1]."""
        return torch.rand(count, generator=self.generator).numpy()

    def fields(self, count: int, sigma: float) -> Array:
        """Draw smooth fields (count, 256, 256) of zero mean and unit variance; `sigma` in px, from 6 up."""
        side = SIZE // 4 if sigma < 16 else SIZE // 8
        coarse = random_field(count, (side, side), sigma * side / SIZE, self.generator)
        return resize(coarse, (SIZE, SIZE))[0].numpy()

    def noise(self) -> Array:
        """Draw white noise (256, 256) of unit variance."""
        return torch.randn(SIZE, SIZE, generator=self.generator).numpy()


class LabelledHeads:
    """Slices of heads with tissue labels, kept as bytes.

    Args:
        folder: as `python -m tools.make_heads` writes it: `heads.csv` with the columns ``fixed, moving`` (MRI and label
            image, relative to the folder) and ``split``.
        split: which of them to take, train or test.
        without: patients (the column ``group``) to leave out, as they are validated on.

    Raises:
        DataError: no such table, none of that split, or images that are not 256 x 256.
    """

    def __init__(self, folder: str | os.PathLike, split: str = "train", without: Collection[str] = ()) -> None:
        path = Path(folder, "heads.csv")
        table = read_csv(path, ("fixed", "moving", "split", "group"))
        table = table[(table["split"] == split) & ~table["group"].isin(without)]
        if table.empty:
            raise DataError.at(path, f"heads of the split {split} and of patients to train on", "none")
        self.names = [Path(name).stem for name in table["fixed"]]
        self.groups = list(table["group"])
        self._slices = [(self._read(folder, mri), self._read(folder, tissue))
                        for mri, tissue in zip(table["fixed"], table["moving"], strict=True)]  # fmt: skip

    @staticmethod
    def _read(folder: str | os.PathLike, name: str) -> NDArray[np.uint8]:
        image = (read_image(Path(folder, name)) * 255).round().astype(np.uint8).squeeze()
        if image.shape != (SIZE, SIZE):
            raise DataError.at(Path(folder, name), f"{SIZE} x {SIZE} px", " x ".join(map(str, image.shape)))
        return image

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, row: int) -> HeadSlice:
        mri, tissue = self._slices[row]
        return HeadSlice(mri.astype(np.float32) / 255, tissue)


def simulated_pair(modality: str, generator: torch.Generator, heads: LabelledHeads | None = None) -> torch.Tensor:
    """Draw an aligned pair for training.

    Args:
        modality: CT, PET or SPECT, which the moving image mostly resembles.
        generator: the only source of randomness.
        heads: to paint on; None draws random shapes only.

    Returns:
        (1, 2, 256, 256) in [0, 1]: fixed and moving image, which lie on each other exactly.
    """
    draw = Draw(generator)
    if not heads or draw.chance(SHAPES):
        return as_pair(*_shapes(draw, sharp=modality == "CT"))
    head = heads[int(draw.uniform(0, len(heads) - 1e-6))]
    thallium = {"CT": 0.0, "PET": 0.12, "SPECT": 0.3}[modality]
    contrast = "thallium" if draw.chance(thallium) else "random" if draw.chance(0.15) else modality
    recipe = Recipe(contrast, stripped=draw.chance(0.2), faint=draw.chance(0.25))
    fixed, moving = paint(head, recipe, draw)
    if draw.chance(0.5):
        fixed = remapped(fixed, draw)
    if draw.chance(0.1):
        moving = _cut_off(moving, draw)
    return as_pair(fixed, moving)


def paint(head: HeadSlice, recipe: Recipe, draw: Draw) -> tuple[Array, Array]:
    """Paint a fixed and a moving image of one head, (256, 256) each, in [0, 1]."""
    tissue = _with_lesion(head.tissue, draw)
    fixed = head.mri
    if recipe.varied and draw.chance(0.15):
        fixed = _blurred(_random_greys(draw)[tissue] * (tissue > 0), draw.uniform(0.4, 1.2))
    elif draw.chance(0.3):
        # The lesion shows in both.
        fixed = np.where(tissue > Tissue.WHITE, draw.uniform() * 0.6 + 0.4 * fixed, fixed)
    brain = tissue >= Tissue.FLUID
    stripped = recipe.stripped and brain.any()
    if stripped:
        fixed = fixed * brain
    if recipe.faint:
        low, high = draw.uniform(0.0, 0.3), draw.uniform(0.35, 0.7)
        fixed = np.where(fixed > 0.04, low + (high - low) * fixed, fixed)
    if stripped and draw.chance(0.3):
        tissue = tissue * brain
    if recipe.contrast == "CT":
        moving = _ct(tissue, draw)
    else:
        moving = _tracer(tissue, recipe.contrast, draw)
    return fixed.astype(np.float32), moving


def as_pair(fixed: Array, moving: Array) -> torch.Tensor:
    """Stack two images (256, 256) to a tensor (1, 2, 256, 256) in [0, 1]."""
    return torch.from_numpy(np.stack((fixed, moving)).clip(0, 1).astype(np.float32))[None]


def _blurred(image: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma) if sigma >= 0.3 else image


LESION = len(Tissue)
"""Label of what is added to a head."""


def _with_lesion(tissue: NDArray[np.uint8], draw: Draw) -> NDArray[np.uint8]:
    """Add an ellipse of `LESION` in the brain to the labels, in a third of the draws."""
    places = np.flatnonzero(tissue >= Tissue.FLUID) if draw.chance(0.35) else ()
    if not len(places):
        return tissue
    y, x = divmod(int(places[int(draw.uniform(0, len(places) - 1e-6))]), SIZE)
    axes = round(draw.uniform(4, 18)), round(draw.uniform(4, 18))
    mask = np.zeros_like(tissue)
    cv2.ellipse(mask, (x, y), axes, draw.uniform(0, 180), 0, 360, 1, -1)
    return np.where((mask > 0) & (tissue >= Tissue.FLUID), np.uint8(LESION), tissue)


def _random_greys(draw: Draw) -> Array:
    values = draw.values(LESION + 1)
    values[Tissue.AIR] = 0
    return values


def _ct(tissue: NDArray[np.uint8], draw: Draw) -> Array:
    """Paint attenuation through a window for brain, wide, or bone."""
    middle, contrast = draw.uniform(0.25, 0.6), draw.uniform(0.02, 0.16)
    bone = draw.uniform(0.75, 1.0)
    values = np.array([
        0, draw.uniform(0.05, 0.7), bone, middle - 1.3 * contrast, middle + 0.35 * contrast, middle - 0.3 * contrast,
        middle + contrast * draw.uniform(-2, 3),
    ], np.float32)  # fmt: skip
    image = values[tissue] * (1 + 0.04 * draw.fields(1, 20.0)[0] * (tissue >= Tissue.FLUID))
    image = _blurred(image, draw.uniform(0.5, 1.4))
    return (image + draw.uniform(0, 0.03) * _blurred(draw.noise(), 0.6) * 1.5 * (image > 0.02)).clip(0, 1)


def _uptake(contrast: str, draw: Draw) -> Array:
    """Draw the uptake of air, scalp, bone, fluid, grey matter, white matter and a lesion; the largest is about 1."""
    u = draw.uniform
    if contrast == "PET":
        values = [0, u(0, 0.25), u(0, 0.15), u(0, 0.2), u(0.7, 1), u(0.15, 0.45), u(0, 1.3)]
    elif contrast == "SPECT":
        values = [0, u(0.05, 0.45), u(0, 0.2), u(0, 0.3), u(0.65, 1), u(0.25, 0.65), u(0, 1.3)]
    elif contrast == "thallium":
        values = [0, u(0.3, 1), u(0.05, 0.35), u(0, 0.12), u(0, 0.18), u(0, 0.15), u(0.5, 1.5)]
    else:
        return _random_greys(draw)
    return np.array(values, np.float32)


def _tracer(tissue: NDArray[np.uint8], contrast: str, draw: Draw) -> Array:
    """Paint what a PET or SPECT scanner shows, as the luma of a colour table."""
    image = _uptake(contrast, draw)[tissue] * np.exp(draw.uniform(0.05, 0.3) * draw.fields(1, draw.uniform(10, 30))[0])
    if contrast == "thallium":
        image = image + _glands(tissue, draw)
    # 4 to 8 mm full width at half maximum for PET, 7 to 14 for SPECT.
    width = draw.uniform(1.7, 3.5) if contrast == "PET" else draw.uniform(2.8, 6.0)
    image = _blurred(image, width)
    image = image + draw.uniform(0, 0.1) * np.sqrt(image.clip(0)) * draw.fields(1, max(6.0, width))[0]
    image = (image / max(float(np.percentile(image, 99.5)), 1e-3) * draw.uniform(0.75, 1.05)).clip(0, 1)
    return _through_colors(image, draw)


def _glands(tissue: NDArray[np.uint8], draw: Draw) -> Array:
    """Draw one to five bright discs anywhere in scalp and face."""
    places = np.flatnonzero((tissue > Tissue.AIR) & (tissue < Tissue.FLUID))
    image = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(draw.uniform(1, 6)) if len(places) else 0):
        y, x = divmod(int(places[int(draw.uniform(0, len(places) - 1e-6))]), SIZE)
        cv2.circle(image, (x, y), round(draw.uniform(3, 9)), draw.uniform(0.5, 1.5), -1)
    return image


@functools.cache
def _luma_tables() -> tuple[Array, ...]:
    """List the luma of colour tables at 256 levels: the atlas's two, then those of other displays."""
    from matplotlib import colormaps

    levels, weights = np.linspace(0, 1, 256), np.array([0.299, 0.587, 0.114])
    own = [np.stack([np.interp(levels, [c[0] for c in table], [c[i] / 255 for c in table]) for i in (1, 2, 3)], -1)
           for table in COLORS.values()]  # fmt: skip
    others = [colormaps[name](levels)[:, :3] for name in _MAPS]
    # Some tables begin with a colour, but the background of a picture is black.
    black = np.minimum(levels / 0.05, 1)
    return tuple((black * (colors @ weights)).astype(np.float32) for colors in (*own, *others))


def _through_colors(image: Array, draw: Draw) -> Array:
    """Keep grey levels (half of the draws), invert them inside the head, or map them to the luma of a colour table."""
    kind = draw.uniform()
    if kind < 0.5:
        return image ** draw.uniform(0.6, 1.5)
    tables = _luma_tables()
    table = tables[int(draw.uniform(0, len(tables) - 1e-6))]
    return table[(image * 255).astype(np.uint8)]


def remapped(image: Array, draw: Draw) -> Array:
    """Map the grey values of an image (H, W) in [0, 1] by a random smooth curve.

    It rises in two thirds of the draws. Black stays black.
    """
    knots = draw.values(6) if draw.chance(0.35) else np.sort(draw.values(6))
    curve = np.concatenate(([0.0], knots))
    return np.interp(image, np.array([0, 0.08, 0.25, 0.4, 0.55, 0.75, 1.0]), curve).astype(np.float32)


def _cut_off(image: Array, draw: Draw) -> Array:
    """Cut the field of view within the head, along a line or a circle."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - SIZE / 2
    if draw.chance(0.5):
        angle = draw.uniform(0, 2 * np.pi)
        return image * (x * np.cos(angle) + y * np.sin(angle) < draw.uniform(30, 80))
    return image * (np.hypot(x, y) < draw.uniform(70, 105))


def _shapes(draw: Draw, sharp: bool) -> tuple[Array, Array]:
    """Draw a head of random shapes: scalp, skull and a brain of 6 to 20 smooth regions, sometimes with a folded rim.

    Args:
        sharp: the moving image mostly shows a bright skull and a narrow range inside; else it is mostly blurred.
    """
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = axis / draw.uniform(0.6, 0.85), axis[:, None] / draw.uniform(0.75, 0.95)
    radius = np.sqrt(x * x + y * y) + 0.08 * draw.fields(1, 40.0)[0]
    count = int(draw.uniform(6, 20))
    regions = draw.fields(count, draw.uniform(8, 28)).argmax(axis=0)
    edge, scalp_edge = draw.uniform(0.72, 0.9), draw.uniform(0.93, 0.97)
    if draw.chance(0.5):
        # A rim whose inner border is folded, as a cortex.
        folds = draw.uniform(0.03, 0.1) * draw.fields(1, draw.uniform(6, 10))[0]
        regions = np.where(radius + folds > edge - draw.uniform(0.06, 0.2), count - 1, regions)
    labels = np.where(radius < edge, regions, count)
    labels = np.where((radius > scalp_edge) & (radius < 1), count + 1, labels)
    head = radius < 1
    fixed, moving = draw.values(count + 2), draw.values(count + 2)
    related, kind = draw.uniform(0, 0.7), draw.uniform()
    moving = related * (fixed if kind < 0.5 else 1 - fixed) + (1 - related) * moving
    bony = draw.chance(0.7 if sharp else 0.05)
    fixed[count] *= 0.25
    if bony:
        moving[:count] = draw.uniform(0.2, 0.45) + draw.uniform(0.05, 0.3) * moving[:count]
        moving[count], moving[count + 1] = draw.uniform(0.8, 1), draw.uniform(0.1, 0.5)
    else:
        moving[count] *= 0.2
        moving[count + 1] *= draw.uniform(0, 1)
    if draw.chance(0.15):
        fixed[count:] = 0
    wide = draw.uniform(0.3, 1.2) if bony or (sharp and draw.chance(0.5)) else draw.uniform(1.8, 6)
    texture = draw.uniform(0, 0.1) * draw.fields(1, 6.0)[0]
    return _blurred(fixed[labels] * head * (1 + texture), draw.uniform(0.3, 1.2)), _blurred(moving[labels] * head, wide)
