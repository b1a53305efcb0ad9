"""The images of a page, embedded as WebP, as many and as large as it has room for.

`LADDER` lists how images may be embedded, from lossless at full size to small and compressed; the first step that fits
is used for the whole page (20 pairs of 256 x 256 slices stay lossless, 250 colour pairs stay 256 x 256 at WebP quality
82). Where even the last step does not fit, evenly spaced pairs are pictured.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

PAGE_BUDGET = 14_000_000
"""Bytes that a page may take, with room up to 15 MB. Tables of over 2,800 rows leave none for images."""
BYTES_PER_ROW = 5_000  # table row, plot marks and card of a pair, without its images


class ColorScale(NamedTuple):
    """What the colours of an image stand for."""

    low: str
    high: str
    unit: str
    colors: Sequence[str]  # from low to high, as CSS has them


class PairImages(NamedTuple):
    """The images of one pair, float in [0, 1], (H, W) or (H, W, 3), of one size; only `extra` may differ.

    `scales` says what the colours of this pair's images stand for, by the name of the view.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    aligned: np.ndarray
    fused: np.ndarray
    label: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = {}
    scales: Mapping[str, ColorScale] = {}


class Encoding(NamedTuple):
    """One way to embed images: WebP of a quality (None: lossless), sides up to `side` pixels (None: any)."""

    quality: int | None
    side: int | None

    def __str__(self) -> str:
        quality = "without loss" if self.quality is None else f"as WebP of quality {self.quality}"
        size = "at full size" if self.side is None else f"with at most {self.side} pixels a side"
        return f"{quality}, {size}"


LADDER = (
    Encoding(None, None),
    Encoding(92, None),
    Encoding(88, 384),
    Encoding(82, 256),
    Encoding(75, 192),
    Encoding(65, 128),
)


def cards_of(pairs: Sequence[PairImages], rows: int) -> tuple[list[dict], Encoding, int]:
    """Choose the pairs that a page pictures, and how their images are embedded.

    Args:
        pairs: images by pair.
        rows: of the page's table.

    Returns:
        The fields of each pictured pair, the encoding of all images, and how many pairs are left out for size.

    Raises:
        ValueError: images of a pair do not go together.
    """
    if not pairs:
        return [], LADDER[0], 0
    budget = PAGE_BUDGET - BYTES_PER_ROW * rows
    encoding, each = _choose(pairs, budget)
    cards: list[dict] = []
    for pair in spread(pairs, max(0, int(budget // each))):
        encoded = _encode_pair(pair, encoding)
        budget -= _length(encoded)
        if budget < 0:
            break
        height, width = np.shape(pair.fixed)[:2]
        cards.append(
            {
                "name": str(pair.name),
                "width": width,
                "height": height,
                "views": [view for view, _ in encoded],
                "images": [uri for _, uri in encoded],
                "scales": {view: scale._asdict() for view, scale in pair.scales.items()},
            }
        )
    return cards, encoding, len(pairs) - len(cards)


def _choose(pairs: Sequence[PairImages], budget: int) -> tuple[Encoding, float]:
    """Choose the first step of the ladder that fits the budget, judged from a few pairs, and its bytes a pair."""
    sample = list(spread(pairs, 6))
    for encoding in LADDER:
        # A tenth more than the mean of the sample, because the pairs that were not looked at may be larger.
        each = 1.1 * sum(_length(_encode_pair(pair, encoding)) for pair in sample) / len(sample)
        if each * len(pairs) <= budget:
            break
    return encoding, each


def spread(items: Sequence, count: int) -> Iterator:
    """Take at most `count` evenly spaced items, one by one: a sequence may read each from its file only then."""
    if len(items) <= count:
        return iter(items)
    return (items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int))


def _length(encoded: Iterable[tuple[str, str]]) -> int:
    return sum(len(uri) for _, uri in encoded)


def _encode_pair(pair: PairImages, encoding: Encoding) -> list[tuple[str, str]]:
    """Encode each image as a data URI, by the name of its view, once they are known to go together."""
    _check_pair(pair)
    return [(view, encode_image(image, encoding)) for view, image in _views(pair)]


def encode_image(image: np.ndarray, encoding: Encoding) -> str:
    """Encode an image (H, W) or (H, W, 3) as a WebP data URI.

    Values outside [0, 1] are clipped. Non-finite ones are black.
    """
    levels = np.rint(np.clip(np.nan_to_num(image, posinf=1.0, neginf=0.0), 0.0, 1.0) * 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    if encoding.side is not None:
        picture.thumbnail((encoding.side, encoding.side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=encoding.quality is None, quality=encoding.quality or 50, method=3)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _views(pair: PairImages) -> list[tuple[str, np.ndarray]]:
    views = [("Fused", pair.fused), ("Fixed", pair.fixed), ("Moving", pair.moving), ("Aligned", pair.aligned)]
    if pair.label is not None:
        views.append(("Label", pair.label))
    return views + [(str(name), image) for name, image in pair.extra.items()]


def _check_pair(pair: PairImages) -> None:
    for view, image in _views(pair):
        shape = np.shape(image)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
            raise ValueError(f"pair {pair.name}: expected {view} of shape (H, W) or (H, W, 3), found {shape}")
    height, width = np.shape(pair.fixed)[:2]
    for view, image in _views(pair._replace(extra={})):
        size = np.shape(image)[:2]
        if size != (height, width):
            raise ValueError(
                f"pair {pair.name}: expected {view} of {height} x {width} like Fixed, "
                f"found {size[0]} x {size[1]}"
            )
