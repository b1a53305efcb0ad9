"""Make a folder of labelled heads to simulate training images on.

    python -m tools.make_heads --output HEADS --root HARVARD --template 120 \\
        --volume T1.nii.gz --volume other_T1.mgz other_aparc+aseg.mgz --test flair.nii.gz

The slices come from the MRI of aligned pairs, from the ICBM152 template and from volumes of the head. Tissue labels
come from intensities (`data.tissue`) or, where a second file is given, from FreeSurfer's labels.
`EDARFusion_train.py --simulated 0.5 --heads HEADS` simulates on those of the split train, and
`python -m tools.unseen --heads HEADS` scores on those of the split test.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import nibabel
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from tqdm import tqdm

from data.simulated_heads import SIZE
from data.splits import find_table
from data.tissue import Tissue, tissue_of_freesurfer, tissue_of_slice
from tools.make_sample import simulated_tissue
from utils.arguments import OneLineParser, natural, print_anywhere
from utils.command import run_command
from utils.files import FileError, InputError, lacking
from utils.imaging.images import read_image, write_image
from utils.messages import counted
from utils.tables import write_table

SLICE_STEP = 2
"""mm between the axial slices that are taken of a volume."""

LEAST_HEAD = 0.06
"""Share of the frame that a slice's head must fill to be taken."""

LEAST_BRAIN = 0.03
"""Share of the frame that its brain must fill."""


class LabelledSlice(NamedTuple):
    """A slice with its name and the patient or volume that it is of."""

    name: str
    group: str
    mri: NDArray[np.float32]
    tissue: NDArray[np.uint8]


def slices_of_pairs(root: str) -> Iterator[LabelledSlice]:
    """List the MRI of the training pairs below a folder."""
    for row in find_table(root, "all", split="train").itertuples():
        mri = read_image(Path(root, row.fixed))
        if mri.shape == (SIZE, SIZE):
            yield LabelledSlice(f"{row.modality}_{Path(row.fixed).stem}", row.group, mri, tissue_of_slice(mri))


def slices_of_template(count: int) -> Iterator[LabelledSlice]:
    """Make individual heads of the ICBM152 template, every other one with T2 contrast."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        height = 50 + 91 * number / count
        mri, tissue = simulated_tissue(height, ("T1", "T2")[number % 2], generator)
        yield LabelledSlice(f"icbm_{number:03d}", "icbm", mri, tissue)


def slices_of_volume(path: str, labels: str | None) -> Iterator[LabelledSlice]:
    """Cut axial slices of a volume at 1 mm.

    Args:
        path: NIfTI or MGH file of an MRI of the head.
        labels: FreeSurfer's labels on the same grid; None classifies by intensity.
    """
    volume = _at_one_mm(path, order=1)
    brain = None if labels is None else tissue_of_freesurfer(np.rint(_at_one_mm(labels, order=0)).astype(np.int32))
    name = Path(path).name.partition(".")[0]
    for height in range(0, volume.shape[2], SLICE_STEP):
        mri = _framed(volume[:, :, height])
        tissue = tissue_of_slice(mri)
        if brain is not None:
            known = _framed(brain[:, :, height])
            inside = cv2.morphologyEx((known > 0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
            tissue = np.where(tissue > Tissue.BONE, np.uint8(Tissue.SCALP), tissue)
            tissue = np.where(inside, np.where(known > 0, known, np.uint8(Tissue.FLUID)), tissue)
        yield LabelledSlice(f"{name}_{height:03d}", name, mri, tissue)


def _at_one_mm(path: str, order: int) -> NDArray[np.float32]:
    """Turn a volume to axes right, front and top, at 1 mm. MRI of other types than bytes is scaled to 1."""
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
        state = lacking(path) or "a file of another kind or a damaged one"
        raise FileError.at(path, "a volume that nibabel reads (NIfTI, MGH)", state) from error
    data = np.asanyarray(image.dataobj).astype(np.float32)
    if order:
        data /= 255 if image.get_data_dtype() == np.uint8 else np.percentile(data, 99.8)
    return zoom(data, image.header.get_zooms()[:3], order=order).clip(0, None if order == 0 else 1)


def _framed(plane: NDArray) -> NDArray:
    """Turn a plane (right, front) into an image (row, column), front up, centred in 256 x 256."""
    image = plane.T[::-1, ::-1]
    out = np.zeros((SIZE, SIZE), image.dtype)
    take = [min(SIZE, side) for side in image.shape]
    at = [(side - n) // 2 for side, n in zip(image.shape, take, strict=True)]
    to = [(SIZE - n) // 2 for n in take]
    out[to[0] : to[0] + take[0], to[1] : to[1] + take[1]] = image[at[0] : at[0] + take[0], at[1] : at[1] + take[1]]
    return out


def _shows_enough(tissue: NDArray[np.uint8]) -> bool:
    return (tissue > Tissue.AIR).mean() > LEAST_HEAD and (tissue >= Tissue.FLUID).mean() > LEAST_BRAIN


def write_heads(output: Path, train: Iterator[LabelledSlice], test: Iterator[LabelledSlice]) -> int:
    """Write ``mri/NAME.png``, ``tissue/NAME.png`` and last ``heads.csv``; return how many slices.

    Raises:
        FileError: a file cannot be written or read.
    """
    rows = []
    for split, slices in (("train", train), ("test", test)):
        for piece in tqdm(slices, desc=split, unit="slice", disable=None):
            if not _shows_enough(piece.tissue):
                continue
            paths = {"fixed": f"mri/{piece.name}.png", "moving": f"tissue/{piece.name}.png"}
            write_image(output / paths["fixed"], piece.mri)
            write_image(output / paths["moving"], piece.tissue.astype(np.float32) / 255)
            rows.append(paths | {"group": piece.group, "split": split})
    write_table(output / "heads.csv", pd.DataFrame(rows))
    return len(rows)


def slices_of_volumes(volumes: list[list[str]]) -> Iterator[LabelledSlice]:
    """Cut slices of volumes, each named by its file and, if there are any, that of its labels."""
    for path, *labels in volumes:
        yield from slices_of_volume(path, *(labels or [None]))


def training_slices(options: argparse.Namespace) -> Iterator[LabelledSlice]:
    """Make the slices of the split train that the options name."""
    if options.root:
        yield from slices_of_pairs(options.root)
    yield from slices_of_template(options.template)
    yield from slices_of_volumes(options.volume)


def run(options: argparse.Namespace) -> None:
    """Write the heads that the options name.

    Raises:
        InputError: a file cannot be used, or nilearn is missing for --template.
    """
    try:
        count = write_heads(options.output, training_slices(options), slices_of_volumes(options.test))
    except ImportError as error:
        raise InputError(str(error)) from error
    print(f"Wrote {counted(count, 'slice')} to {options.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.make_heads``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.make_heads", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder to write mri/, tissue/ and heads.csv to")
    parser.add_argument("--root", metavar="DIR",
                        help="folder of aligned pairs in the layout of the training data, whose training MRI is taken")
    parser.add_argument("--template", type=natural, default=0, metavar="N",
                        help="number of slices of individual heads made from the ICBM152 template (default: none; "
                             "needs nilearn)")
    for name, split in (("volume", "train"), ("test", "test")):
        parser.add_argument(f"--{name}", nargs="+", action="append", default=[], metavar="FILE",
                            help=f"MRI volume whose slices go to the split {split}, and FreeSurfer's labels of it if "
                                 "there are any; repeat for each volume")
    options = parser.parse_args(arguments)
    if any(len(files) > 2 for files in (*options.volume, *options.test)):
        parser.error("--volume, --test: expected one or two files each time")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
