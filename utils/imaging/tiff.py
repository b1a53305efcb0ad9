"""TIFF files, read by tifffile, which knows the sample formats, layouts and compressions that programs write.

Samples are scaled by their type and shown as the file's photometric interpretation says. What cannot be placed in
[0, 1] without a guess is refused by name.
"""

import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage

from utils.imaging.images import MAX_PIXELS, ImageError, check_floats, check_size, upright

_JPEG = {COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY, COMPRESSION.ALT_JPEG}
"""Compressions that tifffile turns from YCbCr into RGB."""
_COLORS = {PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.RGB: 3}
"""Photometric interpretation -> channels beside transparency."""
# What is odd about a file is an error here or no matter; tifffile would write it to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def has_16_bits(path: str | os.PathLike) -> bool:
    """Return, by the header, whether the first image holds integers of more than 8 bits."""
    with TiffFile(path) as file:
        page = file.pages.first
        return page.dtype is not None and page.dtype.kind in "iu" and int(np.max(page.bitspersample)) > 8


def read_tiff(path: Path, data: bytes) -> np.ndarray:
    """Read the first image of a TIFF file.

    Args:
        path: for messages.
        data: the whole file.

    Returns:
        float32 in [0, 1], (H, W), or (H, W, 3) of RGB and palettes; upright. Unsigned integers of up to 16 bits are
        divided by the largest number of their bits, signed ones likewise, floats are taken as they are. WhiteIsZero is
        turned round. Transparency is left out.

    Raises:
        ImageError: damaged or truncated, of a wrong size, of a kind that is not listed above, with samples below 0, or
            floats outside [0, 1].
    """
    try:
        with warnings.catch_warnings(), TiffFile(io.BytesIO(data)) as file:
            # Of damaged files NumPy warns of overflows, too.
            warnings.simplefilter("ignore")
            page = file.pages.first
            check_size(path, (page.imagewidth, page.imagelength))
            channels = _check_kind(path, page)
            _check_extent(page, len(data))
            samples = page.asarray(squeeze=False, maxworkers=1)[:, 0]
            # Planes of one channel each, or the channels of a pixel side by side.
            samples = samples[0] if page.planarconfig == 1 else np.moveaxis(samples[..., 0], 0, -1)
            image = _levels(path, page, samples[..., :channels])
            orientation = page.tags.valueof("Orientation", 1)
    except ImageError:
        raise
    except Exception as error:
        # tifffile and the decoders let many kinds escape on damaged files: struct.error, ZlibError, KeyError ...
        raise ImageError.at(path, "a complete TIFF image", f"a damaged or truncated file ({error})") from error
    image = image[..., 0] if image.shape[2] == 1 else image
    return np.ascontiguousarray(upright(image, orientation))


def _check_kind(path: Path, page: TiffPage) -> int:
    """Check that the image is of a kind that is read, and return its channels without transparency.

    Raises:
        ImageError: it is not.
    """
    from_jpeg = page.photometric == PHOTOMETRIC.YCBCR and page.compression in _JPEG
    channels = 3 if from_jpeg else _COLORS.get(page.photometric, 0)
    if not channels:
        name = getattr(page.photometric, "name", page.photometric)
        raise ImageError.at(path, "a grey, RGB or palette TIFF", f"photometric interpretation {name}")
    more = page.samplesperpixel - channels
    # One more channel of RGB is transparency, whether the file says so or not.
    if more and (more > 1 or channels == 1 and page.extrasamples[:1] not in ((1,), (2,))):
        state = f"{page.samplesperpixel} channels of {'grey' if channels == 1 else 'colour'}"
        raise ImageError.at(path, "one channel of grey or three of colour, beside transparency", state)
    if page.imagedepth != 1:
        raise ImageError.at(path, "a TIFF of two dimensions", f"a depth of {page.imagedepth}")
    if isinstance(page.bitspersample, tuple) or isinstance(page.sampleformat, tuple):
        raise ImageError.at(path, "channels of one type", "several types")
    if page.sampleformat in (SAMPLEFORMAT.COMPLEXINT, SAMPLEFORMAT.COMPLEXIEEEFP):
        raise ImageError.at(path, "real numbers", "complex numbers")
    return channels


def _check_extent(page: TiffPage, length: int) -> None:
    """Check that every strip or tile is there, as tifffile takes some that are not for zeros, and none is huge.

    Raises:
        ValueError: one is not there, or is.
    """
    if page.is_tiled and page.tilewidth * page.tilelength * page.tiledepth > MAX_PIXELS:
        raise ValueError(f"tiles of {page.tilewidth} x {page.tilelength} pixels")
    strips = int(np.prod(page.chunked))
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))[:strips]
    if not page.is_contiguous and len(parts) < strips:
        raise ValueError(f"{len(parts)} of {strips} strips")
    if any(count <= 0 or offset <= 0 or offset + count > length for offset, count in parts):
        raise ValueError("strips beyond the end of the file")


def _levels(path: Path, page: TiffPage, samples: np.ndarray) -> np.ndarray:
    """Convert samples (H, W, channels) to float32 in [0, 1]."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        colors = np.asarray(page.colormap)
        # Of 16 bits; some programs write 8.
        return colors.T.astype(np.float32)[samples[..., 0]] / np.float32(65535 if colors.max() > 255 else 255)
    inverted = page.photometric == PHOTOMETRIC.MINISWHITE
    if samples.dtype.kind == "f":
        check_floats(path, samples)
        samples = samples.astype(np.float32)
        return 1 - samples if inverted else samples
    bits, signed = page.bitspersample, samples.dtype.kind == "i"
    low, high = int(samples.min()), int(samples.max())
    if bits > 16 or low < 0:
        raise ImageError.at(path, "integers of 8 or 16 bits, none below 0", f"{bits} bits, values from {low} to {high}")
    largest = 2 ** (bits - signed) - 1
    samples = samples.astype(np.int32)
    return (largest - samples if inverted else samples).astype(np.float32) / np.float32(largest)
