"""Pairs from a table, deformed on the fly with the truth at hand.

Every draw is seeded by (seed, number of the draw), whichever process makes it, so a run gives the same pairs with any
number of workers, and a resumed run goes on with the pairs that the broken-off one would have seen next.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.augmentation import FIELDS, augmented
from data.deformation import BENCHMARK, random_flow
from data.noise import KEYS
from data.simulated_heads import Draw, LabelledHeads, remapped, simulated_pair
from data.table import MODALITIES, DataError
from data.variation import NUMBERS, Variation, draw_variation
from utils.device import moved_together
from utils.geometry.foreground import foreground
from utils.geometry.head_box import TISSUE
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import check_same_size, has_color, luma, read_image
from utils.messages import with_progress

VAL_SEED = 1_000_003
"""Validation draws its deformations from this seed, whatever the seed of the training."""


class Pair(NamedTuple):
    """One pair, or a batch of them with a leading dimension; images are in [0, 1].

    Attributes:
        fixed: (1, H, W).
        moving: (1, H, W), misaligned.
        moving_aligned: (1, H, W), the truth.
        flow: (2, H/4, W/4), px of that grid: `warp(moving, resize_flow(flow, (H, W)))` is `moving_aligned`.
        inverse_flow: (2, H/4, W/4), its inverse: the deformation that was applied.
        modality: index in `data.table.MODALITIES`.
        color: (3, H, W), the colours of `moving_aligned` before its contrast was varied; all 0 of a grey image.
        lesion: (2, H, W), what can be added to `fixed` and to `moving_aligned` to simulate lesions that one of them
            alone shows; of coloured images always the fixed one. All 0 without augmentation.
        number: of the draw.
        exact: whether `flow` is the whole truth. Images of real pairs do not lie quite right before they are deformed.
    """

    fixed: Tensor
    moving: Tensor
    moving_aligned: Tensor
    flow: Tensor
    inverse_flow: Tensor
    modality: int | Tensor
    color: Tensor
    lesion: Tensor
    number: int | Tensor
    exact: bool | Tensor

    def to(self, device: torch.device) -> "Pair":
        """Move a batch to another device."""
        # From pinned memory, which only CUDA has; elsewhere a copy that has not ended could be overwritten.
        return Pair(*(field.to(device, non_blocking=device.type == "cuda") for field in self))

    def aligned_by(self, flow: Tensor, inverse_flow: Tensor) -> "Pair":
        """Warp the moving images of a batch by an estimate, and return the displacements that are left to find.

        Args:
            flow: (B, 2, H, W), px, the estimate v. What is left of the true flow u is w with
                (id + v) o (id + w) = id + u.
            inverse_flow: (B, 2, H, W), px, its inverse.
        """
        grid = tuple(self.flow.shape[2:])
        return self._replace(
            moving=warp(self.moving, flow),
            flow=compose(resize_flow(inverse_flow, grid), self.flow),
            inverse_flow=compose(self.inverse_flow, resize_flow(flow, grid)),
        )

    @property
    def moving_color(self) -> Tensor:
        """`color` where the moving image lies, of a batch."""
        return warp(self.color, resize_flow(self.inverse_flow, tuple(self.color.shape[2:])))

    def with_truth(self, flow: Tensor, inverse_flow: Tensor) -> "Pair":
        """Take other displacements, both (B, 2, H, W), px, as the truth of a batch, and the images that they align."""
        grid = tuple(self.flow.shape[2:])
        return self._replace(
            moving_aligned=warp(self.moving, flow),
            flow=resize_flow(flow, grid),
            inverse_flow=resize_flow(inverse_flow, grid),
        )


def seeded(seed: int, number: int) -> torch.Generator:
    """Make the generator of one draw. torch looks at 32 bits of a seed only, so both numbers are mixed into those."""
    mixed = np.random.SeedSequence((seed, number)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def letterbox(image: Tensor, size: int) -> Tensor:
    """Scale (C, H, W) so that the longer side is `size`, then pad with zeros around it to (C, size, size)."""
    height, width = image.shape[1:]
    if max(height, width) != size:
        scale = size / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top))


def balance(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Repeat rows of the rarer modalities, each about as often as the next, until all modalities have as many."""
    groups = [rows for _, rows in table.groupby("modality", sort=False)]
    most = max(map(len, groups))
    parts = []
    for rows in groups:
        whole, rest = divmod(most, len(rows))
        parts += [rows] * whole + [rows.sample(rest, random_state=seed)]
    return pd.concat(parts, ignore_index=True)


HELD = 2**31
"""Most bytes of images that an accelerator is given to keep, enough for 6,500 pairs."""

REMAPPED = 0.2
"""Share of the real training pairs whose MRI gets other grey values, where a training simulates heads."""


class Chosen(NamedTuple):
    """What the pairs of a batch show, on the CPU.

    Attributes:
        whole: (B, 4 + `FIELDS`), int64: modality, draw, place among the images that the device keeps, whether the pair
            is simulated, keys of noise.
        variation: of the pairs.
        images: (B, 5, size, size), bytes, where the device does not keep them.
    """

    whole: Tensor
    variation: Variation
    images: Tensor | None


class PairDataset(Dataset[Pair]):
    """Pairs of aligned images, each with a random known misalignment.

    Index with the number of the draw: draw n shows row `n % len`, in the table's order. `EndlessSampler` shuffles. A
    list of draws gives a batch, made at once on the `device`.

    Args:
        table: rows of `data.splits.find_table`: columns fixed, moving and modality. Without augmentation a column
            number gives the draw of each row; where it is missing, rows are counted.
        root: folder that the paths start from.
        seed: of everything that is drawn.
        augment: training pairs vary in pose, shape, contrast, shading, noise and size of deformation, some show
            structures in one image only, and some have lost their colours; otherwise the images stay as they are and
            each has one deformation of the benchmark's kind, the same each time.
        size: side of the square that pairs of other sizes are scaled and padded to, so that they batch.
        wide: share of the training pairs that are drawn from `WIDE` instead of `BENCHMARK`.
        simulated: share of the training pairs that show a simulated head of the row's modality instead of its images.
        heads: to simulate on; None draws random shapes only.
        repeat_after: epochs whose draws, kept in memory (2 MB each), are shown again and again; None draws anew always.

    Attributes:
        two_deformations: every second pair of a batch of training pairs shows the one before it in another
            deformation. Then only lists of an even number of draws are an index, and no draws are repeated. A training
            stage sets it; it is False at first.

    Raises:
        FileError: on access and by `check`, for images that cannot be read or differ in size within a pair.
        DataError: for an empty table.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        root: str | os.PathLike,
        *,
        seed: int = 0,
        augment: bool = False,
        size: int = 256,
        wide: float = 0.5,
        simulated: float = 0.0,
        heads: LabelledHeads | None = None,
        repeat_after: int | None = None,
    ) -> None:
        if table.empty:
            raise DataError.at(root, "at least one pair", "none")
        self.fixed = [Path(root, path) for path in table["fixed"]]
        self.moving = [Path(root, path) for path in table["moving"]]
        self.modalities = [MODALITIES.index(name) for name in table["modality"]]
        self.numbers = list(table["number"]) if "number" in table else list(range(len(table)))
        self.seed, self.augment, self.size, self.wide = seed, augment, size, wide
        self.simulated, self.heads = simulated, heads
        self.two_deformations = False
        self._cache: dict[tuple[Path, Path], Tensor] = {}
        self.draws = repeat_after and repeat_after * len(table)
        self._drawn: dict[int, Pair] = {}
        self.device, self._held, self._places = torch.device("cpu"), None, None

    def __len__(self) -> int:
        return len(self.fixed)

    def images(self, row: int) -> Tensor:
        """Read fixed and aligned moving image of a row and the latter's colours once, as bytes (5, size, size).

        The colours of a grey image are 0.
        """
        key = self.fixed[row], self.moving[row]  # rows may repeat
        if key not in self._cache:
            paths = dict(zip(("fixed", "moving"), key, strict=True))
            images = {"fixed": read_image(paths["fixed"]), "moving": read_image(paths["moving"], color=True)}
            check_same_size(images, paths)
            color = images["moving"]
            planes = [images["fixed"], luma(color), *(color.transpose(2, 0, 1) * has_color(color))]
            self._cache[key] = _as_bytes(letterbox(torch.from_numpy(np.stack(planes)), self.size))
        return self._cache[key]

    def simulate(self, row: int, generator: torch.Generator) -> Tensor:
        """Simulate a pair of the row's modality, as `images` returns it: grey."""
        pair = letterbox(simulated_pair(MODALITIES[self.modalities[row]], generator, self.heads)[0], self.size)
        return _as_bytes(torch.cat((pair, torch.zeros(3, self.size, self.size))))

    def __getstate__(self) -> dict[str, object]:
        # Loading processes that do not share this one's memory read what they need faster than it reaches them.
        return self.__dict__ | {"_cache": {}, "_drawn": {}}

    def check(self) -> None:
        """Read all images now, so that one that cannot be used is not found only when its turn comes.

        Raises:
            FileError: as `images`; or no moving image of a modality shows tissue.
        """
        dark = dict(zip(self.modalities, self.moving, strict=True))
        for row in with_progress(range(len(self)), "reading"):
            pair = self.images(row)
            if self.modalities[row] in dark and foreground(pair[None, 1:2].float() / 255, (1, 1)).any():
                del dark[self.modalities[row]]
        for modality, path in dark.items():
            expected = f"{MODALITIES[modality]} images with tissue brighter than {TISSUE} of the range"
            raise DataError.at(path, expected, "none in this one nor any other; 12 bits in files of 16?")

    def make_on(self, device: torch.device) -> None:
        """Make training pairs on this device.

        An accelerator keeps all images. If heads are simulated, or the images take more than `HELD`, it is given those
        of each batch.

        Raises:
            FileError: as `images`.
        """
        self.device, self._held = device, None
        keys = {key: row for row, key in enumerate(zip(self.fixed, self.moving, strict=True))}
        if device.type != "cpu" and not self.simulated and len(keys) * self.images(0).numel() <= HELD:
            places = {key: place for place, key in enumerate(keys)}
            self._held = torch.stack([self.images(row) for row in keys.values()]).to(device)
            self._places = [places[key] for key in zip(self.fixed, self.moving, strict=True)]

    def __getitem__(self, draws: int | list[int]) -> Pair:
        if isinstance(draws, list):
            return self.batch(draws)
        return Pair(*(field[0] for field in self.batch([draws])))

    def batch(self, draws: list[int]) -> Pair:
        """Make the pairs of these draws; those that come again are kept."""
        if self.draws is None:
            return self.draw(draws)
        draws = [draw % self.draws for draw in draws]
        if new := [draw for draw in draws if draw not in self._drawn]:
            self._drawn |= zip(new, map(Pair._make, zip(*self.draw(new), strict=True)), strict=True)
        return Pair(*map(torch.stack, zip(*map(self._drawn.get, draws), strict=True)))

    def draw(self, draws: list[int]) -> Pair:
        """Make the pairs of these draws anew."""
        if self.augment:
            return self.make(self.choose(draws))
        return Pair(*map(torch.stack, zip(*(self._plain(draw % len(self)) for draw in draws), strict=True)))

    def choose(self, draws: list[int]) -> Chosen:
        """Choose what the pairs of these draws show, and how they vary."""
        generators = [seeded(self.seed, draw) for draw in draws]
        # Whatever else is drawn, these come first.
        numbers = torch.stack([torch.rand(NUMBERS + 1, generator=generator) for generator in generators])
        keys = [torch.randint(*KEYS, (FIELDS,), generator=generator) for generator in generators]
        step = 2 if self.two_deformations else 1
        # A pair is deformed as what it shows allows: only of a simulated one is it known that it lies right.
        simulated = (numbers[::step, -1] < self.simulated).repeat_interleave(step).tolist()
        rows = [draw % len(self) for draw in draws]
        modalities = [self.modalities[row] for row in rows]
        places = rows if self._held is None else [self._places[row] for row in rows]
        whole = torch.cat((torch.tensor([modalities, draws, places, simulated]).T, torch.stack(keys)), dim=1)
        variation = draw_variation(numbers[:, :-1], (self.size, self.size), self.wide, simulated)
        images = None
        if self._held is None:
            sources = map(self._source, rows[::step], simulated[::step], generators[::step])
            images = torch.stack(list(sources)).repeat_interleave(step, dim=0)
        chosen = Chosen(whole, variation, images)
        return deformed_twice(chosen) if self.two_deformations else chosen

    def make(self, chosen: Chosen) -> Pair:
        """Make pairs on the device. Nothing here waits for it."""
        (whole,), variation = (moved_together(part, self.device) for part in ([chosen.whole], chosen.variation))
        modality, number, places, simulated = whole[:, :4].unbind(dim=1)
        images = self._held[places] if chosen.images is None else chosen.images.to(self.device)
        pair = augmented(images, Variation(*variation), whole[:, 4:].int())
        return Pair(**pair, modality=modality, number=number, exact=simulated > 0)

    def _source(self, row: int, simulated: bool, generator: torch.Generator) -> Tensor:
        """Read or simulate the images of a draw, as `images` returns them."""
        if simulated:
            return self.simulate(row, generator)
        images = self.images(row)
        draw = Draw(generator)
        if self.simulated and draw.chance(REMAPPED):
            fixed = remapped(images[0].numpy().astype(np.float32) / 255, draw)
            images = torch.cat((_as_bytes(torch.from_numpy(fixed)[None]), images[1:]))
        return images

    def _plain(self, row: int) -> Pair:
        """Make the pair of a row as it is, with a deformation of the benchmark's kind."""
        images = self.images(row)[None].float() / 255
        size = (self.size, self.size)
        number = self.numbers[row]
        deformation = random_flow(size, BENCHMARK, seeded(self.seed, number))
        fixed, aligned, color = images.split((1, 1, 3), dim=1)
        moving = warp(aligned, resize_flow(deformation, size))
        fields = fixed, moving, aligned, invert(deformation), deformation
        modality, number = torch.tensor([self.modalities[row], number])
        exact = torch.tensor(False)
        return Pair(*(field[0] for field in fields), modality, color[0], torch.zeros_like(images[0, :2]), number, exact)


def deformed_twice(chosen: Chosen) -> Chosen:
    """Let every second pair of an even number show the one before it; only its deformation stays its own."""
    whole, *fields = (field[::2].repeat_interleave(2, dim=0) for field in (chosen.whole, *chosen.variation))
    whole[:, -FIELDS] = chosen.whole[:, -FIELDS]  # the key of the deformation
    variation = Variation(*fields)._replace(deformation=chosen.variation.deformation)
    return chosen._replace(whole=whole, variation=variation)


def _as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().byte()


class EndlessSampler(Sampler[int]):
    """Draws without end, each row once an epoch in shuffled order, from any point on and divided among processes.

    Step k of all processes together shows the draws of step k of one process with their joint batch.

    Args:
        length: of the dataset.
        batch_size: of one process.
        seed: of the order.
        start: steps that have been made already.
        rank, world: number of this process, and of all.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def _draws(self, first: int) -> Iterator[int]:
        epoch, skip = divmod(first, self.length)
        while True:
            order = torch.randperm(self.length, generator=seeded(self.seed, epoch)).tolist()
            yield from (epoch * self.length + row for row in order[skip:])
            epoch, skip = epoch + 1, 0

    def __iter__(self) -> Iterator[int]:
        joint = self.batch_size * self.world
        for place, draw in enumerate(self._draws(self.start * joint)):
            if place % joint // self.batch_size == self.rank:
                yield draw
