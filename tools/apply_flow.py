"""Carry further images along with displacement fields that were found before.

    python -m tools.apply_flow --images DIR --flow out/PET/flow --output DIR

For another rendering of the moving images, such as the uptake in grey beside the colour picture that was aligned. What
is written has 8 bits, also where the image has 16; `utils.geometry.warp.apply_flow` keeps all digits.

A flow says nothing of other images. Flows of one modality are not applied to images of another, as far as that can be
known: the flows' modality by settings.json, the images' by the folders that they lie in, such as CT or CT-MRI.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np

from data.table import MODALITIES, modality_name
from utils.arguments import OneLineParser, print_anywhere
from utils.files import FileError, check_inputs_stay, entries, lacking
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image, write_image
from utils.imaging.pairing import list_images, plain_stem
from utils.messages import counted, listed

OFF_CENTRE = 0.2
"""Distance, as a share of an image's sides, between its middle and that of the places to which its flow points."""


def apply_flows(
    images: str | os.PathLike,
    flows: str | os.PathLike,
    output: str | os.PathLike,
    modality: str | None = None,
) -> tuple[int, list[str]]:
    """Warp every image of a folder that has a flow `NAME.npy`.

    Args:
        images, flows: folders that are read.
        output: folder that is written to.
        modality: of the images; None goes by the names of the folders that they lie in.

    Returns:
        How many there were, and the names of the images without a flow.

    Raises:
        FileError: a file cannot be used, a flow's size is not its image's, no image has a flow, the flows are of
            another modality than the images, or a result would be written over an image.
    """
    of_flows, of_images = modality_of_flows(flows), modality or _modality_in(images)
    if of_flows and of_images and of_flows != of_images:
        expected = f"{of_flows} images, whose flows are in {os.fspath(flows)}"
        hint = "" if modality else f" by the name of the folder (--modality {of_flows} if that misleads)"
        raise FileError.at(images, expected, f"{of_images} images{hint}")
    found = {plain_stem(path): path for path in entries(flows) if path.suffix == ".npy"}
    files = {path: found.get(plain_stem(path)) for path in list_images(images)}
    todo = [(path, file) for path, file in files.items() if file]
    if not todo:
        raise FileError.at(flows, f"flows named like the images in {os.fspath(images)}", "none")
    targets = [Path(output, f"{path.stem}.png") for path, _ in todo]
    check_inputs_stay((path for path, _ in todo), targets)
    for path in (path for pair in todo for path in pair):
        if reason := lacking(path):
            raise FileError.at(path, "a file with its content", reason)
    for (path, file), target in zip(todo, targets, strict=True):
        image = read_image(path, color=None)
        flow = _flow_for(image, file)
        write_image(target, apply_flow(image, flow, background=0.0))
    return len(todo), [path.stem for path, file in files.items() if not file]


def _flow_for(image: np.ndarray, file: Path) -> np.ndarray:
    """Load a flow at the resolution of the fixed image, for an image that may have another size.

    Raises:
        FileError: it is no flow, or one for images of another size.
    """
    flow = load_flow(file, None)
    size = flow.shape[1:]
    # A flow for images of another size than the fixed one points at the middle of them; any other flow does not.
    middle = np.array([np.median(np.indices(size)[axis] + flow[1 - axis]) for axis in (0, 1)])
    fits = np.abs(middle / image.shape[:2] - 0.5).max() <= OFF_CENTRE
    return flow if fits and image.shape[:2] != size else load_flow(file, image.shape[:2])


def modality_of_flows(folder: str | os.PathLike) -> str | None:
    """Find the modality of saved flows, by settings.json beside their folder or by its path.

    Returns:
        One of `data.table.MODALITIES`, or None where nothing tells.
    """
    try:
        settings = json.loads((Path(os.path.abspath(folder)).parent / "settings.json").read_text())
    except (OSError, ValueError):
        settings = None
    stated = settings.get("modality") if isinstance(settings, dict) else None
    return stated if stated in MODALITIES else _modality_in(folder)


def _modality_in(folder: str | os.PathLike) -> str | None:
    """Find the one modality in the name of the last folder, or of the one above it, as a word of its own."""
    for name in reversed(Path(os.path.abspath(folder)).parts[-2:]):
        words = re.split(r"[^a-z]+", name.lower())
        named = [modality for modality in MODALITIES if modality.lower() in words]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.apply_flow``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.apply_flow", description="Warp images with saved displacement fields.")
    parser.add_argument("--images", metavar="DIR", required=True, help="images to warp")
    parser.add_argument("--flow", metavar="DIR", required=True, help="flow/NAME.npy of the test command")
    parser.add_argument("--output", metavar="DIR", required=True, help="where NAME.png goes")
    parser.add_argument("--modality", type=modality_name, choices=MODALITIES, help="of the images, where the names of "
                        "their folders do not tell or mislead; flows of another one are refused")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        done, left_out = apply_flows(options.images, options.flow, options.output, options.modality)
    except FileError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {counted(done, 'image')} to {options.output}")
    if left_out:
        what = counted(len(left_out), "image")
        print(f"{parser.prog}: left out {what} without a flow: {listed(left_out)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
