"""utils/imaging/volumes.py: axes, values and affines of NIfTI and DICOM input, the way back, and every bad file."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
)

from inference.volumes.pair import BRAIN_WINDOW, read_volumes
from utils.imaging.images import ImageError
from utils.imaging.resampling import distance_between, resample_volume
from utils.imaging.volumes import (
    OTHER_SUFFIXES,
    Volume,
    is_volume,
    looks_like_hu,
    read_volume,
    robust_window,
    window,
    write_volume,
)

X, Y, Z = 72, 66, 68
"""Sizes of the test volumes along left-right, front-back and foot-head: all differ, all are large enough to be seen
from any side."""


# --- files to read ------------------------------------------------------------------------------------------


def patient() -> np.ndarray:
    """Values (X, Y, Z) in RAS order: brighter to the right, to the front and to the head, each in its own decade."""
    r, a, s = np.meshgrid(np.arange(X), np.arange(Y), np.arange(Z), indexing="ij")
    return (r + 100 * a + 10000 * s).astype(np.float32)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([0.9, 0.8, 1.5, 1.0]) if affine is None else affine), path)
    return path


def dicom(path: Path, values: np.ndarray, **tags: object) -> Path:
    """A CT slice (rows, columns), or a file of several frames; a tag of None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    defaults = {
        "SeriesInstanceUID": "1.2.4",
        "Modality": "CT",
        "ImagePositionPatient": [-20.0, -30.0, 5.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.8, 0.9],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "Rows": values.shape[-2],
        "Columns": values.shape[-1],
        "NumberOfFrames": len(values) if values.ndim == 3 else None,
    }
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = values.astype("<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, shape)


def series(folder: Path, slices: np.ndarray, positions: list[tuple[float, ...]], **tags: object) -> Path:
    """A folder of slices whose names do not follow their positions."""
    folder.mkdir(exist_ok=True)
    for number, (values, position) in enumerate(zip(slices, positions, strict=True)):
        name = f"{7 * number % 101:03d}.dcm"
        dicom(folder / name, values, ImagePositionPatient=list(position), **tags)
    return folder


def message_of(path: Path, *words: str) -> None:
    """Reading fails with one line that names the file and the words."""
    with pytest.raises(ImageError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    for word in (str(path), *words):
        assert word in message


def test_is_volume(tmp_path: Path) -> None:
    assert is_volume("a.nii") and is_volume("b.NII.GZ") and is_volume(tmp_path / "c.dcm")
    assert not is_volume("a.png") and not is_volume("b.gz") and not is_volume(tmp_path)
    assert not is_volume("n" * 300) and not is_volume("a\0b")
    (tmp_path / "slice.png").touch()
    (tmp_path / ".hidden.dcm").touch()
    assert not is_volume(tmp_path)
    (tmp_path / "slice.DCM").touch()
    assert is_volume(tmp_path)


def test_dicom_files_are_known_without_their_suffix(tmp_path: Path) -> None:
    slices = noise(3, 64, 66)
    series(tmp_path, slices, [(-20, -30, 4.0 * k) for k in range(3)])
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / f"IM{path.stem}")
    (tmp_path / "readme.txt").write_text("from the archive")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert is_volume(tmp_path) and is_volume(next(tmp_path.glob("IM*")))
    np.testing.assert_array_equal(read_volume(tmp_path).slices, slices)


def test_dicom_objects_without_pixels_are_named_and_left_out_of_a_series(tmp_path: Path) -> None:
    report, contents = tmp_path / "000.dcm", tmp_path / "DICOMDIR"
    dataset = dcmread(dicom(report, noise(64, 64), SeriesInstanceUID="9.9"))
    del dataset.PixelData
    dataset.SOPClassUID = BasicTextSRStorage
    dataset.save_as(report)
    message_of(report, "an image", "a DICOM object without pixels (Basic Text SR Storage)")
    with pytest.raises(ImageError, match="without pixels"):
        read_volume(tmp_path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.save_as(contents)
    message_of(contents, "the folder of one series", "a DICOMDIR")
    slices = noise(2, 64, 66)
    for number, values in enumerate(slices):
        dicom(tmp_path / f"{number + 1}.dcm", values, ImagePositionPatient=[0, 0, 4.0 * number])
    np.testing.assert_array_equal(read_volume(tmp_path).slices, slices)


def test_a_fourth_axis_of_one_is_no_axis(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "3d.nii", patient()))
    longer = read_volume(nifti(tmp_path / "4d.nii", patient()[..., None, None]))
    np.testing.assert_array_equal(longer.slices, volume.slices)


# --- axes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "SAL", "RIA"])
def test_axes_are_the_same_whatever_the_order_in_the_file(tmp_path: Path, axes: str) -> None:
    upright = nib.Nifti1Image(patient(), np.diag([0.9, 0.8, 1.5, 1.0]))
    turned = upright.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(upright.affine), nib.orientations.axcodes2ornt(axes)
        )
    )
    assert aff2axcodes(turned.affine) == tuple(axes)
    nib.save(turned, tmp_path / "volume.nii")
    volume = read_volume(tmp_path / "volume.nii")
    assert volume.slices.dtype == np.float32 and volume.slices.shape == (Z, Y, X)
    assert volume.aspect == pytest.approx(0.8 / 0.9)
    # Slice k, row 0 is the front, column 0 the patient's right: the largest second and first decade.
    np.testing.assert_array_equal(volume.slices[5, 0, :3], 50000 + 100 * (Y - 1) + np.array([X - 1, X - 2, X - 3]))
    np.testing.assert_array_equal(volume.slices[5, 1:3, 0], 50000 + 100 * np.array([Y - 2, Y - 3]) + X - 1)

    write_volume(tmp_path / "back.nii.gz", volume.slices, volume)
    before, after = nib.load(tmp_path / "volume.nii"), nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.float32


def test_oblique_volume_goes_by_the_nearest_axes_and_comes_back(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3] = np.column_stack((turn * [0.9, 0.8, 1.5], [10, 20, 30]))
    path = nifti(tmp_path / "oblique.nii.gz", patient(), affine.astype(np.float32))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.slices, patient()[::-1, ::-1].transpose(2, 1, 0))
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    after = nib.load(tmp_path / "back.nii")
    np.testing.assert_array_equal(after.get_fdata(), patient())
    np.testing.assert_array_equal(after.affine, nib.load(path).affine)


@pytest.mark.parametrize(
    ("axes", "first_row"),
    [("RAS", "front"), ("LPS", "front"), ("RSA", "head"), ("ASR", "head")],
)
def test_single_slice_stays_in_its_plane(tmp_path: Path, axes: str, first_row: str) -> None:
    ornt = nib.orientations.axcodes2ornt(axes)
    upright = nib.Nifti1Image(patient(), np.eye(4))
    turned = upright.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(np.eye(4)), ornt))
    array = np.asarray(turned.dataobj)[:, :, :1]
    nifti(tmp_path / "slice.nii", array, turned.affine)
    volume = read_volume(tmp_path / "slice.nii")
    assert volume.slices.shape[0] == 1
    top, bottom = volume.slices[0, 0].astype(int), volume.slices[0, -1].astype(int)
    if first_row == "front":
        assert (top // 100 % 100 == Y - 1).all() and (bottom // 100 % 100 == 0).all()
    else:
        assert (top // 10000 == Z - 1).all() and (bottom // 10000 == 0).all()
    first, last = volume.slices[0, :, 0].astype(int), volume.slices[0, :, -1].astype(int)
    if axes == "ASR":  # columns from front to back
        assert (first // 100 % 100 == Y - 1).all() and (last // 100 % 100 == 0).all()
    else:  # from right to left
        assert (first % 100 == X - 1).all() and (last % 100 == 0).all()
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    after = nib.load(tmp_path / "back.nii")
    np.testing.assert_array_equal(after.get_fdata(), array)
    np.testing.assert_array_equal(after.affine, turned.affine)


@pytest.mark.parametrize("codes", [(4, 1), (2, 0), (0, 1), (0, 0)])
def test_sform_and_qform_come_back_with_their_codes(tmp_path: Path, codes: tuple[int, int]) -> None:
    sform, qform = np.diag([-0.9, 0.8, 1.5, 1.0]), np.eye(4)
    qform[:3] = [[-0.9, 0, 0, 5], [0, 0, 1.5, -8], [0, 0.8, 0, 3]]
    image = nib.Nifti1Image(patient(), None)
    image.header.set_zooms((0.9, 0.8, 1.5))
    image.set_sform(sform if codes[0] else None, codes[0])
    image.set_qform(qform if codes[1] else None, codes[1])
    nib.save(image, tmp_path / "volume.nii")
    before = nib.load(tmp_path / "volume.nii")
    volume = read_volume(tmp_path / "volume.nii")
    for slices in (volume.slices, np.repeat(volume.slices[..., None] > 0, 3, axis=3).astype(np.uint8)):
        write_volume(tmp_path / "back.nii", slices, volume)
        after = nib.load(tmp_path / "back.nii")
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
        np.testing.assert_allclose(after.header.get_zooms(), before.header.get_zooms())
        for form, code in zip(("sform", "qform"), codes, strict=True):
            (actual, its_code), (expected, _) = (getattr(x, f"get_{form}")(coded=True) for x in (after, before))
            assert its_code == code and (actual is None) == (code == 0)
            assert code == 0 or np.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize(
    ("flip", "word"),
    [
        ([-1, 1, 1], "mirror images"), ([1, 1, -1], "mirror images"), ([-1, -1, 1], "turned by more than 45"),
        ([1, 1, 1], ""), ([1.05, 1, 1], ""), ([2, 1, 1], "other voxel sizes, 1.8 x 0.8 x 1.5 and 0.9 x 0.8 x 1.5 mm"),
    ],
)  # fmt: skip
def test_sform_and_qform_that_contradict_each_other_are_worth_a_word(
    tmp_path: Path, codes: tuple[int, int], flip: list[float], word: str
) -> None:
    sform = np.diag([0.9, 0.8, 1.5, 1.0])
    image = nib.Nifti1Image(patient(), None)
    image.set_sform(sform @ np.diag([*flip, 1]), codes[0])
    image.set_qform(sform, codes[1])
    nib.save(image, tmp_path / "volume.nii")
    volume = read_volume(tmp_path / "volume.nii")
    assert word in volume.note if codes == (1, 1) and word else volume.note == ""
    np.testing.assert_allclose(volume.affine, sform @ np.diag([*flip, 1]) if codes[0] else sform, atol=1e-6)


def test_a_qform_that_is_none_is_left_out(tmp_path: Path) -> None:
    path = nifti(tmp_path / "volume.nii", patient())
    quaternion, qform_code = 256, 252
    path = patch(path, quaternion, 0.9, 0.9, 0.9)
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, qform_code, 1)
    path.write_bytes(data)
    volume = read_volume(path)
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    after = nib.load(tmp_path / "back.nii")
    np.testing.assert_array_equal(after.affine, nib.load(path).affine)
    assert after.get_qform(coded=True) == (None, 0)


def test_flat_nifti_is_a_stack_of_one(tmp_path: Path) -> None:
    array = patient()[:, :, 0]
    volume = read_volume(nifti(tmp_path / "slice.nii", array))
    np.testing.assert_array_equal(volume.slices[0], array[::-1, ::-1].T)
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "back.nii").get_fdata(), array[:, :, None])


def patch(path: Path, offset: int, *values: float) -> Path:
    """Overwrite float32 fields of a NIfTI header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", data, offset, *values)
    path.write_bytes(data)
    return path


def test_scale_factors_of_the_file_are_applied(tmp_path: Path) -> None:
    path = nifti(tmp_path / "volume.nii", np.full((X, Y, 3), 7, np.int16))
    slope_and_intercept = 112
    assert (read_volume(patch(path, slope_and_intercept, 2, -1024)).slices == 7 * 2 - 1024).all()


@pytest.mark.parametrize(("unit", "size"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1)])
def test_lengths_are_in_millimetres_whatever_the_unit_of_the_file(tmp_path: Path, unit: str, size: float) -> None:
    affine = np.diag([0.5, 0.6, 1.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    image = nib.Nifti1Image(patient(), np.diag([size, size, size, 1]) @ affine)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "volume.nii")
    volume = read_volume(tmp_path / "volume.nii")
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-5)
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    after = nib.load(tmp_path / "back.nii")
    assert after.header.get_xyzt_units()[0] == "mm"
    for actual in (after.get_sform(), after.get_qform()):
        np.testing.assert_allclose(actual, affine, rtol=1e-5, atol=1e-6)


# --- resampling ---------------------------------------------------------------------------------------------


def ramp(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """Values that grow by 1, 2 and 3 a mm to the right, to the front and to the head, whatever the grid."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    millimetres = voxels @ affine[:3, :3].T + affine[:3, 3]
    return read_volume(nifti(path, (millimetres @ [1, 2, 3]).astype(np.float32), affine))


@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1, -1, 1]), np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])])
def test_resampling_goes_by_the_place_in_space(tmp_path: Path, turn: np.ndarray) -> None:
    fixed, moving = np.eye(4), np.eye(4)
    fixed[:3, :3], moving[:3, :3] = turn * 0.7, np.diag([1.1, 0.9, 1.3])
    # Both are centred on the origin, the fixed one within the moving one.
    fixed[:3, 3] = -fixed[:3, :3] @ [35, 35, 35]
    moving[:3, 3] = -moving[:3, :3] @ [40, 45, 35]
    like = ramp(tmp_path / "fixed.nii", fixed, (71, 71, 71))
    actual = resample_volume(ramp(tmp_path / "moving.nii", moving, (81, 91, 71)), like)
    assert np.array_equal(actual.affine, like.affine)
    np.testing.assert_allclose(actual.slices, like.slices, atol=1e-3)


@pytest.mark.parametrize("order", [np.eye(3), np.diag([-1, 1, -1]), np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])])
def test_distance_between_volumes_goes_by_the_place_in_space(tmp_path: Path, order: np.ndarray) -> None:
    affine, stored = np.diag([1.0, 1.0, 2.0, 1.0]), np.eye(4)
    like = ramp(tmp_path / "fixed.nii", affine, (70, 80, 65))
    # The same grid, with its axes stored in another order and from the other end.
    shape = np.abs(order).T @ [70, 80, 65]
    stored[:3, :3] = affine[:3, :3] @ order
    stored[:3, 3] = -stored[:3, :3] @ ((order.T.sum(axis=1) < 0) * (shape - 1))
    assert distance_between(ramp(tmp_path / "moving.nii", stored, shape), like) == pytest.approx(0, abs=1e-4)
    stored[:3, 3] += [3, 0, 4]
    assert distance_between(ramp(tmp_path / "moving.nii", stored, shape), like) == pytest.approx(5, abs=1e-4)
    stored[:3, :3] *= 1.1
    assert distance_between(ramp(tmp_path / "moving.nii", stored, shape), like) > 7


def test_distance_between_volumes_is_the_largest_of_the_corners(tmp_path: Path) -> None:
    # Slices that lie 0.1 mm further apart are 4 * 0.1 mm off in the end; none of the other axes is.
    volumes = [ramp(tmp_path / f"{z}.nii", np.diag([1.0, 1.0, z, 1.0]), (70, 80, 5)) for z in (2.0, 2.1)]
    assert distance_between(*volumes) == pytest.approx(0.4, abs=1e-4)


def test_resampling_fills_with_the_lowest_value_and_keeps_what_is_on_the_grid(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    like = read_volume(nifti(tmp_path / "fixed.nii", np.zeros((X, Y, 6), np.float32), affine))
    moving = patient()[..., :4] - 1000
    affine[2, 3] = 4.0
    actual = resample_volume(read_volume(nifti(tmp_path / "moving.nii", moving, affine)), like)
    assert (actual.slices[:2] == moving.min()).all()
    np.testing.assert_allclose(actual.slices[2:], read_volume(tmp_path / "moving.nii").slices, atol=1e-2)


@pytest.mark.parametrize("count", [1, 5])
def test_resampling_reaches_to_the_faces_of_the_voxels(tmp_path: Path, count: int) -> None:
    # Oblique grids of one extent that differ by rounding, and by less than half a voxel: nothing may be lost.
    angle = np.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= [0.9, 0.8, 4.0]
    affine[:3, 3] = [-80.1, -100.3, 20.7]
    array = patient()[..., :count]
    like = read_volume(nifti(tmp_path / "fixed.nii", array, affine))
    for shift, same in ((1e-6, True), (0.45, False)):
        moved = affine.copy()
        moved[:3, 3] += shift * affine[:3].sum(axis=1)[:3] - shift * affine[:3, 3]
        volume = read_volume(nifti(tmp_path / "moving.nii", array + 100, moved))
        actual = resample_volume(volume, like)
        assert (actual.slices >= volume.slices.min()).all()
        if same:
            np.testing.assert_allclose(actual.slices, volume.slices, atol=1e-2)
        # Where nothing reaches, the lowest value stands: not at a face that is half a voxel away.
        inner = actual.slices[:, 1:-1, 1:-1]
        assert np.corrcoef(inner.ravel(), volume.slices[:, 1:-1, 1:-1].ravel())[0, 1] > 0.9
    moved[:3, 3] = affine[:3, 3] + 0.6 * affine[:3, 2]
    volume = read_volume(nifti(tmp_path / "moving.nii", array + 100, moved))
    if count == 1:
        with pytest.raises(ValueError, match="overlap"):
            resample_volume(volume, like)
    else:
        lowest = [(plane == volume.slices.min()).all() for plane in resample_volume(volume, like).slices]
        assert lowest == [True, False, False, False, False]


@pytest.mark.parametrize(("count", "order"), [(6, "RAS"), (5, "LPS"), (6, "SPL")])
def test_thick_slices_are_the_mean_of_the_thin_ones_within(tmp_path: Path, count: int, order: str) -> None:
    affine, thick = np.eye(4), np.diag([1.0, 1.0, count, 1.0])
    thick[2, 3] = (count - 1) / 2
    like = read_volume(nifti(tmp_path / "fixed.nii", np.zeros((X, Y, Z // count), np.float32), thick))
    values = np.random.default_rng(0).normal(size=(X, Y, Z)).astype(np.float32)
    means = values[..., : Z // count * count].reshape(X, Y, -1, count).mean(axis=-1)
    for array, expected in ((values, means), (np.full_like(values, 7), np.full_like(means, 7))):
        own = nib.orientations.io_orientation(affine)
        turn = nib.orientations.ornt_transform(own, nib.orientations.axcodes2ornt(order))
        nib.save(nib.Nifti1Image(array, affine).as_reoriented(turn), tmp_path / "moving.nii")
        actual = resample_volume(read_volume(tmp_path / "moving.nii"), like)
        np.testing.assert_allclose(actual.slices, expected[::-1, ::-1].transpose(2, 1, 0), atol=1e-4)
    assert means.std() == pytest.approx(count**-0.5, rel=0.05)


def test_volumes_apart_are_not_resampled(tmp_path: Path) -> None:
    affine = np.eye(4)
    like = read_volume(nifti(tmp_path / "fixed.nii", patient(), affine.copy()))
    affine[0, 3] = 500
    with pytest.raises(ValueError, match="expected volumes that overlap in space"):
        resample_volume(read_volume(nifti(tmp_path / "moving.nii", patient(), affine)), like)


# --- DICOM --------------------------------------------------------------------------------------------------


def test_series_is_sorted_by_position_rescaled_and_placed(tmp_path: Path) -> None:
    slices = noise(5, 70, 80)
    places = [(-20.0, -30.0, 5 + 2.5 * k) for k in range(5)]
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "FrameOfReferenceUID": "1.2.5"}
    volume = read_volume(series(tmp_path / "series", slices, places, **tags))
    np.testing.assert_array_equal(volume.slices, slices * 2 - 1024)
    assert (volume.modality, volume.units, volume.space) == ("CT", "HU", "1.2.5")
    # Column 3, row 4, slice 2 lies at LPS -20 + 3 * 0.9, -30 + 4 * 0.8, 5 + 2 * 2.5; RAS turns the first two over.
    np.testing.assert_allclose(volume.affine @ [3, 4, 2, 1], [17.3, 26.8, 10.0, 1.0])
    write_volume(tmp_path / "back.nii", volume.slices, volume)
    written = nib.load(tmp_path / "back.nii")
    np.testing.assert_array_equal(written.get_fdata()[3, 4, 2], volume.slices[2, 4, 3])
    np.testing.assert_allclose(written.affine, volume.affine, rtol=1e-6)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_slices_that_run_to_the_feet_and_tilted_gantry(tmp_path: Path) -> None:
    slices = noise(4, 70, 80)
    # Row direction to the right, column direction to the back: the normal runs to the feet.
    places = [(20.0, -30.0 + 0.5 * k, 100 - 3.0 * k) for k in range(4)]
    folder = series(tmp_path / "series", slices, places, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.slices, slices[::-1, :, ::-1])
    np.testing.assert_allclose(volume.affine @ [0, 0, 3, 1], [-20, 28.5, 91, 1])


def test_sagittal_series_becomes_axial_slices(tmp_path: Path) -> None:
    values = np.stack([np.full((70, 66), k) for k in range(65)]) + 100 * np.arange(70)[None, :, None]
    # Column index to the back, row index to the feet, slice by slice from the patient's left to the right.
    places = [(30.0 - k, 0.0, 50.0) for k in range(65)]
    volume = read_volume(series(tmp_path / "series", values, places, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]))
    assert volume.slices.shape == (70, 66, 65)
    # The lowest slice holds the last row of every image; the right side, x smallest, comes first.
    np.testing.assert_array_equal(volume.slices[0, 0], 6900 + np.arange(64, -1, -1))


def test_every_pet_slice_has_its_own_slope(tmp_path: Path) -> None:
    tags = {"Modality": "PT", "Units": "BQML"}
    for k in range(2):
        place = [0, 0, 4.0 * k]
        dicom(tmp_path / f"{k}.dcm", np.full((64, 64), 10), ImagePositionPatient=place, RescaleSlope=k + 1.5, **tags)
    volume = read_volume(tmp_path)
    assert volume.slices[:, 0, 0].tolist() == [15, 25]
    assert (volume.modality, volume.units) == ("PT", "BQML")


@pytest.mark.parametrize(
    ("tags", "units"),
    [
        ({}, "HU"),
        ({"RescaleType": "HU"}, "HU"),
        ({"RescaleType": "MGML"}, "MGML"),
        ({"RescaleType": "US"}, ""),
        ({"RescaleSlope": None, "RescaleIntercept": None}, ""),
        ({"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": "HU"}, ""),
    ],
)
def test_only_ct_that_is_rescaled_is_in_hounsfield_units(tmp_path: Path, tags: dict, units: str) -> None:
    assert read_volume(dicom(tmp_path / "ct.dcm", noise(64, 64), **tags)).units == units


def test_empty_rescale_tags_count_as_absent(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", noise(64, 64), Modality="MR")
    dataset = dcmread(path)
    dataset.RescaleSlope = dataset.RescaleIntercept = None
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).slices[0], noise(64, 64))
    dataset.RescaleSlope = 2
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).slices[0], 2 * noise(64, 64))
    dataset.RescaleSlope, dataset.RescaleIntercept = None, 5
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).slices[0], 5 + noise(64, 64))


def test_ct_frames_of_one_file_that_are_not_rescaled(tmp_path: Path) -> None:
    values, absent = noise(3, 64, 64), {"RescaleSlope": None, "RescaleIntercept": None}
    volume = read_volume(dicom(tmp_path / "a.dcm", values, SpacingBetweenSlices=2, **absent))
    assert volume.units == ""
    np.testing.assert_array_equal(volume.slices, values)


def test_ct_of_which_one_slice_is_not_rescaled(tmp_path: Path) -> None:
    for number, tags in enumerate(({"RescaleIntercept": -1024}, {"RescaleIntercept": None})):
        dicom(tmp_path / f"{number}.dcm", noise(64, 64), ImagePositionPatient=[0, 0, number], **tags)
    message_of(tmp_path, "1.dcm", "the units of 0.dcm, HU", "unknown")


def test_single_file_takes_its_thickness_and_keeps_monochrome1_values(tmp_path: Path) -> None:
    values = noise(70, 80)
    path = dicom(tmp_path / "one.dcm", values, SliceThickness=5, PhotometricInterpretation="MONOCHROME1")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.slices[0], values)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 5])
    # The distance to the next slice goes before the thickness, and its sign is for the order of frames.
    path = dicom(tmp_path / "two.dcm", values, SliceThickness=5, SpacingBetweenSlices=-4)
    np.testing.assert_allclose(read_volume(path).affine[:3, 2], [0, 0, 4])


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def test_multi_frame_file_with_functional_groups(tmp_path: Path) -> None:
    values = noise(3, 64, 70)
    shared = item(
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.5, 0.6], SliceThickness=9)]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
    )
    # Frames run from head to feet and each has its own rescale.
    own = [
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[0, 0, -2.0 * k])]),
            PixelValueTransformationSequence=Sequence([item(RescaleSlope=k + 1, RescaleIntercept=k, RescaleType="US")]),
        )
        for k in range(3)
    ]
    absent = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"))
    path = dicom(
        tmp_path / "frames.dcm",
        values,
        Modality="MR",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(own),
        **absent,
    )
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.slices, np.stack([values[k] * (k + 1) + k for k in (2, 1, 0)]))
    np.testing.assert_allclose(np.abs(np.diag(volume.affine)), [0.6, 0.5, 2, 1])
    assert (volume.modality, volume.units) == ("MR", "")


def test_nuclear_medicine_frames_follow_the_first_ones_position(tmp_path: Path) -> None:
    values = noise(3, 64, 70)
    detector = item(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    tags = {
        "Modality": "NM",
        "ImagePositionPatient": None,
        "ImageOrientationPatient": None,
        "DetectorInformationSequence": Sequence([detector]),
        "NumberOfSlices": 3,
    }
    volume = read_volume(dicom(tmp_path / "a.dcm", values, SpacingBetweenSlices=4, **tags))
    np.testing.assert_array_equal(volume.slices, values)
    np.testing.assert_allclose(volume.affine @ [0, 0, 2, 1], [-1, -2, 11, 1])
    volume = read_volume(dicom(tmp_path / "b.dcm", values, SpacingBetweenSlices=-4, **tags))
    np.testing.assert_array_equal(volume.slices, values[::-1])
    message_of(dicom(tmp_path / "c.dcm", values, **tags), "SpacingBetweenSlices")
    message_of(dicom(tmp_path / "d.dcm", values, **tags | {"NumberOfSlices": 1}), "3 frames")


def test_dicom_in_hounsfield_units_is_shown_in_the_brain_window(tmp_path: Path) -> None:
    # Without air, so that the values alone would not tell.
    places = [(0, 0, 3.0 * k) for k in range(3)]
    moving = series(tmp_path / "ct", np.full((3, 64, 66), 60), places)
    fixed = series(tmp_path / "mr", noise(3, 64, 66), places, Modality="MR")
    pair = read_volumes("CT", fixed, moving)
    assert pair.window == BRAIN_WINDOW == (40, 80) and np.allclose(pair.levels["moving"], 60 / 80)


# --- bad input ----------------------------------------------------------------------------------------------


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    message_of(tmp_path / "none.nii", "nothing there")
    message_of(tmp_path, "without DICOM files")
    (tmp_path / "a.png").write_bytes(b"x")
    message_of(tmp_path / "a.png", ".nii")
    for name, words in {"text.nii": "NIfTI", "text.nii.gz": "NIfTI", "text.dcm": "DICOM"}.items():
        (tmp_path / name).write_bytes(b"this is no image at all" * 50)
        message_of(tmp_path / name, words)
        (tmp_path / name).write_bytes(b"")
        message_of(tmp_path / name, words)


@pytest.mark.parametrize("keep", [0.2, 0.9])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_nifti(tmp_path: Path, name: str, keep: float) -> None:
    path = nifti(tmp_path / name, noise(X, Y, 3).astype(np.int16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    message_of(path, "truncated")


def test_damaged_gzip(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", noise(X, Y, 3).astype(np.int16))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    message_of(path, "damaged")


def test_nifti_that_is_no_volume(tmp_path: Path) -> None:
    message_of(nifti(tmp_path / "5d.nii", np.zeros((X, Y, 3, 2, 2), np.float32)), "5D")
    message_of(nifti(tmp_path / "line.nii", np.zeros((X, 1, 3), np.float32)), "several rows and columns", "72 x 1")
    message_of(nifti(tmp_path / "complex.nii", np.zeros((X, Y, 3), np.complex64)), "one real number")
    flat, third_row_of_the_affine = nifti(tmp_path / "flat.nii", np.zeros((X, Y, 3), np.float32)), 312
    message_of(patch(flat, third_row_of_the_affine, 0, 0, 0, 0), "affine")
    across = nifti(tmp_path / "across.nii", np.zeros((1, X, Y), np.float32), np.eye(4)[[1, 2, 0, 3]])
    message_of(across, "one slice along the third axis")
    array = np.zeros((X, Y, 3), np.float32)
    array[3, 4, :2] = np.inf
    message_of(nifti(tmp_path / "infinite.nii", array), "finite", "infinity in 2 voxels")
    message_of(nifti(tmp_path / "nan.nii", np.full((X, Y, 3), np.nan, np.float32)), "finite", "NaN alone")


def test_nan_is_background_and_named(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((X, Y, 3)).astype(np.float32) - 0.5
    array[:10] = np.nan
    filled = np.nan_to_num(array, nan=np.nanmin(array))
    volume, clean = (read_volume(nifti(tmp_path / "a.nii", x)) for x in (array, filled))
    np.testing.assert_array_equal(volume.slices, clean.slices)
    assert "NaN in 13.9% of the voxels" in volume.note and not clean.note


@pytest.mark.parametrize("suffix", OTHER_SUFFIXES)
def test_formats_that_are_to_be_converted_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"head{suffix}"
    path.write_bytes(b"NRRD0004")
    assert is_volume(path)
    message_of(path, "SimpleITK and 3D Slicer convert others to .nii.gz", path.name)


@pytest.mark.parametrize(("size", "text"), [(0, "1 1 0"), (np.nan, "1 1 nan"), (np.inf, "1 1 inf")])
def test_voxels_without_extent_are_refused_where_they_place_the_volume(
    tmp_path: Path, size: float, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = nifti(tmp_path / "a.nii", np.ones((8, 8, 4), np.float32), np.diag([1.0, 1, 3, 1]))
    patch(path, 76 + 4 * 3, size)  # pixdim[3]; sform says 3 mm
    assert np.linalg.norm(read_volume(path).slices_affine[:3, 2]) == pytest.approx(3)
    data = bytearray(path.read_bytes())
    data[254:256] = bytes(2)  # sform_code
    path.write_bytes(data)
    message_of(path, "voxel sizes above 0 (pixdim)", text)
    assert not capsys.readouterr().err


def test_header_that_promises_too_much_is_refused_unread(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((4096, 4096, 4096))
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    message_of(tmp_path / "bomb.nii.gz", "at most", "4096 x 4096 x 4096")
    path = dicom(tmp_path / "bomb.dcm", noise(64, 64), NumberOfFrames=4096, Rows=4096, Columns=4096)
    message_of(path, "at most", "4096 x 4096 x 4096")


def test_a_series_that_is_too_large_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series(tmp_path / "series", noise(3, 64, 64), [(0, 0, 3.0 * k) for k in range(3)])
    monkeypatch.setattr("utils.imaging.images.MAX_VOXELS", 2 * 64 * 64)
    message_of(folder, "at most", "3 x 64 x 64")


def test_truncated_dicom(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", noise(70, 80))
    data = path.read_bytes()
    for keep in (200, 500, len(data) - 1000):
        path.write_bytes(data[:keep])
        message_of(path, "truncated")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_dicom_without_position(tmp_path: Path, tag: str) -> None:
    message_of(dicom(tmp_path / "a.dcm", noise(64, 64), **{tag: None}), tag, "none")


@pytest.mark.parametrize(
    ("syntax", "words"),
    [(JPEGLosslessSV1, ("JPEG Lossless", "pylibjpeg-libjpeg")), (MPEG2MPML, ("MPEG2 Main Profile",))],
)
def test_dicom_that_nothing_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: UID, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Decoder, "is_available", False)  # whatever is installed here
    path = dicom(tmp_path / "a.dcm", noise(64, 64))
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"jpeg"])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    message_of(path, "transfer syntax", *words)


def test_colour_dicom(tmp_path: Path) -> None:
    message_of(dicom(tmp_path / "a.dcm", noise(64, 64), PhotometricInterpretation="RGB"), "one value", "RGB")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SeriesInstanceUID": "9.9"}, ("series", "9.9", "1.2.4")),
        ({"PixelSpacing": [0.7, 0.9]}, ("pixel spacing", "0.7 0.9")),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, ("direction",)),
    ],
)
def test_slices_that_do_not_belong_together(tmp_path: Path, tags: dict, words: tuple[str, ...]) -> None:
    dicom(tmp_path / "1.dcm", noise(64, 64))
    dicom(tmp_path / "2.dcm", noise(64, 64), **{"ImagePositionPatient": [-20, -30, 8], **tags})
    message_of(tmp_path, "2.dcm", *words)


def test_slices_of_differing_size(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", noise(64, 64))
    dicom(tmp_path / "2.dcm", noise(66, 64), ImagePositionPatient=[-20, -30, 8])
    message_of(tmp_path, "2.dcm", "64 64", "66 64")


@pytest.mark.parametrize(
    ("heights", "words"),
    [
        ((0, 1, 2, 3, 300), ("no more than 20 mm apart", "297.000 mm from 3.dcm to 4.dcm")),
        ((0, 3, 3), ("one slice a place", "1 place with several, such as 1.dcm and 2.dcm")),
        ((1, 1), ("one slice a place", "1 place with several, such as 0.dcm and 1.dcm")),
        ((0, 3, 6, 0, 3.01, 6, 0), ("one slice a place", "3 places with several, such as 0.dcm and 3.dcm")),
    ],
)
def test_missing_and_doubled_slices(tmp_path: Path, heights: tuple[float, ...], words: tuple[str, ...]) -> None:
    for number, z in enumerate(heights):
        dicom(tmp_path / f"{number}.dcm", noise(64, 64) + number, ImagePositionPatient=[0, 0, z])
    message_of(tmp_path, *words)


def test_localizers_and_copies_of_slices_are_left_out(tmp_path: Path) -> None:
    slices = noise(4, 64, 66)
    series(tmp_path, slices, [(0.0, 0.0, 3.0 * k) for k in range(4)], ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    alone = read_volume(tmp_path)
    assert not alone.note
    dicom(tmp_path / "copy.dcm", slices[2], ImagePositionPatient=[0, 0, 6])
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.99"}
    dicom(tmp_path / "scout.dcm", noise(80, 90), ImageOrientationPatient=[0, 1, 0, 0, 0, -1], **localizer)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, alone.slices)
    np.testing.assert_array_equal(volume.affine, alone.affine)
    assert volume.note == "left out 1 localizer and 1 doubled slice"


def test_frames_in_time_that_are_equal_by_chance_stay(tmp_path: Path) -> None:
    for number, (z, minute) in enumerate([(0, 0), (3, 0), (0, 1), (3, 1)]):
        dicom(tmp_path / f"{number}.dcm", np.full((64, 66), 9 * (number == 3)), ImagePositionPatient=[0, 0, z],
              Modality="PT", AcquisitionDate="20240301", AcquisitionTime=f"12{minute:02}00")  # fmt: skip
    volume = read_volume(tmp_path)
    assert "2 frames in time" in volume.note
    np.testing.assert_array_equal(volume.slices[:, 0, 0], [0, 4.5])


def test_uneven_slices_are_interpolated_and_named(tmp_path: Path) -> None:
    # A tilted gantry: the slices lie along a line that is oblique to them.
    at, tilt = np.array([0, 3, 6, 7, 10, 16]), np.array([0, -0.6, 0.8])
    for number, z in enumerate(at):
        position = list(np.array([-20.0, -30.0, 5.0]) + z * tilt)
        dicom(tmp_path / f"{number}.dcm", np.full((64, 66), 10 * z), ImagePositionPatient=position)
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.slices[:, 9, 9], [0, 30, 60, 90, 120, 150], atol=1e-3)
    np.testing.assert_allclose(volume.affine[:3, 2], 3 * tilt * [-1, -1, 1])  # RAS
    assert "6.000 mm from 4.dcm to 5.dcm" in volume.note and "every 3.000 mm" in volume.note


def test_frames_in_time_are_averaged_or_chosen(tmp_path: Path) -> None:
    array = np.arange(4, dtype=np.float32) * np.ones((X, Y, 3, 1), np.float32)
    path = nifti(tmp_path / "4d.nii.gz", array)
    volume = read_volume(path)
    assert (volume.slices == 1.5).all() and "4 frames in time" in volume.note
    assert (read_volume(path, frame=3).slices == 2).all() and not read_volume(path, frame=3).note
    with pytest.raises(ImageError, match=r"expected frame 5 \(--frame\), found 4 frames"):
        read_volume(path, frame=5)


def test_pet_in_time_is_averaged_or_chosen_place_by_place(tmp_path: Path) -> None:
    # Named against the order in which they were taken.
    for number, (z, minute, value) in enumerate([(0, 1, 30), (3, 1, 50), (0, 0, 10), (3, 0, 20)]):
        dicom(tmp_path / f"{number}.dcm", np.full((64, 66), value), ImagePositionPatient=[0, 0, z], Modality="PT",
              AcquisitionDate="20240301", AcquisitionTime=f"12{minute:02}00")  # fmt: skip
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices[:, 0, 0], [20, 35])
    assert "2 frames in time" in volume.note
    np.testing.assert_array_equal(read_volume(tmp_path, frame=1).slices[:, 0, 0], [10, 20])
    np.testing.assert_array_equal(read_volume(tmp_path, frame=2).slices[:, 0, 0], [30, 50])


@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_freesurfer_files_lie_as_nifti_files_do(tmp_path: Path, suffix: str) -> None:
    array, affine = patient(), np.diag([-0.9, 0.8, 1.5, 1.0])
    nib.save(nib.MGHImage(array, affine), tmp_path / f"a{suffix}")
    actual, like = read_volume(tmp_path / f"a{suffix}"), read_volume(nifti(tmp_path / "a.nii", array, affine))
    np.testing.assert_array_equal(actual.slices, like.slices)
    np.testing.assert_allclose(actual.affine, affine, atol=1e-4)
    assert actual.placed
    (tmp_path / f"a{suffix}").write_bytes(b"")
    message_of(tmp_path / f"a{suffix}", "FreeSurfer")


def test_frames_of_several_times_in_one_file(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", noise(2, 64, 64), PerFrameFunctionalGroupsSequence=Sequence([item(), item()]))
    message_of(path, "one slice a place", "1 place with several, such as a.dcm")


# --- writing ------------------------------------------------------------------------------------------------


@pytest.fixture
def volume() -> Volume:
    return Volume(noise(3, 64, 70).astype(np.float32), np.diag([-1.0, -1, 2, 1]), "", "")


def test_colour_is_written_as_rgb(tmp_path: Path, volume: Volume) -> None:
    rgb = np.random.default_rng(0).random((3, 64, 70, 3)).astype(np.float32)
    write_volume(tmp_path / "rgb.nii.gz", rgb, volume)
    written = np.asarray(nib.load(tmp_path / "rgb.nii.gz").dataobj)
    assert written.shape == (70, 64, 3)
    for index, channel in enumerate("RGB"):
        np.testing.assert_array_equal(written[channel].T, np.rint(rgb[..., index] * 255))


def test_what_cannot_be_written_leaves_the_earlier_file_alone(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "a.nii"
    write_volume(path, volume.slices, volume)
    before = path.read_bytes()
    for slices in (volume.slices[:2], np.full_like(volume.slices, np.nan), np.zeros((3, 64, 70, 2))):
        with pytest.raises(ImageError, match="to write"):
            write_volume(path, slices, volume)
    assert path.read_bytes() == before
    with pytest.raises(ImageError, match="nii.gz"):
        write_volume(tmp_path / "a.png", volume.slices, volume)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]


# --- grey levels --------------------------------------------------------------------------------------------


def test_brain_window() -> None:
    values = window(np.array([-1000, 0, 20, 40, 80, 3000]), 40, 80)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [0, 0, 0.25, 0.5, 1, 1])
    with pytest.raises(ValueError, match="width"):
        window(values, 40, 0)


def test_robust_window_maps_percentiles_and_ignores_what_is_rare() -> None:
    def robust_scale(values: np.ndarray) -> np.ndarray:
        return window(values, *robust_window(values))

    values = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    scaled = robust_scale(values)
    assert scaled.dtype == np.float32 and scaled.shape == values.shape
    # 1st and 99.5th percentile of 0 .. 1000 are 10 and 995.
    np.testing.assert_allclose(scaled.ravel()[[0, 10, 995, 1000]], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(scaled.ravel()[500], 490 / 985, rtol=1e-6)
    rare = np.zeros((10, 10, 10), np.float32)
    rare[0, 0, 0] = 4
    assert robust_scale(rare).max() == 1
    assert not robust_scale(np.full((2, 2, 2), 7.0)).any()


def test_what_looks_like_hounsfield_units() -> None:
    head = np.zeros((4, 64, 64))
    head[:, :16] = -1000
    head[:, 30] = 900
    assert looks_like_hu(head)
    mri = np.abs(head)
    assert not looks_like_hu(mri) and not looks_like_hu((mri - mri.mean()) / mri.std())
    outlier = mri.copy()
    outlier[0, 0, 0] = -1000
    assert not looks_like_hu(outlier)
