"""Fuzz the readers with damaged PNG, TIFF, DICOM and CSV files.

    python -m tests.fuzz_inputs [--count 2000] [--seed 0] [--keep results/fuzz]

Each input is a valid file with a few random changes. A reader must either return what its contract says or raise an
`FileError` of one line; everything else is a failure, whose input is kept. Exits with status 1 if there was one.
"""

import argparse
import io
import re
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from data.table import read_table
from utils.files import FileError, write_bytes
from utils.imaging.images import read_image
from utils.imaging.volumes import read_volume

TABLE = (
    "fixed,moving,label,modality,group,split\n"
    "a.png,b.png,a.png,CT,1,train\n"
    '"b.png","a.png",b.png,PET,2,val\n'
    "sub/c.png,sub/c.png,a.png,SPECT,3,test\n"
)
TOKENS = (b",", b'"', b"\n", b"\r", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"..", b"/", b"\\", b"C:\\", b"nan",
          b";", b"\t", b" ", b"fixed", b"val", "é".encode("latin-1"), "\u2028".encode(), b"a.png", b"'", b"#")
"""What tables are broken by."""
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"pHYs", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"iTXt",
              b"eXIf", b"acTL", b"fcTL", b"fdAT")


KINDS = ("PNG", "CSV", "TIFF", "DICOM")


class Outcome(NamedTuple):
    """What became of one input: its kind; success, FileError or failure; and the traceback of a failure."""

    kind: str
    result: str
    detail: str = ""


def png_seeds(generator: np.random.Generator) -> list[bytes]:
    """PNG files of every mode that a reader may meet, 64 x 80 px."""
    shape = (64, 80)
    grey = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
    rgb = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 65536, shape, dtype=np.uint16))
    images = [grey, rgb, deep, *(grey.convert(mode) for mode in ("1", "LA")), *(rgb.convert(m) for m in ("RGBA", "P"))]
    files = []
    for image in images:
        options = {"transparency": 3, "dpi": (72, 72)} if image.mode == "P" else {}
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        files.append(buffer.getvalue())
    return files


def tiff_seeds(generator: np.random.Generator) -> list[bytes]:
    """TIFF files of many types, layouts and compressions, 64 x 80 px."""
    files = []
    for kind, compression, tile in product(("u1", "u2", "i2", "f4", "f8"), (None, "lzw", "deflate"), (None, (32, 32))):
        for shape, photometric in (((64, 80), "miniswhite"), ((64, 80, 3), "rgb")):
            buffer = io.BytesIO()
            values = (generator.random(shape) * (1 if kind[0] == "f" else 100)).astype(kind)
            tifffile.imwrite(buffer, values, photometric=photometric, compression=compression, tile=tile)
            files.append(buffer.getvalue())
    return files


def dicom_seeds(generator: np.random.Generator) -> list[bytes]:
    """DICOM slices with padding, with bits beside the value, in explicit and implicit form; one without preamble."""
    files = []
    for syntax, bits in product((ExplicitVRLittleEndian, ImplicitVRLittleEndian), (12, 16)):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        tags = {
            "SOPClassUID": MRImageStorage, "SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "Modality": "MR",
            "ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1],
            "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": bits,
            "HighBit": bits - 1, "PixelRepresentation": 1, "PixelPaddingValue": -2000, "RescaleSlope": 2,
            "RescaleIntercept": 5, "RescaleType": "US", "Rows": 64, "Columns": 80,
            "PixelData": generator.integers(0, 2**16, (64, 80)).astype("<u2").tobytes(),
        }  # fmt: skip
        for name, value in tags.items():
            setattr(dataset, name, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return [*files, files[0][132:]]


def mutate_head(data: bytes, generator: np.random.Generator) -> bytes:
    """Changes among the tags at the beginning, which what follows is read by, or anywhere."""
    at = 600 if generator.random() < 0.7 else len(data)
    return mutate(data[:at], generator) + data[at:]


def mutate(data: bytes, generator: np.random.Generator, tokens: tuple[bytes, ...] = ()) -> bytes:
    """Between one and four random changes: bytes set, cut out, doubled, inserted, or the end cut off."""
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(0, len(data) + 1))
        length = int(generator.integers(1, 2 ** generator.integers(1, 9)))
        choice = generator.integers(0, 6 + 3 * bool(tokens))
        if choice == 0:
            data = data[:at] + generator.bytes(1) + data[at + 1 :]
        elif choice == 1:
            data = data[:at] + bytes([generator.choice((0, 1, 127, 128, 255))]) + data[at + 1 :]
        elif choice == 2:
            data = data[:at] + data[at + length :]
        elif choice == 3:
            data = data[:at] + data[at : at + length] + data[at:]
        elif choice == 4:
            data = data[:at] + generator.bytes(min(length, 32)) + data[at:]
        elif choice == 5:
            data = data[:at] if generator.random() < 0.3 else data
        else:
            data = data[:at] + tokens[generator.integers(len(tokens))] + data[at:]
    return data


def mutate_chunk(data: bytes, generator: np.random.Generator) -> bytes:
    """Change, drop or double one chunk of a PNG with length and checksum in order, so that the decoder meets it."""
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = int(generator.integers(len(chunks)))
    kind, body = chunks[at]
    choice = generator.integers(0, 6)
    if choice == 0:
        del chunks[at]
    elif choice == 1:
        chunks.insert(int(generator.integers(len(chunks) + 1)), chunks[at])
    elif choice == 2:
        chunks[at] = (bytes(generator.choice([k for k in PNG_CHUNKS if k != kind])), body)
    elif choice == 3 and kind == b"IDAT":
        chunks[at] = (kind, zlib.compress(mutate(zlib.decompress(body), generator)))
    else:
        chunks[at] = (kind, mutate(body, generator))
    parts = (len(b).to_bytes(4) + k + b + zlib.crc32(k + b).to_bytes(4) for k, b in chunks)
    return data[:8] + b"".join(parts)


def check_image(path: Path) -> None:
    """Read an image in grey and in colour and check the contract of what comes back."""
    for color, dimensions in ((False, 2), (True, 3)):
        image = read_image(path, color=color)
        assert image.dtype == np.float32 and image.ndim == dimensions and min(image.shape[:2]) >= 64, image.shape
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1, "values outside [0, 1]"


def check_volume(path: Path) -> None:
    """Read a volume and check the contract of what comes back."""
    volume = read_volume(path)
    assert volume.slices.dtype == np.float32 and volume.slices.ndim == 3 and np.isfinite(volume.slices).all()


def check_table(path: Path) -> None:
    """Read a table and check that it has rows, whole strings and paths that lead to files."""
    table = read_table(path, path.parent)
    assert isinstance(table, pd.DataFrame) and len(table) and {"fixed", "moving", "name"} <= set(table.columns)
    for column in ("fixed", "moving"):
        assert all((path.parent / value).is_file() for value in table[column]), "a path that leads nowhere"


def judge(kind: str, path: Path, check: Callable[[Path], None]) -> Outcome:
    """Run a check; anything but success and an error of one line is a failure."""
    try:
        check(path)
    except FileError as error:
        if re.search(r"[\r\n]", str(error)):
            return Outcome(kind, "failure", f"a message of several lines: {error!s}")
        return Outcome(kind, "FileError")
    except Exception:
        return Outcome(kind, "failure", traceback.format_exc())
    return Outcome(kind, "success")


def run(count: int, seed: int, keep: Path) -> list[Outcome]:
    """Try `count` inputs of all kinds in turn; those that fail are written to `keep`, which is made if need be."""
    generator = np.random.default_rng(seed)
    pngs, tiffs, dicoms = (seeds(generator) for seeds in (png_seeds, tiff_seeds, dicom_seeds))
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir()
        for file in ("a.png", "b.png", "sub/c.png"):
            (folder / file).touch()
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            if kind == "CSV":
                check, path = check_table, folder / "table.csv"
                encoding = generator.choice(("utf-8", "utf-8-sig", "utf-16"), p=(0.5, 0.4, 0.1))
                data = mutate(TABLE.encode(encoding), generator, TOKENS)
            elif kind == "PNG":
                check, path = check_image, folder / "image.png"
                change = mutate_chunk if generator.random() < 0.7 else mutate
                data = change(pngs[generator.integers(len(pngs))], generator)
            else:
                seeds, check = (tiffs, check_image) if kind == "TIFF" else (dicoms, check_volume)
                path = folder / ("image.tif" if kind == "TIFF" else "image.dcm")
                data = mutate_head(seeds[generator.integers(len(seeds))], generator)
            path.write_bytes(data)
            outcome = judge(kind, path, check)
            if outcome.result == "failure":
                kept = keep / f"seed{seed}_{number}{path.suffix}"
                write_bytes(kept, data)
                outcome = outcome._replace(detail=f"{kept}\n{outcome.detail}")
            outcomes.append(outcome)
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_inputs", description="Fuzz the readers.")
    parser.add_argument("--count", type=int, default=2000, help="inputs to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: %(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("results/fuzz"), metavar="DIR",
                        help="where inputs that fail are kept (default: %(default)s)")
    options = parser.parse_args(arguments)
    outcomes = run(options.count, options.seed, options.keep)
    for outcome in outcomes:
        if outcome.result == "failure":
            print(f"{outcome.kind}: {outcome.detail}", file=sys.stderr)
    counts = Counter((outcome.kind, outcome.result) for outcome in outcomes)
    for kind in KINDS:
        print(kind, *(f"{counts[kind, result]} {result}" for result in ("success", "FileError", "failure")), sep="  ")
    return 1 if any(outcome.result == "failure" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
