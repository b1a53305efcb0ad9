"""Carry further images along with displacement fields that were found before.

    python -m tools.apply_flow --images DIR --flow out/PET/flow --output DIR

For another rendering of the moving images, such as the uptake in grey beside the colour picture that was aligned. What
is written has 8 bits, also where the image has 16; `utils.geometry.warp.apply_flow` keeps all digits.
"""

import os
import sys
from pathlib import Path

from utils.arguments import OneLineParser, print_anywhere
from utils.files import FileError, check_inputs_stay, entries
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image, write_image
from utils.imaging.pairing import list_images, plain_stem
from utils.messages import counted, listed


def apply_flows(
    images: str | os.PathLike, flows: str | os.PathLike, output: str | os.PathLike
) -> tuple[int, list[str]]:
    """Warp every image of a folder that has a flow `NAME.npy`.

    Returns:
        How many there were, and the names of the images without a flow.

    Raises:
        FileError: a file cannot be used, a flow's size is not its image's, no image has a flow, or a result would be
            written over an image.
    """
    found = {plain_stem(path): path for path in entries(flows) if path.suffix == ".npy"}
    files = {path: found.get(plain_stem(path)) for path in list_images(images)}
    todo = [(path, file) for path, file in files.items() if file]
    if not todo:
        raise FileError.at(flows, f"flows named like the images in {os.fspath(images)}", "none")
    targets = [Path(output, f"{path.stem}.png") for path, _ in todo]
    check_inputs_stay((path for path, _ in todo), targets)
    for (path, file), target in zip(todo, targets, strict=True):
        image = read_image(path, color=None)
        flow = load_flow(file, image.shape[:2])
        write_image(target, apply_flow(image, flow))
    return len(todo), [path.stem for path, file in files.items() if not file]


def main(arguments: list[str] | None = None) -> int:
    """``python -m tools.apply_flow``; returns the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.apply_flow", description="Warp images with saved displacement fields.")
    parser.add_argument("--images", metavar="DIR", required=True, help="images to warp")
    parser.add_argument("--flow", metavar="DIR", required=True, help="flow/NAME.npy of the test command")
    parser.add_argument("--output", metavar="DIR", required=True, help="where NAME.png goes")
    options = parser.parse_args(arguments)
    try:
        done, left_out = apply_flows(options.images, options.flow, options.output)
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
