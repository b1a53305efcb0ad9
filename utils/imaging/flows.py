"""Displacement fields of images as files.

- ``npy``: NumPy array (2, H, W), float32, channel 0 is x (columns), channel 1 is y (rows), in px.
- ``itk`` (MetaImage, .mha), ``ants`` and ``nifti`` (both NIfTI, .nii.gz): vectors as ITK takes them, in LPS mm. A pixel
  of an image is 1 mm wide and the first one lies at (0, 0), which is what ITK and ANTs take for PNG files. So the
  numbers are those of ``npy``, and both programs apply the files to images as they are.
"""

import io
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.files import FileError, entries, lacking, write_bytes

if TYPE_CHECKING:
    import SimpleITK as sitk

GRID_STRIDE = 4  # the fields are smooth over at least 10 px, so a grid point every 4 px loses nothing

FLOW_SUFFIXES = {"npy": ".npy", "itk": ".mha", "ants": ".nii.gz", "nifti": ".nii.gz"}
"""How the names of files of each format end."""


MOST_SHEAR = 0.01
"""Largest deviation of axes from right angles, degrees, that is taken for rounding: 0.02 mm at the rim of a head."""


def flow_files(folder: str | os.PathLike) -> dict[str, Path]:
    """List the displacement fields directly in a folder, by name in one form of Unicode.

    Raises:
        FileError: the folder cannot be read, or holds a name in two formats.
    """
    if not os.path.isdir(folder):
        raise FileError.at(folder, "displacement fields, a folder or one file", f"{lacking(folder)}")
    files: dict[str, Path] = {}
    for path in sorted(entries(folder)):
        suffix = _suffix(path)
        if suffix is None:
            continue
        name = unicodedata.normalize("NFC", path.name[: -len(suffix)])
        if (other := files.setdefault(name, path)) != path:
            raise FileError.at(folder, "one displacement field a name", f"{other.name} and {path.name}")
    return files


def _suffix(path: str | os.PathLike) -> str | None:
    name = os.fspath(path).lower()
    return next((suffix for suffix in dict.fromkeys(FLOW_SUFFIXES.values()) if name.endswith(suffix)), None)


def save_flow(path: str | os.PathLike, flow: NDArray[np.float32]) -> None:
    """Write a displacement field (2, H, W), px, whole or not at all; the end of the name says in which format.

    Raises:
        FileError: the file cannot be written.
    """
    if _suffix(path) == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, flow)
        write_bytes(path, buffer.getvalue())
    else:
        # Takes a while to import, which arrays are not to cost.
        import SimpleITK as sitk

        vectors = np.ascontiguousarray(np.moveaxis(flow, 0, -1), np.float64)
        write_itk_image(path, sitk.GetImageFromArray(vectors, isVector=True))


def write_itk_image(path: str | os.PathLike, image: "sitk.Image") -> None:
    """Write a SimpleITK image, whole or not at all.

    Raises:
        FileError: the file cannot be written, or its format cannot hold the image's axes.
    """
    import SimpleITK as sitk

    suffix, sides = _suffix(path), [image.GetDimension()] * 2
    # ITK turns such axes to right angles with no more than a warning, and so displaces the field.
    if suffix == ".nii.gz" and (angle := shear(np.reshape(image.GetDirection(), sides))) > MOST_SHEAR:
        expected = "axes at right angles for NIfTI (--flow-format itk takes others as well)"
        raise FileError.at(path, expected, f"a tilted gantry, {angle:.1f} degrees")
    with tempfile.TemporaryDirectory() as folder:
        # SimpleITK takes names of files only, and would leave half a file where the disk is full.
        file = Path(folder, f"image{suffix}")
        sitk.WriteImage(image, str(file), useCompression=True)
        write_bytes(path, file.read_bytes())


def shear(axes: NDArray[np.float64]) -> float:
    """Measure how far axes (N, N), columns of length 1, deviate from right angles at most: degrees."""
    return float(np.degrees(np.arcsin(np.abs(axes.T @ axes - np.eye(len(axes))).max().clip(0, 1))))


def load_flow(path: str | os.PathLike, *sizes: tuple[int, int] | None) -> NDArray[np.float32]:
    """Read a displacement field at the resolution of its images.

    A file may hold it on a grid of (H // 4, W // 4), in pixels of that grid, as `data.deformation.random_flow` draws it
    and those of the embedded sample have it.

    Args:
        path: ``flow/NAME.npy``, or a file of the other formats.
        sizes: height and width of the images, px, or several that are right as well. None, or no size, takes the
            field as it is.

    Returns:
        float32 (2, H, W), px: ``aligned(p) = moving(p + flow(p))``, channel 0 is x.

    Raises:
        FileError: the file cannot be read, is no flow, or is one for images of another size.
    """
    flow, size = read_flow(path, *sizes)
    if size is None:
        return flow
    # Processes that only check or save need no torch.
    import torch

    from utils.geometry.warp import resize_flow

    return resize_flow(torch.from_numpy(flow)[None], size)[0].numpy()


def read_flow(
    path: str | os.PathLike, *sizes: tuple[int, int] | None
) -> tuple[NDArray[np.float32], tuple[int, int] | None]:
    """Read a displacement field on the grid of its file.

    Args:
        path, sizes: of `load_flow`.

    Returns:
        The field, and which of the sizes it is for; None where there is no choice.

    Raises:
        FileError: as of `load_flow`.
    """
    flow = _read_array(path) if _suffix(path) in (".npy", None) else _read_by_itk(path)
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.size == 0:
        raise FileError.at(path, "a flow of shape (2, H, W)", f"{flow.shape}")
    if flow.dtype.kind not in "fiu":
        raise FileError.at(path, "a flow of real numbers", str(flow.dtype))
    if not np.isfinite(flow).all():
        raise FileError.at(path, "a flow of finite numbers", "NaN or infinity")
    flow = flow.astype(np.float32)
    if not sizes or None in sizes:
        return flow, None
    for size in sizes:
        if flow.shape in ((2, *size), (2, *(side // GRID_STRIDE for side in size))):
            return flow, size
    fitting = [(2, *(side // step for side in size)) for size in sizes for step in (1, GRID_STRIDE)]
    expected = " or ".join(map(str, fitting))
    raise FileError.at(path, f"a flow of shape {expected}, as the images are", f"{flow.shape}")


def _read_array(path: str | os.PathLike) -> NDArray:
    if lack := lacking(path):
        raise FileError.at(path, "a flow (NumPy array)", lack)
    try:
        flow = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        # NumPy takes all that it does not know for a pickle.
        state = "a file of another kind" if "pickle" in str(error) else str(error)
        raise FileError.at(path, "a flow (NumPy array)", state) from error
    if not isinstance(flow, np.ndarray):
        raise FileError.at(path, "a flow of shape (2, H, W)", type(flow).__name__)
    return flow


def _read_by_itk(path: str | os.PathLike) -> NDArray[np.float64]:
    """Read vectors in mm of a flat image, as px: (2, H, W)."""
    import SimpleITK as sitk

    if state := lacking(path):
        raise FileError.at(path, "a displacement field (.mha, .nii.gz)", state)
    try:
        image = sitk.ReadImage(os.fspath(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileError.at(path, "a displacement field (.mha, .nii.gz)", f"a damaged file ({reason})") from error
    if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
        state = f"{image.GetDimension()} axes, {image.GetNumberOfComponentsPerPixel()} numbers a pixel"
        hint = "; fields of volumes are carried by python -m tools.carry" if image.GetDimension() == 3 else ""
        raise FileError.at(path, "the field of an image: two axes, two numbers a pixel", state + hint)
    if not np.allclose(image.GetDirection(), (1, 0, 0, 1)):
        raise FileError.at(path, "axes along columns and rows", f"a direction of {image.GetDirection()}")
    return np.moveaxis(sitk.GetArrayFromImage(image) / image.GetSpacing(), -1, 0)
