"""The project's one reader and writer of image files, and the pairing of files by name.

Inside the project an image is float32 in [0, 1], (H, W) when grey and (H, W, 3) when RGB. Whatever is wrong with a
file is reported as an :class:`ImageError`: one line that names the file, what was expected and what was found.
"""

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils.files import FileError, lacking, write_bytes

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
MIN_SIDE = 64
"""Smallest height and width in pixels: below it the coarsest feature scale has nothing left to match."""
MAX_PIXELS = 64 * 1024 * 1024
"""Largest number of pixels that is decoded (8192 x 8192); a header that promises more is refused unread."""
MAX_VOXELS = 2**29
"""Largest number of voxels that is read (1024 x 1024 x 512); a header that promises more is refused unread."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")


_OTHER_FORMATS = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF file",
    b"<": "a web page or XML file",
    b"\x5c\x01\x00\x00": "a NIfTI file",
    b"\x08\x00\x05\x00": "a DICOM file without preamble",
    b"\x08\x00\x00\x00": "a DICOM file without preamble",
}
"""How files begin that are no images -> what they are."""


_UPRIGHT = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""Orientation tag of TIFF and EXIF -> what turns the image upright; 1 and unknown values leave it."""


class ImageError(FileError):
    """An image file, or a folder of them, that cannot be used or written. The message is one line."""


def read_image(path: str | os.PathLike, *, color: bool | None = False) -> np.ndarray:
    """Read an image file.

    Integers are divided by the largest value of their type (8 bit: 255, 16 bit: 65535), so that an 8-bit value v is
    read as exactly v / 255. Float images must lie in [0, 1] already. Transparency is ignored: it says how a viewer
    should paint a pixel, not what was measured there. Of a file with several frames the first is read, and a rotation
    noted in EXIF is carried out. For TIFF see `utils.imaging.tiff.read_tiff`.

    Args:
        path: PNG, TIFF, JPEG, BMP, GIF, WebP, PGM or PPM file.
        color: return RGB, a grey image repeated over the three channels; None: RGB only where the picture has colour,
            so that a grey picture in an RGB file stays grey.

    Returns:
        float32 in [0, 1]: BT.601 luma of shape (H, W), or RGB of shape (H, W, 3) as ``color`` says.

    Raises:
        ImageError: the file is missing, empty, damaged, not an image, has a side under ``MIN_SIDE`` or more than
            ``MAX_PIXELS`` pixels, or holds NaN, infinity or values that cannot be placed in [0, 1].
    """
    image = _levels(path)
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2) if color else image
    if color is None:
        return image if has_color(image) else np.ascontiguousarray(image[..., 0])
    return image if color else luma(image)


def luma(image: np.ndarray) -> np.ndarray:
    """Compute the BT.601 luma (H, W) of RGB (H, W, 3), as kornia does. Equal channels are returned unchanged.

    Args:
        image: float32 in [0, 1].
    """
    if not has_color(image):
        return np.ascontiguousarray(image[..., 0])
    return np.clip(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), 0, 1)


def has_color(image: np.ndarray) -> bool:
    """Return whether an image (H, W) or (H, W, 3) has a pixel that is not grey."""
    return image.ndim == 3 and bool((image != image[..., :1]).any())


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write a PNG with 8 bits a channel; the file appears whole or not at all. Missing parent folders are made.

    Args:
        path: file to write; its name ends in ``.png``.
        image: (H, W) or (H, W, 3); uint8, or float clipped to [0, 1] and rounded to the nearest grey level.

    Raises:
        ImageError: wrong suffix, shape or type, NaN or infinity.
        FileError: the system refused (no permission, disk full).
    """
    path, image = Path(path), np.asarray(image)
    if path.suffix.lower() != ".png":
        raise ImageError.at(path, "a file name that ends in .png", repr(path.name))
    if not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) or image.size == 0:
        raise ImageError.at(path, "an array of shape (H, W) or (H, W, 3) to write", f"shape {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ImageError.at(path, "finite values to write", "NaN or infinity")
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ImageError.at(path, "float in [0, 1] or uint8 to write", f"{image.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def check_same_size(images: Mapping[str, np.ndarray | None], paths: Mapping[str, str | os.PathLike | None]) -> None:
    """Check that the images of a pair have one height and width.

    Args:
        images: role -> array (H, W) or (H, W, 3); None is skipped.
        paths: role -> file that the array was read from; further keys are ignored.

    Raises:
        ImageError: two sizes differ; the message names both files and sizes.
    """
    (first, reference), *others = ((role, image) for role, image in images.items() if image is not None)
    for role, image in others:
        if image.shape[:2] != reference.shape[:2]:
            raise ImageError.at(paths[role], f"the size of {os.fspath(paths[first])}, {_size(reference)}", _size(image))


def has_16_bits(path: str | os.PathLike) -> bool:
    """Return, by its header, whether a readable image file holds integers of more than 8 bits."""
    with open(path, "rb") as file:
        head = file.read(32)
    if is_tiff(head):
        # Takes a while to import, which only TIFF files are to cost.
        from utils.imaging.tiff import has_16_bits as tiff_has

        return tiff_has(path)
    with Image.open(path) as image:
        return image.mode.startswith("I") or _is_deep_png(head)


def is_tiff(data: bytes) -> bool:
    """Return whether bytes begin as a TIFF or BigTIFF file of either byte order."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _levels(path: str | os.PathLike) -> np.ndarray:
    """Read the first image of a file as float32 in [0, 1], (H, W) or (H, W, 3)."""
    path = Path(path)
    if lack := lacking(path):
        raise ImageError.at(path, "an image file", lack)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError.at(path, "a file that can be read", error.strerror or str(error)) from error
    if is_tiff(data):
        from utils.imaging.tiff import read_tiff

        return read_tiff(path, data)
    image = _decode(path, data)
    return _deep_png(data, image) if _is_deep_png(data) else _scaled(path, image)


def _decode(path: Path, data: bytes) -> Image.Image:
    """Decode the first frame of a file other than TIFF in its own mode, and check its size."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd tags and of sizes; our own limits below are errors.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            check_size(path, image.size)
            # Decoding alone does not check the checksums of a PNG; verify() uses the opened file up.
            Image.open(io.BytesIO(data), formats=_FORMATS).verify()
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            image = ImageOps.exif_transpose(image)
            image.info["orientation"] = orientation
            # Some forms of it make Pillow warn in conversions.
            image.info.pop("transparency", None)
            return image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError.at(path, f"an image ({', '.join(_FORMATS)}, TIFF)", _describe_bytes(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError.at(path, f"at most {MAX_PIXELS} pixels", "more") from error
    except Exception as error:
        # Pillow's decoders let many kinds escape on damaged files: OSError, SyntaxError, struct.error, KeyError ...
        raise ImageError.at(path, "a complete image", f"a damaged or truncated file ({error})") from error


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W, ...) upright, by its orientation tag of TIFF or EXIF."""
    turn = _UPRIGHT.get(orientation)
    return turn(image) if turn else image


def _is_deep_png(data: bytes) -> bool:
    """Return whether a file is a PNG of 16 bits with several channels, of which Pillow reads 8 bits."""
    return data.startswith(b"\x89PNG") and data[24] == 16 and data[25] in (2, 4, 6)


def _deep_png(data: bytes, image: Image.Image) -> np.ndarray:
    """Read all 16 bits of the channels of a PNG.

    Args:
        data: the whole file.
        image: what Pillow read of it, which has been found to be complete.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., 2::-1]  # of BGR and BGRA
    values = values.astype(np.float32) / np.float32(65535)
    if data[25] == 4:  # grey with transparency
        values = values[..., 0]
    return np.ascontiguousarray(upright(values, image.info.get("orientation", 1)))


def _scaled(path: str | os.PathLike, image: Image.Image) -> np.ndarray:
    """Convert any Pillow mode to float32 in [0, 1], (H, W) or (H, W, 3)."""
    mode = image.mode
    if mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"), np.float32) / np.float32(255)
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError.at(path, "integers of 8 or 16 bits", f"values from {values.min()} to {values.max()}")
        return values.astype(np.float32) / np.float32(65535)
    if mode == "F":  # of a portable float map
        values = np.array(image, np.float32)
        check_floats(path, values)
        return values
    return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)


def check_floats(path: str | os.PathLike, values: np.ndarray) -> None:
    """Check that values, of any shape (H, W, ...), lie in [0, 1].

    Raises:
        ImageError: they do not, or some are NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise ImageError.at(path, "finite values", f"NaN or infinity in {int((~np.isfinite(values)).sum())} pixels")
    if values.min() < 0 or values.max() > 1:
        raise ImageError.at(path, "float values in [0, 1]", f"{values.min():g} to {values.max():g}")


def check_size(path: str | os.PathLike, size: tuple[int, int]) -> None:
    """Check that an image of this width and height has sides from `MIN_SIDE` up and at most `MAX_PIXELS` pixels.

    Raises:
        ImageError: it has not.
    """
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ImageError.at(path, f"at least {MIN_SIDE} x {MIN_SIDE} pixels", f"{width} x {height} (width x height)")
    if width * height > MAX_PIXELS:
        raise ImageError.at(path, f"at most {MAX_PIXELS} pixels", f"{width} x {height} (width x height)")


def check_voxels(path: str | os.PathLike, shape: tuple[int, ...]) -> None:
    """Check that a volume of this shape has no more than `MAX_VOXELS` voxels.

    Raises:
        ImageError: it has; the message names the file.
    """
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ImageError.at(path, f"at most {MAX_VOXELS} voxels", " x ".join(map(str, shape)))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]} (width x height)"


def _describe_bytes(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return f"a damaged PNG header ({len(data)} bytes)"
    if data[128:132] == b"DICM":
        return "a DICOM file"
    name = next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), None)
    return f"{name} ({len(data)} bytes)" if name else f"{len(data)} bytes that are none"


