"""Label maps as image files: whole numbers, 0 for background, which no interpolation may mix."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from utils.files import lacking, write_bytes
from utils.imaging.images import ImageError, check_size

LOSSY = (".jpg", ".jpeg", ".webp")
"""Endings of files whose compression changes values."""

LABELS, MOST = "a label map (one whole number a pixel: PNG, TIFF, BMP, GIF, PGM)", 65535


def read_label_map(path: str | os.PathLike) -> NDArray[np.int32]:
    """Read a label map. Of a picture with a palette, the numbers of its colours are the labels.

    Returns:
        int32 (H, W), 0 to 65535.

    Raises:
        ImageError: the file cannot be read, has been compressed with losses, or holds colours or fractions.
    """
    path = Path(path)
    if lack := lacking(path):
        raise ImageError.at(path, LABELS, lack)
    if path.suffix.lower() in LOSSY:
        raise ImageError.at(path, LABELS, f"{path.suffix}, whose compression invents values")
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            values = np.squeeze(tifffile.imread(path, key=0))
        else:
            with Image.open(path) as image:
                check_size(path, image.size)
                # A picture with transparency or a palette is taken by its own numbers.
                values = np.asarray(image.getchannel(0) if image.mode in ("LA", "La") else image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError.at(path, LABELS, "no image") from error
    except Exception as error:
        # Decoders let many kinds of errors through.
        raise ImageError.at(path, LABELS, f"a damaged or truncated file ({error})") from error
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise ImageError.at(path, LABELS, "colours")
    check_size(path, values.shape[::-1])
    values = values.astype(np.float64)
    whole = np.rint(values)
    if not np.isfinite(values).all() or (whole != values).any():
        raise ImageError.at(path, LABELS, "fractions")
    if whole.min() < 0 or whole.max() > MOST:
        raise ImageError.at(path, f"labels from 0 to {MOST}", f"{whole.min():g} to {whole.max():g}")
    return whole.astype(np.int32)


def write_label_map(path: str | os.PathLike, labels: NDArray[np.int32]) -> None:
    """Write a label map (H, W), 0 to 65535, as a PNG of 8 bits, or of 16 where a label needs them.

    Raises:
        FileError: the file cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def carry_labels(labels: NDArray[np.int32], flow: NDArray[np.float32]) -> NDArray[np.int32]:
    """Warp a label map: the nearest label, none mixed, 0 beyond the map.

    Args:
        labels: (H, W).
        flow: (2, h, w), px of the map: the result at p is the label nearest to p + flow(p).

    Returns:
        (h, w).
    """
    rows, columns = np.indices(flow.shape[1:], dtype=np.float32) + flow[::-1]
    # Half a pixel rounds up, as in ITK; OpenCV's own rounding differs.
    places = (np.floor(x + 0.5) for x in (columns, rows))
    values = labels.astype(np.float32)  # exact up to 2^24
    sampled = cv2.remap(values, *places, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return sampled.astype(np.int32)
