"""utils/imaging/tiff.py: every sample format, layout and compression is read as by tifffile, or refused by name."""

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from inference.checks import say_what_is_dark
from utils.imaging.images import ImageError, has_16_bits, read_image

SHAPE = (64, 72)
COMPRESSIONS = (None, "lzw", "deflate", "packbits", "zstd", "lzma")
READ = {"?": 1, "u1": 255, "u2": 65535, "i1": 127, "i2": 32767, "f2": 1, "f4": 1, "f8": 1}
"""Types that are read -> what is white."""


def samples(kind: str, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(len(shape))
    if kind[0] == "f":
        return generator.random(shape or SHAPE).astype(kind)
    return generator.integers(0, READ.get(kind, 1000) + 1, shape or SHAPE).astype(kind)


def message_of(path: Path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (str(path), "expected", "found", *words)), message


def test_grey_grid(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for kind, white, order, compression, tile in product(READ, (False, True), "<>", COMPRESSIONS, (None, (32, 32))):
        photometric = "miniswhite" if white else "minisblack"
        about = {"photometric": photometric, "byteorder": order, "compression": compression, "tile": tile}
        tifffile.imwrite(path, samples(kind), **about)
        stored = tifffile.imread(path).astype(np.float64) / READ[kind]
        expected = 1 - stored if white else stored
        for color in (False, None):
            actual = read_image(path, color=color)
            assert actual.dtype == np.float32 and actual.shape == SHAPE and actual.flags.writeable
            np.testing.assert_allclose(actual, expected, atol=1e-6, err_msg=f"{kind} {about}")


def test_colour_grid(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    alphas = ((), ("unassalpha",), ("assocalpha",), ("unspecified",))
    grid = product([kind for kind in READ if kind != "?"], ("contig", "separate"), "<>", COMPRESSIONS[:3], alphas)
    for kind, planar, order, compression, alpha in grid:
        channels = 3 + len(alpha)
        stored = samples(kind, *SHAPE, channels)
        written = stored if planar == "contig" else np.ascontiguousarray(np.moveaxis(stored, 2, 0))
        about = {"planarconfig": planar, "byteorder": order, "compression": compression, "extrasamples": alpha or None}
        tifffile.imwrite(path, written, photometric="rgb", **about)
        actual, expected = read_image(path, color=True), stored[..., :3].astype(np.float64) / READ[kind]
        np.testing.assert_allclose(actual, expected, atol=1e-6, err_msg=f"{kind} {about}")


@pytest.mark.parametrize(("kind", "bits"), [("u1", 8), ("u2", 16), ("i2", 15), ("f4", 0)])
@pytest.mark.parametrize("white", [False, True])
def test_differences_between_neighbours_are_added_up(tmp_path: Path, kind: str, bits: int, white: bool) -> None:
    stored, photometric = samples(kind), "miniswhite" if white else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, compression="lzw", predictor=True)
    levels = stored / READ[kind]
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), 1 - levels if white else levels, atol=1e-6)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_transparency_of_grey_is_left_out_and_two_channels_are_named(tmp_path: Path, kind: str, planar: str) -> None:
    stored = samples(kind, *SHAPE, 2)
    written = stored if planar == "contig" else np.ascontiguousarray(np.moveaxis(stored, 2, 0))
    about = {"photometric": "minisblack", "planarconfig": planar}
    tifffile.imwrite(tmp_path / "a.tif", written, **about, extrasamples=["unassalpha"])
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), stored[..., 0] / READ[kind], atol=1e-6)
    tifffile.imwrite(tmp_path / "b.tif", written, **about)
    message_of(tmp_path / "b.tif", "one channel of grey", "2 channels of grey")


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes(tmp_path: Path, depth: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, SHAPE).astype("u1")
    colours = np.random.default_rng(1).integers(0, 2**depth, (3, 256)).astype("u2")
    colours[0, 0] = 2**depth - 1
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=colours)
    expected = np.moveaxis(colours[:, stored], 0, 2) / (2**depth - 1)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", color=True), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 10, 12])
def test_samples_that_fill_no_byte_are_scaled_by_their_bits(tmp_path: Path, bits: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = np.random.default_rng(0).integers(0, 2**bits, SHAPE).astype("u1" if bits <= 8 else "u2")
    packed = imagecodecs.packints_encode(stored, bits)
    # tifffile writes none of them, so the tags of a file of bytes are changed.
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros(SHAPE, "u1"), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags, offset = file.pages.first.tags, file.pages.first.dataoffsets[0]
        tags["BitsPerSample"].overwrite(bits)
        tags["StripByteCounts"].overwrite(len(packed))
    data = path.read_bytes()
    path.write_bytes(data[:offset] + bytes(packed))
    np.testing.assert_allclose(read_image(path), stored / (2**bits - 1), atol=1e-6)


def test_jpeg_within_tiff(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 128).astype("u1"), (128, 1))
    for name, array, photometric in (("grey", ramp, "minisblack"), ("rgb", np.dstack([ramp] * 3), "rgb")):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, photometric=photometric, compression="jpeg")
        assert np.abs(read_image(path) * 255 - ramp).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_by_pillow(tmp_path: Path, orientation: int) -> None:
    stored = samples("u1")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.png"))


def test_big_tiff_and_the_first_of_several_images(tmp_path: Path) -> None:
    stored = samples("u2", 3, *SHAPE)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", bigtiff=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), stored[0].astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize(
    ("array", "about", "words"),
    [
        (samples("u4"), {}, ("integers of 8 or 16 bits", "32 bits")),
        (samples("i4"), {}, ("integers of 8 or 16 bits", "32 bits")),
        (samples("i2") // 2 - np.int16(99), {}, ("none below 0", "16 bits, values from -")),
        (samples("f4").astype("c8"), {}, ("real numbers", "complex")),
        (samples("f4") * 2, {}, ("[0, 1]",)),
        (samples("f8") - 0.5, {}, ("[0, 1]",)),
        (samples("u1", *SHAPE, 4), {"photometric": "separated"}, ("photometric interpretation SEPARATED",)),
        (samples("u1", *SHAPE, 3), {"photometric": "cielab"}, ("photometric interpretation CIELAB",)),
        (samples("u1", *SHAPE, 5), {"photometric": "rgb"}, ("5 channels of colour",)),
        (samples("u1", *SHAPE, 3), {"photometric": "minisblack", "planarconfig": "contig"}, ("3 channels of grey",)),
        (samples("u1", 20, 30), {}, ("at least 64 x 64 pixels",)),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, array: np.ndarray, about: dict, words: tuple) -> None:
    tifffile.imwrite(tmp_path / "a.tif", array, **{"photometric": "minisblack"} | about)
    message_of(tmp_path / "a.tif", *words)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.99])
def test_truncated(tmp_path: Path, compression: str | None, keep: float, capfd: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples("u1"), photometric="minisblack", compression=compression, rowsperstrip=16)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    message_of(path, "truncated")
    assert capfd.readouterr() == ("", "")


def test_a_header_that_promises_too_much_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples("u1"), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[name].overwrite(60000)
    message_of(path, "at most")


@pytest.mark.parametrize(("kind", "deep"), [("u1", False), ("u2", True), ("i2", True), ("f8", False)])
def test_files_of_16_bits_are_known(tmp_path: Path, kind: str, deep: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples(kind), photometric="minisblack")
    assert has_16_bits(path) == deep
    say_what_is_dark("CT", "moving", {path: 0.01})
    assert ("12 bits in a file of 16" in caplog.text) == deep


def test_warnings_of_the_decoder_are_not_printed(tmp_path, monkeypatch, recwarn):
    tifffile.imwrite(tmp_path / "a.tif", np.full((64, 80), 100, np.uint8))
    decode = tifffile.TiffPage.asarray

    def warn(*arguments, **settings) -> np.ndarray:
        warnings.warn("overflow", stacklevel=2)
        return decode(*arguments, **settings)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", warn)
    assert read_image(tmp_path / "a.tif").shape == (64, 80) and not recwarn.list
