"""Tensors, pictures, tables, folders and command lines that several tests start from."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

import EDARFusion_test_val
from utils.imaging.images import write_image

REPOSITORY = Path(__file__).parents[1]
SAMPLE = REPOSITORY / "data" / "sample"
SHAPE = (64, 80)
"""Height and width of small pictures, which no stride of the network divides both."""

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
"""Environment of commands: sums over several threads differ in their last bits from run to run."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Draw uniform noise in [0, 1), the same for the same seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def constant_flow(x: float, y: float, size: tuple[int, int] = (8, 8)) -> Tensor:
    """Make a flow (1, 2, *size) of the same displacement everywhere."""
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).repeat(1, 1, *size)


def displacements(radius: int) -> list[tuple[float, float]]:
    """List the displacements (x, y) in px that the matching compares, row by row: steps of 4 px."""
    axis = [4.0 * step for step in range(-radius, radius + 1)]
    return [(x, y) for y in axis for x in axis]


def picture(seed: int, shape: tuple[int, int] = SHAPE, channels: int = 1) -> np.ndarray:
    """Draw a smooth random image in [0, 1], (H, W) or (H, W, channels)."""
    rough = np.random.default_rng(seed).random((*shape, channels)).astype(np.float32)
    smooth = gaussian_filter(rough, (3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth)).squeeze()


def pull(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample an image in [0, 1] at p + flow(p) by scipy; returns grey levels 0..255, 0 beyond half a px outside."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    channels = [
        map_coordinates(channel, (rows + flow[1], columns + flow[0]), order=1, mode="nearest")
        for channel in np.moveaxis(np.atleast_3d(image), 2, 0)
    ]
    rows, columns = rows + flow[1], columns + flow[0]
    height, width = image.shape[:2]
    inside = (abs(rows - (height - 1) / 2) <= height / 2) & (abs(columns - (width - 1) / 2) <= width / 2)
    return (np.stack(channels, axis=2) * inside[..., None]).squeeze() * 255


def folders(
    root: Path, *, pairs: int = 2, shape: tuple[int, int] = SHAPE, channels: int = 1, label: bool = False
) -> list[str]:
    """Write folders of pairs called 001, 002, ..., and return the options of the test command that name them."""
    options = []
    for offset, role in enumerate(("fixed", "moving", "label")[: 2 + label]):
        for number in range(pairs):
            image = picture(10 * number + offset, shape, 1 if role == "fixed" else channels)
            write_image(root / role / f"{number + 1:03}.png", image)
        options += [f"--{role}", str(root / role)]
    return options


def with_flows(root: Path, pairs: int = 2) -> Path:
    """Write a table of the pairs of `folders` with true flows: of pair n, n px to the right."""
    (root / "flow").mkdir()
    names = [f"{number:03}" for number in range(1, pairs + 1)]
    for number, name in enumerate(names, 1):
        np.save(root / f"flow/{name}.npy", np.stack((np.full(SHAPE, number), np.zeros(SHAPE))))
    table = {role: [f"{role}/{name}.png" for name in names] for role in ("fixed", "moving", "label")}
    table |= {"flow": [f"flow/{name}.npy" for name in names], "modality": "CT"}
    pd.DataFrame(table).to_csv(root / "pairs.csv", index=False)
    return root / "pairs.csv"


def run_command(checkpoint: Path, output: Path, *options: str) -> int:
    """Run the test command in this process, which also scores; returns its exit status."""
    line = ["--checkpoint", str(checkpoint), "--output", str(output), "--workers", "1", *options]
    return EDARFusion_test_val.main(line)


def read_table(path: Path) -> pd.DataFrame:
    """Read metrics.csv."""
    return pd.read_csv(path, dtype={"name": str})


def aligned_sample(*, same: bool = False) -> pd.DataFrame:
    """Make a table of the sample's truly aligned pairs; with `same` the fixed image stands on both sides."""
    rows = []
    for modality in ("CT", "PET", "SPECT"):
        for fixed in sorted((SAMPLE / modality / "fixed").iterdir()):
            moving = fixed if same else SAMPLE / modality / "label" / fixed.name
            paths = {"fixed": fixed.relative_to(SAMPLE).as_posix(), "moving": moving.relative_to(SAMPLE).as_posix()}
            rows.append({**paths, "modality": modality})
    return pd.DataFrame(rows)


def sample_table(path: Path) -> Path:
    """Write a table of the sample's truly aligned pairs, five to train on and four to validate on."""
    aligned_sample().assign(split=["train", "val"] * 4 + ["train"]).to_csv(path, index=False)
    return path
