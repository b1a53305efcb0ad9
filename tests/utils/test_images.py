"""utils/imaging/images.py: every format is read to known values, every bad file gives one clear line."""

import os
import struct
import subprocess
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.pairs import PairFiles
from data.splits import make_table
from inference.checks import check_pairs
from utils.files import FileError, remove_unfinished, write_bytes
from utils.imaging.images import MIN_SIDE, ImageError, check_same_size, has_16_bits, read_image, write_image
from utils.imaging.pairing import list_images, pair_files

HEIGHT, WIDTH = 70, 90


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def luma(rgb: np.ndarray) -> np.ndarray:
    return (0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]) / 255


def message_of(path: Path, *words: str) -> str:
    """The message of the error that reading gives: one line with the file's name and the words."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "expected" in message and "found" in message
    for word in words:
        assert word in message
    return message


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG with a header of our choosing."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


class TestRead:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".pgm", ".gif"])
    def test_grey_8_bit_is_exact(self, tmp_path, grey, suffix):
        image = read_image(save(tmp_path / f"a{suffix}", grey))
        assert image.dtype == np.float32 and image.shape == (HEIGHT, WIDTH)
        assert np.array_equal(np.rint(image * 255), grey)
        assert np.array_equal(image, grey.astype(np.float32) / np.float32(255))

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_grey_16_bit(self, tmp_path, suffix):
        values = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
        image = read_image(save(tmp_path / f"a{suffix}", values))
        assert np.array_equal(np.rint(image.astype(np.float64) * 65535), values)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
    def test_rgb(self, tmp_path, rgb, suffix):
        path = save(tmp_path / f"a{suffix}", rgb)
        assert np.array_equal(np.rint(read_image(path, color=True) * 255), rgb)
        np.testing.assert_allclose(read_image(path), luma(rgb), atol=1e-6)

    def test_luma_is_kornias(self, tmp_path, rgb):
        torch, kornia = pytest.importorskip("torch"), pytest.importorskip("kornia")
        path = save(tmp_path / "a.png", rgb)
        theirs = kornia.color.rgb_to_grayscale(torch.from_numpy(read_image(path, color=True)).permute(2, 0, 1)[None])
        np.testing.assert_allclose(read_image(path), theirs[0, 0].numpy(), atol=1e-6)

    def test_rgba_ignores_transparency(self, tmp_path, rgb, grey):
        path = save(tmp_path / "a.png", np.dstack([rgb, grey]))
        assert np.array_equal(np.rint(read_image(path, color=True) * 255), rgb)
        np.testing.assert_allclose(read_image(path), luma(rgb), atol=1e-6)

    def test_grey_alpha_ignores_transparency(self, tmp_path, grey):
        path = save(tmp_path / "a.png", np.dstack([grey, 255 - grey]))
        assert Image.open(path).mode == "LA"
        assert np.array_equal(np.rint(read_image(path) * 255), grey)

    def test_palette(self, tmp_path, rgb):
        path = save(tmp_path / "a.png", rgb, "P")
        shown = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(np.rint(read_image(path, color=True) * 255), shown)
        np.testing.assert_allclose(read_image(path), luma(shown), atol=1e-6)

    def test_1_bit(self, tmp_path, grey):
        bits = grey > 127
        assert np.array_equal(read_image(save(tmp_path / "a.png", bits)), bits.astype(np.float32))

    def test_float_tiff(self, tmp_path, grey):
        values = grey.astype(np.float32) / 300
        actual = read_image(save(tmp_path / "a.tif", values))
        assert np.array_equal(actual, values) and actual.flags.writeable

    def test_jpeg_is_near(self, tmp_path):
        ramp = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
        assert np.abs(read_image(save(tmp_path / "a.jpg", ramp)) * 255 - ramp).max() < 4

    def test_exif_rotation_is_carried_out(self, tmp_path, grey):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(np.rint(read_image(tmp_path / "a.png") * 255), np.rot90(grey, -1))

    def test_grey_file_as_colour_is_repeated(self, tmp_path, grey):
        image = read_image(save(tmp_path / "a.png", grey), color=True)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert all(np.array_equal(np.rint(image[..., c] * 255), grey) for c in range(3))

    def test_rgb_file_of_a_grey_picture_is_exact(self, tmp_path, grey):
        path = save(tmp_path / "a.png", np.dstack([grey] * 3))
        for color in (False, None):
            assert np.array_equal(read_image(path, color=color), grey.astype(np.float32) / np.float32(255))

    def test_first_frame(self, tmp_path, grey):
        frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
        frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
        assert np.array_equal(np.rint(read_image(tmp_path / "a.tif") * 255), grey)


class TestBadFiles:
    def test_missing(self, tmp_path):
        message_of(tmp_path / "none.png", "nothing there")

    def test_impossible_names(self, tmp_path):
        message_of(tmp_path / ("a" * 5000), "nothing there")
        message_of(tmp_path / "a\0b.png", "nothing there")

    def test_name_with_a_line_break_gives_one_line(self):
        assert str(FileError.at("a\nb  c.png", "x", "y\r\n z")) == "a b  c.png: expected x, found y z"

    def test_folder(self, tmp_path):
        message_of(tmp_path, "a folder")

    def test_empty(self, tmp_path):
        (tmp_path / "a.png").touch()
        message_of(tmp_path / "a.png", "empty file")

    def test_not_an_image(self, tmp_path):
        (tmp_path / "a.png").write_text("hello\nworld")
        message_of(tmp_path / "a.png", "11 bytes")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path, grey, share):
        whole = save(tmp_path / "a.png", grey).read_bytes()
        (tmp_path / "a.png").write_bytes(whole[:int(len(whole) * share)])
        message_of(tmp_path / "a.png", "truncated")

    def test_only_the_signature(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        message_of(tmp_path / "a.png", "8 bytes")

    def test_flipped_bit(self, tmp_path, grey):
        data = bytearray(save(tmp_path / "a.png", grey).read_bytes())
        data[len(data) // 2] ^= 16
        (tmp_path / "a.png").write_bytes(data)
        message_of(tmp_path / "a.png", "damaged")

    @pytest.mark.parametrize("size", [(0, 0), (0, 80), (80, 0)])
    def test_zero_size(self, tmp_path, size):
        (tmp_path / "a.png").write_bytes(png(*size))
        message_of(tmp_path / "a.png")

    @pytest.mark.parametrize("shape", [(MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)])
    def test_too_small(self, tmp_path, shape):
        save(tmp_path / "a.png", np.zeros(shape, np.uint8))
        message_of(tmp_path / "a.png", "64 x 64", f"{shape[1]} x {shape[0]}")

    def test_smallest_is_read(self, tmp_path):
        assert read_image(save(tmp_path / "a.png", np.zeros((64, 64), np.uint8))).shape == (64, 64)

    @pytest.mark.parametrize("side", [9000, 16000, 60000])
    def test_decompression_bomb(self, tmp_path, side):
        (tmp_path / "a.png").write_bytes(png(side, side))
        message_of(tmp_path / "a.png", "at most")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity(self, tmp_path, grey, bad):
        values = grey.astype(np.float32) / 255
        values[3, 4] = bad
        save(tmp_path / "a.tif", values)
        message_of(tmp_path / "a.tif", "finite", "1 pixels")

    def test_float_out_of_range(self, tmp_path, grey):
        save(tmp_path / "a.tif", grey.astype(np.float32))
        message_of(tmp_path / "a.tif", "[0, 1]", "255")

    def test_integers_of_32_bits(self, tmp_path, grey):
        save(tmp_path / "a.tif", grey.astype(np.int32) * 1000)
        message_of(tmp_path / "a.tif", "16 bits")
        save(tmp_path / "a.tif", grey.astype(np.int32) - 1)
        message_of(tmp_path / "a.tif", "16 bits", "-1")


class TestWrite:
    def test_round_trip_uint8(self, tmp_path, grey, rgb):
        for name, array in (("grey", grey), ("rgb", rgb)):
            write_image(tmp_path / f"new/folder/{name}.png", array)
            back = read_image(tmp_path / f"new/folder/{name}.png", color=array.ndim == 3)
            assert np.array_equal(np.rint(back * 255), array)

    def test_what_is_read_is_written_again(self, tmp_path, rgb):
        path = save(tmp_path / "a.png", rgb)
        write_image(tmp_path / "b.png", read_image(path, color=True))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), rgb)

    def test_rounds_to_nearest_and_clips(self, tmp_path):
        values = np.zeros((64, 64))
        values[0, :5] = np.array([-3, 10.4, 10.6, 254.51, 999]) / 255
        write_image(tmp_path / "a.png", values)
        assert np.asarray(Image.open(tmp_path / "a.png"))[0, :5].tolist() == [0, 10, 11, 255, 255]

    @pytest.mark.parametrize("array", [
        np.zeros((2, 64, 64)), np.zeros((0, 64)), np.zeros((64, 64, 4)), np.zeros((64, 64), int),
        np.full((64, 64), np.nan),
    ])
    def test_refuses_other_arrays(self, tmp_path, array):
        with pytest.raises(ImageError, match="to write"):
            write_image(tmp_path / "a.png", array)
        assert list(tmp_path.iterdir()) == []

    def test_refuses_another_suffix(self, tmp_path, grey):
        with pytest.raises(ImageError, match=r"\.png"):
            write_image(tmp_path / "a.jpg", grey)

    def test_a_file_where_a_folder_is_needed(self, tmp_path, grey):
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(FileError, match="out/a.png"):
            write_image(tmp_path / "out/a.png", grey)

    def test_failure_keeps_the_earlier_file(self, tmp_path, grey, monkeypatch):
        path = tmp_path / "a.png"
        write_image(path, grey)
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(FileError, match="a.png.*No space left on device"):
            write_image(path, 255 - grey)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(("refused", "written"), [(2, True), (3, False)])
    def test_a_file_that_another_program_holds_open_is_tried_again(self, tmp_path, monkeypatch, refused, written):
        (tmp_path / "a.csv").write_bytes(b"old")
        replace, times = os.replace, iter(range(3))

        def held(source: Path, target: Path) -> None:
            if next(times) < refused:
                raise PermissionError(13, "Permission denied")
            replace(source, target)

        monkeypatch.setattr("utils.files.ATTEMPTS", 3)
        monkeypatch.setattr(os, "replace", held)
        with nullcontext() if written else pytest.raises(FileError, match="a.csv.*Permission denied"):
            write_bytes(tmp_path / "a.csv", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
        assert (tmp_path / "a.csv").read_bytes() == (b"new" if written else b"old")

    def test_write_that_breaks_off_leaves_nothing(self, tmp_path):
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(FileError, match="a.npy.*found File too large"):
                write_bytes(tmp_path / "a.npy", bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("utils.files.os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(tmp_path / "a.csv", b"new")
        assert list(tmp_path.iterdir()) == []

    def test_what_a_kill_leaves_is_removed_and_nothing_else(self, tmp_path):
        script = "import os, sys; from utils import files; files._patiently = lambda *_: os._exit(9); "
        script += "files.write_bytes(sys.argv[1], b'new')"
        path = tmp_path / "fused/a.png"
        assert subprocess.run([sys.executable, "-c", script, path], cwd=Path(__file__).parents[2]).returncode == 9
        (left,) = path.parent.iterdir()
        others = [tmp_path / name for name in (".a.png.tmp", "a.1.tmp", ".a.12.tmp.png", "a.png")]
        for other in others:
            other.write_bytes(b"")
        remove_unfinished(tmp_path)
        assert not left.exists() and all(other.exists() for other in others)

    def test_folder_without_permission(self, tmp_path, grey):
        if not hasattr(os, "geteuid") or os.geteuid() == 0:
            pytest.skip("permissions do not bind this user")
        tmp_path.chmod(0o500)
        with pytest.raises(FileError, match="a.png.*Permission denied"):
            write_image(tmp_path / "a.png", grey)


class TestFolders:
    def test_natural_order_without_hidden_and_other_files(self, tmp_path, grey):
        for name in ("10.png", "9.png", "a2.png", "a10.png", "1.TIF", "._9.png"):
            save(tmp_path / name, grey)
        (tmp_path / "notes.txt").touch()
        assert [p.name for p in list_images(tmp_path)] == ["1.TIF", "9.png", "10.png", "a2.png", "a10.png"]

    def test_missing_empty_and_ambiguous(self, tmp_path, grey):
        with pytest.raises(ImageError, match="nothing there"):
            list_images(tmp_path / "none")
        with pytest.raises(ImageError, match="found none"):
            list_images(tmp_path)
        save(tmp_path / "a.png", grey)
        with pytest.raises(ImageError, match="a file"):
            list_images(tmp_path / "a.png")
        save(tmp_path / "a.tif", grey)
        with pytest.raises(ImageError, match="a.png and a.tif"):
            list_images(tmp_path)

    @pytest.mark.parametrize(
        ("stump", "actual"),
        [
            ("../.git/annex/objects/x1/y2/SHA256E-s1--00.png", "a file of git-annex whose content is not here"),
            ("none", "a link to nothing"),
            (b"../.git/annex/objects/x1/y2/SHA256E-s1--00.png", "a file of git-annex whose content is not here"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a file of Git LFS"),
            (b"", "an empty file"),
        ],
    )
    def test_an_image_without_content_is_not_left_out(self, tmp_path, grey, stump, actual):
        for folder in ("MRI", "CT"):
            (tmp_path / folder).mkdir()
            save(tmp_path / folder / "1.png", grey)
        for folder in ("MRI", "CT"):
            path = tmp_path / folder / "2.png"
            path.symlink_to(stump) if isinstance(stump, str) else path.write_bytes(stump)
        (tmp_path / "MRI/3.png").mkdir()
        pairs = pair_files(fixed=tmp_path / "MRI", moving=tmp_path / "CT")
        assert [pair["name"] for pair in pairs] == ["1", "2"]
        message_of(pairs[1]["fixed"], actual)
        left, bad = check_pairs([PairFiles(**pair) for pair in pairs], "CT", keep_going=True)
        assert [pair.name for pair in left] == ["1"] and len(bad) == 1 and actual in bad[0]
        if isinstance(stump, str):
            with pytest.raises(FileError, match=actual):
                make_table(tmp_path, "CT", group_pattern="(.+)")

    def test_a_folder_of_links_to_nothing_says_so(self, tmp_path):
        (tmp_path / "IM1").symlink_to("none")
        with pytest.raises(ImageError, match="expected images .*, found IM1, a link to nothing"):
            list_images(tmp_path)
        (tmp_path / "mri").symlink_to("none")
        with pytest.raises(ImageError, match="mri: expected the folder of fixed images, found a link to nothing"):
            pair_files(fixed=tmp_path / "mri")

    def make(self, root: Path, **names: list[str]) -> None:
        for folder, files in names.items():
            (root / folder).mkdir()
            for name in files:
                (root / folder / name).touch()

    def test_pairs_by_stem(self, tmp_path):
        self.make(tmp_path, mri=["10.png", "2.png"], ct=["2.tif", "10.png"])
        assert pair_files(fixed=tmp_path / "mri", moving=tmp_path / "ct", label=None) == [
            {"name": "2", "fixed": tmp_path / "mri/2.png", "moving": tmp_path / "ct/2.tif", "label": None},
            {"name": "10", "fixed": tmp_path / "mri/10.png", "moving": tmp_path / "ct/10.png", "label": None},
        ]

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes both forms for one file")
    def test_forms_of_unicode_are_no_matter_but_must_not_meet(self, tmp_path):
        composed, apart = "caf\u00e9.png", "cafe\u0301.png"
        self.make(tmp_path, mri=[composed], ct=[apart], both=[composed, apart])
        (pair,) = pair_files(fixed=tmp_path / "mri", moving=tmp_path / "ct")
        assert pair == {"name": "caf\u00e9", "fixed": tmp_path / "mri" / composed, "moving": tmp_path / "ct" / apart}
        with pytest.raises(ImageError, match="both: expected one image a name, found .* in two forms of Unicode"):
            pair_files(fixed=tmp_path / "mri", moving=tmp_path / "both")

    def test_unpaired_either_way(self, tmp_path):
        self.make(tmp_path, mri=["1.png", "2.png"], ct=["1.png"])
        for fixed, moving in (("mri", "ct"), ("ct", "mri")):
            with pytest.raises(ImageError) as caught:
                pair_files(fixed=tmp_path / fixed, moving=tmp_path / moving)
            assert str(tmp_path / "ct") in str(caught.value) and "none for 2" in str(caught.value)

    def test_single_files_pair_whatever_their_names(self, tmp_path):
        self.make(tmp_path, d=["mri.png", "ct.png"])
        (pair,) = pair_files(fixed=tmp_path / "d/mri.png", moving=tmp_path / "d/ct.png")
        assert pair == {"name": "mri", "fixed": tmp_path / "d/mri.png", "moving": tmp_path / "d/ct.png"}
        self.make(tmp_path, e=["ge\u0301.png", "ct.png"])
        (pair,) = pair_files(fixed=tmp_path / "e/ge\u0301.png", moving=tmp_path / "e/ct.png")
        assert pair["name"] == "g\u00e9"

    def test_missing_folder_names_the_role(self, tmp_path):
        with pytest.raises(ImageError, match="none: expected the folder of moving images, found nothing there"):
            pair_files(fixed=tmp_path, moving=tmp_path / "none")
        with pytest.raises(ImageError, match="none.png: expected a moving image, found nothing there"):
            pair_files(fixed=tmp_path, moving=tmp_path / "none.png")
        with pytest.raises(ImageError, match="none: expected the folder of files of fixed landmarks, found nothing"):
            pair_files(fixed=tmp_path, fixed_landmarks=tmp_path / "none")

    def test_a_file_among_folders_is_named_as_the_odd_one(self, tmp_path):
        self.make(tmp_path, mri=["1.png"], ct=["1.png"])
        file = tmp_path / "mri/1.png"
        for folders, odd, expected in (
            ({"fixed": file, "moving": tmp_path / "ct"}, file, f"a folder, as {tmp_path / 'ct'} is one, found a file"),
            ({"fixed": file, "moving": file, "label": tmp_path}, tmp_path, f"a file, as {file} is one, found a folder"),
        ):
            with pytest.raises(ImageError) as caught:
                pair_files(**folders)
            assert str(caught.value) == f"{odd}: expected {expected}"

    def test_check_same_size(self):
        paths = {"fixed": Path("f/1.png"), "moving": Path("m/1.png"), "label": None}
        check_same_size({"fixed": np.zeros((64, 80)), "moving": np.zeros((64, 80, 3)), "label": None}, paths)
        with pytest.raises(ImageError) as caught:
            check_same_size({"fixed": np.zeros((64, 80)), "moving": np.zeros((80, 64))}, paths)
        assert str(caught.value) == ("m/1.png: expected the size of f/1.png, 80 x 64 (width x height), "
                                     "found 64 x 80 (width x height)")
        for shape in ((64, 81), (65, 80)):
            with pytest.raises(ImageError):
                check_same_size({"fixed": np.zeros((64, 80)), "moving": np.zeros(shape)}, paths)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_all_bits_of_a_deep_png_are_read_whatever_its_channels(tmp_path, channels, orientation):
    values = np.random.default_rng(0).integers(0, 2**16, (64, 72, channels)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = Image.Exif()
    exif[0x112] = orientation or 1
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 72, 64, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0),
        b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0"),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ))  # fmt: skip
    seen = values[..., 0] if channels == 2 else values[..., :3]
    seen = {None: seen, 3: seen[::-1, ::-1], 6: np.rot90(seen, -1)}[orientation]
    np.testing.assert_allclose(read_image(path, color=channels > 2), seen / 65535, atol=1e-7)
    assert has_16_bits(path)
