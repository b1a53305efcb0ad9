"""utils/imaging/dicom.py: values that are no measurement, spellings of units and modalities, files without preamble,
and stumps in a series.
"""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from inference.volumes.pair import BRAIN_WINDOW, read_volumes
from utils.imaging.images import ImageError
from utils.imaging.volumes import is_volume, read_volume

SIDE = 64


def mr(path: Path, stored: np.ndarray, *, implicit: bool = False, **tags: object) -> Path:
    """An MR slice, or a file of several frames, of the words (rows, columns) as stored; None leaves a tag out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    defaults = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.4",
        "Modality": "MR",
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.0, 1.0],
        "SpacingBetweenSlices": 2.0,
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": int(tags.get("BitsStored", 16)) - 1,
        "PixelRepresentation": 1,
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "NumberOfFrames": len(stored) if stored.ndim == 3 else None,
        "PixelData": stored.tobytes(),
    }
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def brain(*shape: int, low: int = 20, high: int = 1500) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape or (SIDE, SIDE)).astype("<i2")


# --- padding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "tags"),
    [
        (-32768, {"PixelPaddingValue": -32768}),
        (-2000, {"PixelPaddingValue": 63536, "PixelRepresentation": 0}),
        (-32768, {"PixelPaddingValue": 2**15, "PixelRepresentation": 0}),
        (2**14, {"PixelPaddingValue": 2**14}),
        # Of a signed value of 12 bits, with the sign over the whole word or not.
        (-2000, {"PixelPaddingValue": -2000, "BitsStored": 12}),
        (-2000 & 0xFFF, {"PixelPaddingValue": -2000, "BitsStored": 12}),
        # A word that 12 bits cannot hold.
        (-2000, {"PixelPaddingValue": 63536, "BitsStored": 12, "PixelRepresentation": 0}),
        (-1990, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1980}),
        (-1990, {"PixelPaddingValue": -1980, "PixelPaddingRangeLimit": -2000}),
        (-1990, {"PixelPaddingValue": 63536, "PixelPaddingRangeLimit": 63600, "PixelRepresentation": 0}),
    ],
)  # fmt: skip
def test_padding_gets_the_lowest_measured_value(tmp_path: Path, word: int, tags: dict) -> None:
    stored = brain()
    stored[:3] = word
    actual = read_volume(mr(tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-5, **tags)).slices[0]
    np.testing.assert_array_equal(actual[3:], 2 * stored[3:] - 5)
    assert (actual[:3] == 2 * stored[3:].min() - 5).all()


def test_padding_is_known_where_the_tags_sign_is_not_that_of_the_pixels(tmp_path: Path) -> None:
    stored = brain()
    stored[:3] = -2000
    path = mr(tmp_path / "a.dcm", stored)
    dataset = dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    assert read_volume(path).slices.min() == stored[3:].min()


def test_background_of_a_series_is_one_value_though_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    stored = brain(2, SIDE, SIDE)
    stored[:, :3] = -32768
    for number, (values, slope) in enumerate(zip(stored, (1, 3), strict=True)):
        tags = {"RescaleSlope": slope, "RescaleIntercept": 0, "PixelPaddingValue": -32768}
        mr(tmp_path / f"{number}.dcm", values, ImagePositionPatient=[0, 0, 2.0 * number], **tags)
    actual = read_volume(tmp_path).slices
    lowest = min(stored[0, 3:].min(), 3 * stored[1, 3:].min())
    assert (actual[:, :3] == lowest).all() and actual.min() == lowest
    np.testing.assert_array_equal(actual[1, 3:], 3 * stored[1, 3:])


def test_padding_leaves_the_grey_levels_alone(tmp_path: Path) -> None:
    stored = brain()
    clean = read_volumes("CT", *[mr(tmp_path / f"{name}.dcm", stored) for name in "ab"]).levels["fixed"]
    stored[:1] = -32768  # 1.6 % of the slice
    path = mr(tmp_path / "c.dcm", stored, PixelPaddingValue=-32768)
    padded = read_volumes("CT", path, tmp_path / "b.dcm").levels["fixed"]
    assert (padded[0, :1] == 0).all()
    np.testing.assert_allclose(padded[0, 1:], clean[0, 1:], atol=0.02)


def test_a_slice_of_padding_alone_is_background_and_a_volume_of_it_is_refused(tmp_path: Path) -> None:
    stored = brain(2, SIDE, SIDE)
    stored[1] = -32768
    actual = read_volume(mr(tmp_path / "a.dcm", stored, PixelPaddingValue=-32768)).slices
    assert (actual[1] == stored[0].min()).all()
    with pytest.raises(ImageError, match="expected pixels that were measured, found padding alone"):
        read_volume(mr(tmp_path / "b.dcm", stored[1], PixelPaddingValue=-32768))


@pytest.mark.parametrize("padding", [-1.0, np.nan])
def test_padding_of_float_pixels(tmp_path: Path, padding: float) -> None:
    values = np.random.default_rng(0).random((SIDE, SIDE)).astype("<f4") + 1
    values[:3] = padding
    about = {"PixelData": None, "BitsAllocated": 32, "BitsStored": 32, "HighBit": None, "PixelRepresentation": None}
    path = mr(tmp_path / "a.dcm", values, **about, FloatPixelData=values.tobytes(), FloatPixelPaddingValue=padding)
    actual = read_volume(path).slices[0]
    np.testing.assert_array_equal(actual[3:], values[3:])
    assert (actual[:3] == values[3:].min()).all()


def test_a_range_limit_without_a_padding_value_means_nothing(tmp_path: Path) -> None:
    stored = brain(low=-50)
    actual = read_volume(mr(tmp_path / "a.dcm", stored, PixelPaddingRangeLimit=0)).slices[0]
    np.testing.assert_array_equal(actual, stored)


def test_the_least_number_of_the_type_is_padding_though_no_tag_says_so(tmp_path: Path) -> None:
    stored = brain()
    stored[:3] = -32768
    actual = read_volume(mr(tmp_path / "a.dcm", stored)).slices[0]
    assert (actual[:3] == stored[3:].min()).all()
    np.testing.assert_array_equal(actual[3:], stored[3:])


def test_the_least_number_of_the_type_may_be_measured(tmp_path: Path) -> None:
    stored = brain(low=-32768, high=32767)
    stored[:3] = -32768
    np.testing.assert_array_equal(read_volume(mr(tmp_path / "a.dcm", stored)).slices[0], stored)


# --- tags that contradict each other ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"BitsStored": 12, "HighBit": 8}, "expected a HighBit from 11 to 15 for 12 bits, found 8"),
        ({"BitsStored": 12, "HighBit": 16}, "expected a HighBit from 11 to 15 for 12 bits, found 16"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "expected a RescaleSlope other than 0, found 0"),
        ({"PixelSpacing": [-1, -1]}, "expected a PixelSpacing above 0, found -1 -1"),
        ({"PixelSpacing": [0, 1]}, "expected a PixelSpacing above 0, found 0 1"),
        ({"PixelSpacing": ["nan", 1]}, "expected finite numbers as PixelSpacing, found nan 1"),
        ({"ImagePositionPatient": [0, "inf", 0]}, "expected finite numbers as ImagePositionPatient, found 0 inf 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.87, 0]}, "at a right angle as ImageOrientationPatient, found 1"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "two unit vectors at a right angle .* found 0 0 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_tags_without_a_meaning_are_named(tmp_path: Path, tags: dict, words: str) -> None:
    with pytest.raises(ImageError, match=f"a.dcm: .*{words}"):
        read_volume(mr(tmp_path / "a.dcm", brain(), **tags))


# --- bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [10, 12, 15])
def test_bits_beside_those_of_the_value_do_not_count(tmp_path: Path, bits: int, signed: int) -> None:
    values = brain(low=-500 * signed, high=500)
    rubbish = np.random.default_rng(1).integers(0, 2**16, values.shape).astype("<u2") >> bits << bits
    stored = (values.view("<u2") & (2**bits - 1) | rubbish).view("<i2")
    about = {"BitsStored": bits, "PixelRepresentation": signed}
    np.testing.assert_array_equal(read_volume(mr(tmp_path / "a.dcm", stored, **about)).slices[0], values)
    # With the value in the high bits, and the rubbish below.
    left = (values.astype("<i2") << (16 - bits)) | (rubbish >> bits).astype("<i2") & ((1 << (16 - bits)) - 1)
    path = mr(tmp_path / "b.dcm", left.astype("<i2"), **about, HighBit=15)
    np.testing.assert_array_equal(read_volume(path).slices[0], values)


def test_an_overlay_in_the_high_bits_is_no_brightness(tmp_path: Path) -> None:
    values = brain()
    stored = values | (np.eye(SIDE, dtype="<i2") << 14)
    path = mr(tmp_path / "a.dcm", stored, BitsStored=12, PixelRepresentation=0)
    dataset = dcmread(path)
    for element, vr, value in ((0x10, "US", SIDE), (0x11, "US", SIDE), (0x40, "CS", "G"), (0x50, "SS", [1, 1]),
                               (0x100, "US", 16), (0x102, "US", 14)):  # fmt: skip
        dataset.add_new((0x6000, element), vr, value)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).slices[0], values)


def test_a_table_of_values_takes_the_place_of_slope_and_intercept(tmp_path: Path) -> None:
    stored = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype("<u2") % 256
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "HU"
    table.add_new("LUTData", "OW", (1000 + 3 * np.arange(256)).astype("<u2").tobytes())
    path = mr(tmp_path / "a.dcm", stored, Modality="CT", PixelRepresentation=0, ModalityLUTSequence=Sequence([table]))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.slices[0], 1000 + 3 * stored.astype(int))
    assert volume.units == "HU"


# --- spellings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    ["HU", "hu", "Hu ", "HU_MOD", "hu mod", "Hounsfield", "HOUNSFIELD", "Hounsfield Units", "[hnsf'U]", "H U", "HUs",
     "CT_HU", "HU_MODIFIED", "HUnits", "UH"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_every_spelling_of_hounsfield_units_has_the_brain_window(tmp_path: Path, written: str) -> None:
    about = {"Modality": "ct", "RescaleSlope": 1, "RescaleIntercept": 0}
    path = mr(tmp_path / "ct.dcm", np.full((SIDE, SIDE), 60, "<i2"), **about)
    dataset = dcmread(path)
    dataset.add_new("RescaleType", "LO", written)
    dataset.save_as(path)
    volume = read_volume(path)
    assert (volume.modality, volume.units) == ("CT", "HU")
    pair = read_volumes("CT", mr(tmp_path / "mr.dcm", brain()), path)
    assert pair.window == BRAIN_WINDOW and np.allclose(pair.levels["moving"], 60 / 80)


@pytest.mark.parametrize(
    ("written", "units"),
    [("US", ""), ("us", ""), ("unspecified", ""), ("normalized", ""), ("mgml", "MGML"), ("Z_EFF", "Z_EFF"),
     ("HU/1000", "HU/1000"), ("HUE", "HUE")],
)  # fmt: skip
def test_other_units_are_not_hounsfield_units(tmp_path: Path, written: str, units: str) -> None:
    path = mr(tmp_path / "a.dcm", brain(), Modality="CT", RescaleSlope=1, RescaleIntercept=0, RescaleType=written)
    assert read_volume(path).units == units


@pytest.mark.parametrize(
    ("modality", "units"), [("PT", ""), ("NM", ""), ("MR", ""), ("SPECT", ""), ("CT", "HU"), ("XA", "HU"), ("OT", "HU")]
)
def test_only_x_rays_have_hounsfield_units(tmp_path: Path, modality: str, units: str) -> None:
    about = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}
    assert read_volume(mr(tmp_path / "a.dcm", brain(), Modality=modality, **about)).units == units


@pytest.mark.parametrize(("modality", "units"), [("CT", "HU"), ("PT", "BQML")])
def test_the_units_of_pet_do_not_count_in_a_ct(tmp_path: Path, modality: str, units: str) -> None:
    about = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU", "Units": "BQML"}
    assert read_volume(mr(tmp_path / "a.dcm", brain(), Modality=modality, **about)).units == units


@pytest.mark.parametrize(("modality", "units", "factor"), [("CT", "HU", 1), ("PT", "SUV", 70_000 / 370e6)])
def test_the_dose_of_pet_does_not_count_in_a_ct(tmp_path: Path, modality: str, units: str, factor: float) -> None:
    drug = Dataset()
    drug.RadionuclideTotalDose = 370e6
    about = {
        "Units": "BQML", "PatientWeight": 70, "CorrectedImage": ["ATTN"], "DecayCorrection": "ADMIN",
        "RadiopharmaceuticalInformationSequence": [drug], "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU",
    }  # fmt: skip
    volume = read_volume(mr(tmp_path / "a.dcm", brain(), Modality=modality, **about))
    assert volume.units == units and np.allclose(volume.slices[0], factor * brain(), rtol=1e-5)


@pytest.mark.parametrize(
    ("written", "modality"),
    [("mr", "MR"), ("MRI", "MR"), ("Pet", "PT"), ("pt", "PT"), ("SPECT", "NM"), ("ST", "NM"), ("Ct", "CT"), ("OT", ""),
     ("C.T.", "CT"), ("Computed Tomography", "CT")],
)
def test_spellings_of_modalities(tmp_path: Path, written: str, modality: str) -> None:
    path = mr(tmp_path / "a.dcm", brain())
    dataset = dcmread(path)
    dataset.add_new("Modality", "LO", written)
    dataset.save_as(path)
    assert read_volume(path).modality == modality


# --- files without preamble, and stumps ---------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["IM0001", "a.dcm"])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_preamble_are_read(tmp_path: Path, implicit: bool, name: str, meta: bool) -> None:
    stored = brain()
    path = mr(tmp_path / name, stored, implicit=implicit)
    data = path.read_bytes()[132:]
    length = int.from_bytes(data[8:12], "little")  # of the group of tags that says how the others are written
    path.write_bytes(data if meta else data[12 + length :])
    assert is_volume(path) and is_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path).slices[0], stored)


def test_other_formats_are_no_dicom(tmp_path: Path) -> None:
    for name, data in enumerate((b"hello world" * 30, bytes(500), b"\x08\x00" + bytes(500), b"\x02\x00")):
        (tmp_path / f"{name}").write_bytes(data)
        assert not is_volume(tmp_path / f"{name}")
    (tmp_path / "a.dcm").write_bytes(b"hello world" * 30)
    with pytest.raises(ImageError, match="a.dcm: expected a DICOM file, found another format"):
        read_volume(tmp_path / "a.dcm")


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA", ".1043"])
@pytest.mark.parametrize(
    ("stump", "actual"),
    [
        (".git/annex/objects/x1/y2/SHA256E-s1--00.dcm", "a file of git-annex whose content is not here"),
        ("../elsewhere/none", "a link to nothing"),
        (b"/annex/objects/SHA256E-s1--00.dcm\n", "a file of git-annex whose content is not here"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"", "an empty file"),
        (bytes(4000), "zero bytes"),
    ],
)
def test_a_stump_in_a_series_is_an_error(tmp_path: Path, suffix: str, stump: str | bytes, actual: str) -> None:
    for number in range(2):
        mr(tmp_path / f"IM{number}{suffix}", brain(), ImagePositionPatient=[0, 0, 2.0 * number])
    (tmp_path / "readme.txt").symlink_to("none")  # surely no slice
    assert len(read_volume(tmp_path).slices) == 2
    last = tmp_path / f"IM2{suffix}"
    if isinstance(stump, str):
        last.symlink_to(stump)
    else:
        last.write_bytes(stump)
    with pytest.raises(ImageError) as caught:
        read_volume(tmp_path)
    assert f"IM2{suffix}: expected a slice of the series, found " in str(caught.value) and actual in str(caught.value)
