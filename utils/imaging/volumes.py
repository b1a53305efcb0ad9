"""Volumes and single slices from NIfTI, FreeSurfer and DICOM files, and NIfTI files of what was made from them.

Axes: whatever order a file has, `Volume.slices[k]` is an axial slice as (rows, columns): k runs to the patient's head
(superior), rows from front to back (anterior to posterior), columns from the patient's right to the left. That is
how radiologists look at a brain and how the training images lie. Oblique volumes go by the nearest axis. A single
slice stays the slice that it is: a coronal or sagittal one has its rows from top to bottom.

Values stay in the file's own units. DICOM rescale slopes and intercepts are applied, slice by slice, so that CT is in
Hounsfield units. MONOCHROME1 says that a viewer paints small values bright; the values are measurements all the same
and are not inverted.
"""

import gzip
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from utils.files import entries, lacking, write_bytes
from utils.imaging.background import without_constant
from utils.imaging.dicom import dicom_files, is_dicom, read_dicom
from utils.imaging.images import IMAGE_SUFFIXES, ImageError, check_voxels
from utils.imaging.stacking import choose_frames

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Of files that are written."""

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh")
"""Of files that are read; the last two are FreeSurfer's."""

OTHER_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr")
"""Of volumes that are to be converted first: NRRD, MetaImage, Analyze and NIfTI in two files."""

_MILLIMETRES = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of metres and micrometres; without a unit, lengths are taken to be mm."""

_VIEWS = {0: "PIR", 1: "LIP", 2: "LPS"}
"""Normal of a slice (0 left-right, 1 front-back, 2 foot-head) -> where columns, rows and slices run to."""


class Volume(NamedTuple):
    """A stack of slices.

    Attributes:
        slices: float32 (S, H, W), see the module for the axes; in the file's own units, finite.
        affine: float64 (4, 4), voxel (i, j, k) of the file's own array to RAS mm. A DICOM array counts columns, rows,
            slices.
        modality: DICOM tag such as "CT", "MR", "PT", "NM"; "" where the file does not say.
        units: of the values: "HU", DICOM's such as "BQML", or "" where the file does not say.
        space: UID of DICOM's frame of reference, in which the file's positions are; "" where there is none.
        forms: of NIfTI sform and qform, each with its code; the matrix is None where the code is 0.
        note: what was done to the file's values that a user should know of, such as interpolation; "" for nothing.
    """

    slices: np.ndarray
    affine: np.ndarray
    modality: str
    units: str
    space: str = ""
    forms: tuple[tuple[np.ndarray | None, int], ...] = ()
    note: str = ""

    @property
    def placed(self) -> bool:
        """Whether the file says how it lies; else its axes are taken to run to the left, the front and the head."""
        return not self.forms or any(code for _, code in self.forms)

    @property
    def aspect(self) -> float:
        """Height of a pixel of the slices over its width."""
        width, height = np.linalg.norm(self.slices_affine[:3, :2], axis=0)
        return float(height / width)

    @property
    def slices_affine(self) -> np.ndarray:
        """(column, row, slice) of `slices` to RAS mm: float64 (4, 4)."""
        turn = ornt_transform(*_orientations(self.affine, single=len(self.slices) == 1))
        shape = np.array(self.slices.shape[::-1])[turn[:, 0].astype(int)]  # of the file's own array
        return self.affine @ inv_ornt_aff(turn, shape)


def is_volume(path: str | os.PathLike) -> bool:
    """Return True for a file that its name says to be a volume, a DICOM file, or a folder of DICOM files.

    `read_volume` says of some formats that they are to be converted first.
    """
    if os.path.isdir(path):
        return bool(dicom_files(Path(path)))
    return Path(path).name.lower().endswith((*VOLUME_SUFFIXES, *OTHER_SUFFIXES)) or is_dicom(Path(path))


def holds_images(path: str | os.PathLike) -> bool:
    """Return True for an image by its name, or for a folder that holds images.

    Raises:
        FileError: the folder cannot be read.
    """
    inside = entries(Path(path)) if os.path.isdir(path) else [Path(path)]
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in inside)


def check_no_volumes(paths: Iterable[str | os.PathLike]) -> None:
    """Say how volumes are given where one stands, or a folder of them and of no images, in the place of images.

    Raises:
        FileError: that is so, or a folder cannot be read.
    """
    expected = "images, or volumes one pair at a time (--fixed, --moving: a file or the folder of a DICOM series each)"
    for path in paths:
        if holds_images(path):
            continue
        if is_volume(path):
            raise ImageError.at(path, expected, "a volume")
        inside = entries(Path(path)) if os.path.isdir(path) else []
        if volumes := sorted(p.name for p in inside if is_volume(p)):
            raise ImageError.at(path, expected, f"a folder with {len(volumes)} of them, such as {volumes[0]}")


def read_volume(path: str | os.PathLike, frame: int | None = None) -> Volume:
    """Read a volume or a single slice.

    Args:
        path: NIfTI or FreeSurfer file (2D to 4D), DICOM file (one frame or several), or folder of DICOM files of one
            series, which are put in order by their position along the slice normal. Uneven distances are evened by
            interpolation.
        frame: which image of a series in time, from 1; None for their mean. A volume of one time has one frame.

    Raises:
        ImageError: nothing there, damaged or truncated, another format, colour, infinity, NaN alone, slices of one row
            or column, more than `MAX_VOXELS` voxels, voxels without extent, an affine that cannot be inverted, no such
            frame; and for DICOM: no position tags, nothing installed that decodes the pixels, or slices of more than
            one series, size, spacing or direction, too far apart, or of several times at some places only.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ImageError.at(path, "a NIfTI, FreeSurfer or DICOM file or a folder of DICOM files", f"{lacking(path)}")
    if not is_volume(path):
        state = "a folder without DICOM files" if path.is_dir() else repr(path.name)
        raise ImageError.at(path, "a .nii, .nii.gz, .mgz or DICOM file or a folder of DICOM files", state)
    if path.is_file() and path.suffix.lower() in OTHER_SUFFIXES and not is_dicom(path):
        expected = "a NIfTI, FreeSurfer or DICOM file (SimpleITK and 3D Slicer convert others to .nii.gz)"
        raise ImageError.at(path, expected, repr(path.name))
    by_nibabel = path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file()
    array, affine, about = _read_by_nibabel(path, frame) if by_nibabel else read_dicom(path, frame)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError.at(path, "an affine that can be inverted", f"{np.array2string(affine, precision=3)}")
    array, note = without_constant(_without_nan(path, array, about))
    about["note"] = "; ".join(filter(None, (about["note"], note)))
    slices = _to_slices(array, affine)
    count, height, width = slices.shape
    # What is too coarse to be aligned may still be resampled.
    if min(height, width) == 1 or count == 1 < array.shape[2]:
        expected = "axial slices of several rows and columns, or one slice along the third axis"
        raise ImageError.at(path, expected, f"{count} of {width} x {height}")
    return Volume(slices, affine, **about)


def write_volume(path: str | os.PathLike, slices: np.ndarray, like: Volume) -> None:
    """Write a NIfTI file whose array has the axes and the affine of `like`, so that viewers overlay the two.

    What `read_volume` returned is written back as the same array and affine, of NIfTI with sform, qform and their
    codes; a 2D array comes back as (X, Y, 1). The file appears whole or not at all.

    Args:
        path: file to write; its name ends in ``.nii`` or ``.nii.gz``.
        slices: (S, H, W), written as float32, or RGB (S, H, W, 3): uint8, or float clipped to [0, 1].
        like: the volume that the slices belong to, as a rule the fixed one.

    Raises:
        ImageError: wrong suffix, a shape that is not that of `like`, NaN or infinity, or the system refused.
    """
    path, slices = Path(path), np.asarray(slices)
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise ImageError.at(path, "a file name that ends in .nii or .nii.gz", repr(path.name))
    if slices.shape not in (like.slices.shape, (*like.slices.shape, 3)):
        raise ImageError.at(path, f"slices of shape {like.slices.shape}, or RGB, to write", f"shape {slices.shape}")
    if not np.isfinite(slices).all():
        raise ImageError.at(path, "finite values to write", "NaN or infinity")
    if slices.ndim == 4:
        if slices.dtype != np.uint8:
            slices = np.rint(np.clip(slices, 0, 1) * 255).astype(np.uint8)
        slices = np.ascontiguousarray(slices).view([(channel, np.uint8) for channel in "RGB"])[..., 0]
    else:
        slices = slices.astype(np.float32)
    image = _to_nifti(slices, like.affine)
    if like.forms:
        # Some viewers go by sform, others by qform: both are those of the file, or it would not be overlaid everywhere.
        sform, qform = like.forms
        image.set_sform(*sform)
        image.set_qform(*qform)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    write_bytes(path, gzip.compress(data, mtime=0) if path.name.lower().endswith(".gz") else data)


def window(slices: np.ndarray, center: float, width: float) -> np.ndarray:
    """Map [center - width / 2, center + width / 2] linearly to [0, 1] and clip (DICOM PS3.3 C.11.2.1.3.2).

    Args:
        slices: any shape, for CT in HU.
        center, width: such as 40 and 80 for brain tissue in CT.

    Returns:
        float32 in [0, 1].

    Raises:
        ValueError: width is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width: expected a window wider than 0, found {width}")
    # Takes seconds to import, which only volumes are to cost.
    from monai.transforms import ScaleIntensityRange

    return np.asarray(ScaleIntensityRange(center - width / 2, center + width / 2, 0, 1, clip=True)(slices), np.float32)


def robust_window(slices: np.ndarray) -> tuple[float, float]:
    """Compute center and width of the window from the 1st to the 99.5th percentile of a volume.

    For modalities without a scale of their own (MRI) or with rare extremes (PET, SPECT). Where both percentiles are
    the same value the full range takes their place; that of a constant volume has its value as lower end, so that the
    window makes it 0.

    Args:
        slices: (S, H, W), finite.
    """
    low, high = map(float, np.percentile(slices, (1, 99.5)))
    if low == high:
        low, high = float(slices.min()), float(slices.max())
    width = high - low or 1.0
    return low + width / 2, width


def looks_like_hu(slices: np.ndarray) -> bool:
    """Return True if values (Z, Y, X) are plausibly Hounsfield units.

    That is air, under -200, in at least 1 % of the voxels, and tissue.

    To be asked of CT: emission images with noise below zero look the same.
    """
    return bool(np.percentile(slices, 1) <= -200 and slices.max() > 0)


def _orientations(affine: np.ndarray, single: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the orientations of the file's array (i, j, k) and of (columns, rows, slices), as nibabel writes them.

    A stack is looked at along the axis nearest to foot-head, a single slice along the file's third axis.
    """
    own = io_orientation(affine)
    normal = int(own[2, 0]) if single else 2
    return own, axcodes2ornt(_VIEWS[normal])


def _without_nan(path: Path, array: np.ndarray, about: dict) -> np.ndarray:
    """Replace NaN, which many programs write where nothing was measured, by the lowest value, and note it in `about`.

    Raises:
        ImageError: infinity in it, or nothing else than NaN.
    """
    if count := int(np.isinf(array).sum()):
        raise ImageError.at(path, "finite values", f"infinity in {count} voxels")
    unknown = np.isnan(array)
    if not unknown.any():
        return array
    if unknown.all():
        raise ImageError.at(path, "finite values", "NaN alone")
    note = f"expected finite values, found NaN in {unknown.mean():.1%} of the voxels; they count as background"
    about["note"] = "; ".join(filter(None, (about["note"], note)))
    return np.where(unknown, array[~unknown].min(), array)


def _to_slices(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn the file's array (i, j, k) with its affine into slices (S, H, W)."""
    own, view = _orientations(affine, single=array.shape[2] == 1)
    return np.ascontiguousarray(apply_orientation(array, ornt_transform(own, view)).transpose(2, 1, 0))


def _to_nifti(slices: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Turn slices back into the file's array, the inverse of `_to_slices`."""
    own, view = _orientations(affine, single=len(slices) == 1)
    return nib.Nifti1Image(apply_orientation(slices.transpose(2, 1, 0), ornt_transform(view, own)), affine)


def _read_by_nibabel(path: Path, frame: int | None) -> tuple[np.ndarray, np.ndarray, dict]:
    """Read array (X, Y, Z) in float32 and affine of a NIfTI or FreeSurfer file, and further attributes of `Volume`."""
    kind = "NIfTI" if path.name.lower().endswith(NIFTI_SUFFIXES) else "FreeSurfer"
    if state := lacking(path):
        raise ImageError.at(path, f"a {kind} file", state)
    try:
        with _nibabel_is_quiet():
            image = nib.load(path)
    except nib.filebasedimages.ImageFileError as error:
        raise ImageError.at(path, f"a {kind} file", f"another format or a damaged header ({error})") from error
    except Exception as error:
        # nibabel lets the errors of gzip, zlib, mmap and NumPy through.
        raise ImageError.at(path, f"a complete {kind} file", f"a damaged or truncated file ({error})") from error
    if not isinstance(image, nib.Nifti1Image | nib.MGHImage):
        raise ImageError.at(path, f"a {kind} file", type(image).__name__)
    if len(image.shape) < 2 or 0 in image.shape or np.prod(image.shape[4:]) != 1:
        state = f"{len(image.shape)}D, shape {image.shape}"
        raise ImageError.at(path, "a slice (2D), a volume (3D) or volumes in time (4D)", state)
    if image.get_data_dtype().kind not in "iuf":
        state = f"data type {image.header.get_value_label('datatype')}"
        raise ImageError.at(path, "one real number a voxel", state)
    check_voxels(path, image.shape[:3])
    if kind == "NIfTI":
        _check_spacing(path, image)
    chosen, note = choose_frames(path, int(np.prod(image.shape[3:])), frame)
    try:
        # One after the other: a long series need not fit into memory.
        frames = (np.asarray(image.dataobj[(..., *index)], np.float32) for index in _indices(image, chosen))
        array = sum(frames, np.zeros((), np.float32)) / np.float32(len(chosen))
        if path.suffix.lower() in (".gz", ".mgz"):
            # nibabel stops before the checksum, which alone shows damage inside the data.
            with gzip.open(path) as file:
                while file.read(2**20):
                    pass
    except Exception as error:
        raise ImageError.at(path, f"a complete {kind} file", f"a damaged or truncated file ({error})") from error
    array = array.reshape(*array.shape[:3], *(1,) * (3 - array.ndim))
    about = {"modality": "", "units": "", "note": note}
    if kind == "FreeSurfer":
        return array, image.affine, about
    to_mm = np.ones((4, 1))
    to_mm[:3] = _MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1)  # the other bits are those of time
    forms = tuple(_form(get, to_mm) for get in (image.get_sform, image.get_qform))
    about |= {"forms": forms, "note": "; ".join(filter(None, (note, _contradiction(forms))))}
    return array, to_mm * image.affine, about


def _contradiction(forms: tuple[tuple[np.ndarray | None, int], ...]) -> str:
    """Note where sform and qform contradict each other in handedness, directions or voxel sizes."""
    matrices = [matrix[:3, :3] for matrix, code in forms if code and matrix is not None]
    sides = [np.linalg.norm(matrix, axis=0) for matrix in matrices]
    if len(matrices) < 2 or not np.all(sides):
        return ""
    if np.linalg.det(matrices[0]) * np.linalg.det(matrices[1]) < 0:
        return "sform and qform are mirror images of each other; sform is taken: check left and right"
    if np.prod([matrix / side for matrix, side in zip(matrices, sides, strict=True)], axis=0).sum(axis=0).min() < 0.7:
        return "sform and qform are turned by more than 45 degrees against each other; sform is taken: check directions"
    if np.abs(np.log(sides[0] / sides[1])).max() > 0.1:
        sizes = " and ".join(" x ".join(f"{length:.3g}" for length in side) for side in sides)
        return f"sform and qform give other voxel sizes, {sizes} mm; sform is taken: check the size of the head"
    return ""


@contextmanager
def _nibabel_is_quiet() -> Iterator[None]:
    """Keep nibabel from printing what it mends in a header, without the name of the file."""
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_spacing(path: Path, image: nib.Nifti1Image) -> None:
    """Check that the voxels have an extent where it places the volume. nibabel takes 1 mm for 0.

    Raises:
        ImageError: one has none, along an axis of several voxels.
    """
    with nib.openers.ImageOpener(path) as file:
        header = type(image.header).from_fileobj(file, check=False)
    sizes = np.array([size for size, count in zip(header["pixdim"][1:4], image.shape, strict=False) if count > 1])
    if not header["sform_code"] and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise ImageError.at(path, "voxel sizes above 0 (pixdim)", " ".join(f"{size:g}" for size in sizes))


def _indices(image: nib.spatialimages.SpatialImage, chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """Choose indices along the axes beyond the third. Only the fourth may be longer than 1."""
    further = len(image.shape) - 3
    return [(number, *(0,) * (further - 1)) for number in chosen] if further > 0 else [()]


def _form(get: Callable[..., tuple[np.ndarray | None, int]], to_mm: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Read matrix, times `to_mm`, and code of a form from a header. An invalid one counts as absent."""
    try:
        matrix, code = get(coded=True)
    except (ValueError, HeaderDataError):
        # A quaternion of no length 1; it is the other one that places the volume.
        return None, 0
    return (to_mm * matrix, code) if matrix is not None and np.isfinite(matrix).all() else (None, 0)
