"""DICOM files: which they are, and the arrays that they hold with their place in space."""

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from utils.files import entries, lacking
from utils.imaging.images import IMAGE_SUFFIXES, ImageError, check_voxels
from utils.imaging.stacking import Places, choose_frames, places_of, same_place
from utils.imaging.suv import suv_factor
from utils.messages import counted

DICOM_SUFFIX = ".dcm"
_IN_TIME = {"PT", "NM"}
"""Modalities of which several images of one place are frames in time, whose mean says what one image says."""
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
"""Functional groups of a multi-frame DICOM file that say where a frame lies and what its values mean."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_MODALITIES = {
    "COMPUTEDTOMOGRAPHY": "CT",
    "MRI": "MR",
    "MAGNETICRESONANCE": "MR",
    "PET": "PT",
    "POSITRONEMISSIONTOMOGRAPHY": "PT",
    "SPECT": "NM",
    "NUCLEARMEDICINE": "NM",
    "ST": "NM",
    "OT": "",
}
"""Other spellings, letters only, and the retired ST -> DICOM's term; OT, "other", says nothing."""
_HOUNSFIELD = re.compile(r"(?<![A-Z])(H\.? ?U(S|NITS?|MOD)?|UH)(?![A-Z]| ?[/*])|(?<![A-Z])(HOUN|HNSF)", re.IGNORECASE)
"""RescaleType for Hounsfield units, not for parts of them (HU/1000). HU_MOD is DICOM's term for modified ones, [hnsf'U]
that of UCUM, UH that of French and Spanish."""
_NEVER_HOUNSFIELD = {"MR", "NM", "PT", "US"}
"""Modalities that measure no attenuation, whatever RescaleType says. Others than CT do, such as XA."""
_UNSPECIFIED = {"", "US", "UNSPECIFIED", "UNKNOWN", "NONE", "NORMALIZED"}
_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""Tag of the pixels -> tags of the values that fill the frame where nothing was measured."""


def read_dicom(path: Path, frame: int | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read a DICOM file, or all those of a folder, which are put in order along the slices' normal.

    What a folder holds beside the slices is left out: reports, localizers and copies of slices.

    Pixels of padding get the lowest value that was measured anywhere in the series: the background.

    Args:
        path: file or folder.
        frame: which image of each place, from 1, where there are several; None for the mean of PET and SPECT in time.

    Returns:
        float32 array (columns, rows, slices) in the file's own units, or SUV where the header allows it; affine (4, 4),
        from its indices to RAS mm; and attributes of `utils.imaging.volumes.Volume`: modality, units ("HU" for every
        spelling of Hounsfield units), space and note.

    Raises:
        ImageError: as `utils.imaging.volumes.read_volume`.
    """
    files = dicom_files(path) if path.is_dir() else [path]
    _check_stumps(path, files)
    frames, no_images = [], []
    for file in files:
        try:
            frames += _read_frames(file)
        except _NoImage as error:
            no_images.append(error)
    if not frames:
        raise no_images[0]
    frames, left_out = _without_strangers(frames)
    _check_alike(frames)
    frames, note = _one_a_place(path, frames, frame)
    first = frames[0]
    check_voxels(path, (len(frames), *first.values.shape))
    if len(frames) > 1:
        places = places_of(path, np.array([x.position for x in frames]), [x.file.name for x in frames])
    else:
        places = Places(np.cross(*first.directions) * first.thickness)
    lps = np.eye(4)
    lps[:3] = np.column_stack((*(first.directions * first.spacing[::-1, None]), places.step, first.position))
    array = np.stack([x.values for x in frames])
    padded = np.stack([x.padded for x in frames])
    if padded.all():
        raise ImageError.at(path, "pixels that were measured", "padding alone")
    array[padded] = array[~padded].min()
    array = places.apply(array).transpose(2, 1, 0)
    about = {"modality": first.modality, "units": first.units, "space": first.space}
    return array, _LPS_TO_RAS @ lps, about | {"note": "; ".join(filter(None, (left_out, note, places.note)))}


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files directly in a folder, by name, without hidden files."""
    # A disc's table of contents is DICOM too, but no image.
    return sorted(p for p in entries(folder) if not p.is_dir() and is_dicom(p) and p.name.upper() != "DICOMDIR")


def is_dicom(path: Path) -> bool:
    """Recognise a DICOM file by its suffix or by its first bytes, as archives and scanners often give no suffix."""
    if path.suffix.lower() == DICOM_SUFFIX:
        return True
    # os.path takes impossible names for missing files, where pathlib raises.
    if path.suffix.lower() in IMAGE_SUFFIXES or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False  # whoever reads it says why it cannot be read
    return head[128:] == b"DICM" or _begins_with_a_tag(head)


def _begins_with_a_tag(head: bytes) -> bool:
    """Return whether a file begins with a tag of group 2 or 8, as old DICOM files without preamble do."""
    if len(head) < 132:
        return False
    group, element, length = (int.from_bytes(head[at : at + size], "little") for at, size in ((0, 2), (2, 2), (4, 4)))
    explicit = head[4:6].decode("latin-1") in {"UL", "UI", "CS", "OB", "SH", "LO", "DA"}
    return group in (2, 8) and element <= 0x70 and (explicit or 0 < length <= 64)


def _check_stumps(path: Path, files: list[Path]) -> None:
    """Check that no slice of a series is a stump, such as a link to nothing, which says nothing of what it should be.

    Raises:
        ImageError: a DICOM file has no content, or a file of the folder has none that is named as those are, or by a
            number, or has no suffix at all.
    """
    suffixes = {file.suffix.lower() for file in files} | {""}
    others = (p for p in (entries(path) if path.is_dir() else ()) if not p.is_dir() and p not in files)
    alike = (p for p in others if p.suffix.lower() in suffixes or p.suffix[1:].isdecimal())
    for file in (*files, *sorted(alike)):
        if lack := lacking(file):
            raise ImageError.at(file, "a DICOM file" if path.is_file() else "a slice of the series", lack)


class _NoImage(ImageError):
    """A DICOM object that has no pixels by its kind."""


class _Frame(NamedTuple):
    """One frame and where it lies, in DICOM's LPS mm."""

    file: Path
    values: np.ndarray  # float32 (rows, columns), rescaled
    padded: np.ndarray  # boolean (rows, columns): where nothing was measured
    position: np.ndarray  # (3,): centre of the first pixel
    directions: np.ndarray  # (2, 3): where the column index and the row index run to
    spacing: np.ndarray  # (2,): from row to row, from column to column
    thickness: float
    series: str
    modality: str
    units: str
    space: str  # UID of the frame of reference
    time: tuple[str, float, int]  # what puts frames of one place in order: when it was taken, its number
    is_localizer: bool


def _read_frames(path: Path) -> list[_Frame]:
    """Read all frames of one DICOM file."""
    try:
        with warnings.catch_warnings():
            # pydicom warns of odd values, and of truncated files, which are errors below.
            warnings.simplefilter("ignore")
            dataset = _dataset(path)
            _check_kind(path, dataset)
            shape = tuple(int(dataset.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns"))
            check_voxels(path, shape)
            photometric = dataset.get("PhotometricInterpretation", "MONOCHROME2")
            if not photometric.startswith("MONOCHROME"):
                raise ImageError.at(path, "one value a pixel (MONOCHROME1 or MONOCHROME2)", photometric)
            stored = _decoded(path, dataset).reshape(shape)
            values = _within_bits_stored(path, dataset, stored)
            padded = _padded(dataset, stored) | _padded(dataset, values)
            frames = enumerate(zip(values, padded, strict=True))
            return [_frame(path, dataset, number, *pixels) for number, pixels in frames]
    except ImageError:
        raise
    except InvalidDicomError as error:
        raise ImageError.at(path, "a DICOM file", "another format or an empty file") from error
    except Exception as error:
        # pydicom and its decoders let many kinds escape: AttributeError, EOFError, ValueError, RuntimeError ...
        raise ImageError.at(path, "a complete DICOM image", f"a damaged or truncated file ({error})") from error


def _dataset(path: Path) -> Dataset:
    """Read the tags of a file, also of one without preamble.

    Raises:
        ImageError: it has no preamble, compressed pixels, and no word of how they are.
        InvalidDicomError: it is another format.
    """
    try:
        return pydicom.dcmread(path)
    except InvalidDicomError:
        dataset = pydicom.dcmread(path, force=True)
        if "Rows" not in dataset and "SOPClassUID" not in dataset:
            raise
    if "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError.at(path, "the transfer syntax of compressed pixels", "none (a file without preamble)")
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_kind(path: Path, dataset: Dataset) -> None:
    """Check that a file without pixels is of a kind that should have some, as a truncated one is.

    Raises:
        _NoImage: it is not.
    """
    if any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if kind == MediaStorageDirectoryStorage:
        raise _NoImage.at(path, "the folder of one series", "a DICOMDIR")
    if kind and "Image" not in kind.name:
        raise _NoImage.at(path, "an image", f"a DICOM object without pixels ({kind.name})")


def _decoded(path: Path, dataset: Dataset) -> np.ndarray:
    """Decode the stored values of all frames, with the bits beyond those of the values.

    Raises:
        ImageError: nothing is installed that decodes them; the message names what to install, where there is anything.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError.at(path, "a transfer syntax of images", syntax.name) from error
    # Such as "pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-libjpeg>=2.1", one for each package that might do.
    needed = decoder.missing_dependencies[-1:]
    expected = f"a transfer syntax that can be decoded ({''.join(needed).rpartition(' requires ')[2]} would do)"
    if not decoder.is_available:
        raise ImageError.at(path, expected, syntax.name)
    try:
        return pixel_array(dataset, correct_unused_bits=False)
    except RuntimeError as error:
        # Of JPEG with 12 bits, for one, a decoder is there that cannot.
        if needed and "Unable to decompress" in str(error):
            raise ImageError.at(path, expected, f"{syntax.name} ({error})") from error
        raise


def _within_bits_stored(path: Path, dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Remove the bits beside BitsStored, such as overlays (DICOM PS3.5 8.1.1), and keep the sign.

    Raises:
        ImageError: the tags say of no bits which ones they are.
    """
    allocated = 8 * stored.dtype.itemsize
    bits = int(dataset.get("BitsStored") or allocated)
    if stored.dtype.kind == "f" or bits >= allocated:
        return stored
    # Decoders of compressed pixels put the lowest bit in its place.
    high = bits - 1 if dataset.file_meta.TransferSyntaxUID.is_compressed else int(dataset.get("HighBit", bits - 1))
    if not bits - 1 <= high < allocated:
        raise ImageError.at(path, f"a HighBit from {bits - 1} to {allocated - 1} for {bits} bits", str(high))
    return (stored << (allocated - 1 - high)) >> (allocated - bits)


def _padded(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Mark values at PixelPaddingValue, or from it to PixelPaddingRangeLimit (DICOM PS3.3 C.7.5.1.1.2)."""
    names = next(names for pixels, names in _PADDING.items() if pixels in dataset)
    limits = [dataset.get(name) for name in names]
    limits = [limit for limit in limits if limit is not None]
    if dataset.get(names[0]) is None:
        return _unnamed_padding(values)
    if values.dtype.kind == "f":
        low, high = min(limits), max(limits)
        return (values >= low) & (values <= high) | (np.isnan(low) & np.isnan(values))
    # The tags may have the other sign than the pixels: 63536 for -2000.
    size = 1 << 8 * values.dtype.itemsize
    signed = values.dtype.kind == "i"
    limits = [(int(x) + size // 2) % size - size // 2 if signed else int(x) % size for x in limits]
    return (values >= min(limits)) & (values <= max(limits))


def _unnamed_padding(values: np.ndarray) -> np.ndarray:
    """Mark the least number of a signed type, or NaN, where no tag names a padding.

    Only if no other value lies in the lower half of the type: else it may be measured.
    """
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "i":
        return np.zeros(values.shape, bool)
    lowest = np.iinfo(values.dtype).min
    padded = values == lowest
    alone = padded.any() and not padded.all() and values[~padded].min() > lowest // 2
    return padded if alone else np.zeros(values.shape, bool)


def _units(text: str) -> str:
    """Spell units as the project does: "HU" for every spelling of it, "" for unspecified ones, others in capitals."""
    if _HOUNSFIELD.search(text):
        return "HU"
    return "" if _letters(text) in _UNSPECIFIED else text.strip().upper()


def _letters(text: str) -> str:
    """Leave the letters of a text alone, as capitals."""
    return "".join(letter for letter in text.upper() if letter.isalpha())


def _frame(path: Path, dataset: Dataset, number: int, values: np.ndarray, padded: np.ndarray) -> _Frame:
    """Place and rescale one frame of a file."""
    groups = _functional_groups(dataset, number)

    def numbers(name: str, count: int) -> np.ndarray:
        values = groups.get(name) or dataset.get(name)
        if values is None or np.size(values) != count:
            raise ImageError.at(path, f"the position tag {name}", "none" if values is None else f"{values}")
        values = np.array(values, np.float64).reshape(count)
        if not np.isfinite(values).all():
            raise ImageError.at(path, f"finite numbers as {name}", _text(values))
        return values

    position = numbers("ImagePositionPatient", 3)
    directions = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=0.01):
        expected = "two unit vectors at a right angle as ImageOrientationPatient"
        raise ImageError.at(path, expected, _text(directions))
    spacing = numbers("PixelSpacing", 2)
    if not (spacing > 0).all():
        raise ImageError.at(path, "a PixelSpacing above 0", _text(spacing))
    thickness = next((n for n in ("SpacingBetweenSlices", "SliceThickness") if groups.get(n) or dataset.get(n)), None)
    count = int(dataset.get("NumberOfFrames") or 1)
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        # Nuclear medicine gives the first frame's position and the distance from frame to frame.
        if dataset.get("NumberOfSlices", count) != count:
            raise ImageError.at(path, f"one volume of {dataset.NumberOfSlices} slices", f"{count} frames")
        position = position + number * numbers("SpacingBetweenSlices", 1) * np.cross(*directions)
    modality = _letters(str(dataset.get("Modality") or ""))
    modality = _MODALITIES.get(modality, modality)
    values, units = _measured(path, dataset, groups, modality, values)
    taken = [dataset.get(name) for name in ("AcquisitionDate", "AcquisitionTime")]
    return _Frame(
        file=path,
        values=values,
        padded=padded,
        position=position,
        directions=directions,
        spacing=spacing,
        thickness=abs(numbers(thickness, 1)[0]) if thickness else 1.0,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        modality=modality,
        units=units,
        space=str(dataset.get("FrameOfReferenceUID") or ""),
        time=("".join(map(str, taken)), float(dataset.get("FrameReferenceTime") or 0), _number(dataset, number)),
        is_localizer="LOCALIZER" in (dataset.get("ImageType") or []),
    )


def _measured(
    path: Path, dataset: Dataset, groups: Dataset, modality: str, values: np.ndarray
) -> tuple[np.ndarray, str]:
    """Rescale the stored values of one frame; return float32 values and their units."""
    tags = Dataset()  # of this frame alone; `dataset` is that of the others as well
    tags.file_meta = dataset.file_meta  # has the byte order of a table of values
    tags.update(dataset)
    tags.update(groups)
    rescaling = [name for name in ("RescaleSlope", "RescaleIntercept") if tags.get(name) is not None]
    if tags.get("RescaleSlope") == 0:
        raise ImageError.at(path, "a RescaleSlope other than 0", "0")
    # pydicom wants both; one may be missing, or there but empty.
    tags.RescaleSlope, tags.RescaleIntercept = tags.get("RescaleSlope") or 1, tags.get("RescaleIntercept") or 0
    table = (dataset.get("ModalityLUTSequence") or [None])[0]
    # Units and dose are tags of PET. A CT that has them took them over from one.
    tracer = modality != "CT"
    named = dataset.get("Units") if tracer else None
    units = table.get("ModalityLUTType") if table else named or groups.get("RescaleType")
    units = _units(str(units or dataset.get("RescaleType") or ("HU" if modality == "CT" else "")))
    # Some programs write HU into images of every modality. Other values are those before rescaling.
    if units == "HU" and (modality in _NEVER_HOUNSFIELD or (len(rescaling) < 2 and not table)):
        units = ""
    values = apply_modality_lut(values, tags).astype(np.float32)
    if tracer and (factor := suv_factor(dataset)):
        values, units = values * np.float32(factor), "SUV"
    return values, units


def _number(dataset: Dataset, number: int) -> int:
    """Number a frame in its series: by file, then within the file."""
    return 10000 * int(dataset.get("InstanceNumber") or 0) + number


def _functional_groups(dataset: Dataset, number: int) -> Dataset:
    """Flatten the nested sequences of a multi-frame file to the tags of one frame."""
    flat = Dataset()
    for detector in (dataset.get("DetectorInformationSequence") or [])[:1]:
        flat.update(detector)
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[number : number + 1]
    for group in (*shared, *own):
        for name in _MACROS:
            for item in group.get(name) or []:
                flat.update(item)
    return flat


def _without_strangers(frames: list[_Frame]) -> tuple[list[_Frame], str]:
    """Leave out localizers and copies of slices, with a note. A folder of localizers alone keeps them."""
    slices = [frame for frame in frames if not frame.is_localizer] or frames
    single: dict[tuple, _Frame] = {}
    for frame in slices:
        # Frames in time may be equal by chance, as before a tracer arrives.
        time = frame.time if frame.modality in _IN_TIME else None
        place = *frame.position, *frame.directions.ravel()
        values = hashlib.sha256(frame.values.tobytes()).digest()  # the values themselves would double the memory
        single.setdefault((values, tuple(np.round(place, 3)), time), frame)
    counts = {"localizer": len(frames) - len(slices), "doubled slice": len(slices) - len(single)}
    names = [counted(count, noun) for noun, count in counts.items() if count]
    return list(single.values()), f"left out {' and '.join(names)}" if names else ""


def _check_alike(frames: list[_Frame]) -> None:
    """Check that all frames go together with the first one.

    Raises:
        ImageError: one does not.
    """
    first, *others = frames
    for frame in others:
        for quality, expected, value in (
            ("the series", first.series, frame.series),
            ("the rows and columns", first.values.shape, frame.values.shape),
            ("the pixel spacing", first.spacing, frame.spacing),
            ("the direction", first.directions, frame.directions),
            ("the units", first.units or "unknown", frame.units or "unknown"),
        ):
            same = np.allclose(expected, value, atol=1e-3) if isinstance(value, np.ndarray) else expected == value
            if not same:
                raise ImageError.at(frame.file, f"{quality} of {first.file.name}, {_text(expected)}", _text(value))


def _one_a_place(path: Path, frames: list[_Frame], number: int | None) -> tuple[list[_Frame], str]:
    """Choose one frame of each place along the normal, with a note. Several stay where that is odd.

    Raises:
        ImageError: there is no such frame.
    """
    normal = np.cross(*frames[0].directions)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    numbers = same_place(np.array([frame.position for frame in frames]))
    counts = np.bincount(numbers)
    in_time = frames[0].modality in _IN_TIME or number is not None
    if counts.min() != counts.max() or not in_time:
        return frames, ""  # the places are checked later
    chosen, note = choose_frames(path, int(counts[0]), number)
    if counts[0] == 1:
        return frames, note
    one_each = []
    for place in range(len(counts)):
        series = sorted((frames[k] for k in np.flatnonzero(numbers == place)), key=lambda frame: frame.time)
        taken = [series[k] for k in chosen]
        values = np.mean([frame.values for frame in taken], axis=0, dtype=np.float32)
        one_each.append(taken[0]._replace(values=values, padded=np.all([frame.padded for frame in taken], axis=0)))
    return one_each, note


def _text(value: str | tuple[int, ...] | np.ndarray) -> str:
    return value if isinstance(value, str) else " ".join(f"{number:g}" for number in np.ravel(value))
