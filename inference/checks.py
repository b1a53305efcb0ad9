"""What the test command checks of its images before it begins, so that a bad one costs no time.

Nothing here imports torch: the processes that score start the faster for it.
"""

import os
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.pairs import is_blank, read_pair
from data.table import DataError
from utils.files import FileError
from utils.geometry.head_box import SMALL, head_length
from utils.imaging.flows import load_flow
from utils.imaging.images import has_color
from utils.messages import OTHER_RENDERING, counted, say
from utils.processes import rank

DARK = 4096 / 65535  # of the range: 12 bits in a file of 16 reach no further
SEVERAL = 5  # images of one size, from which on they are taken to be of one origin


def check_pairs(pairs: list[dict], modality: str, keep_going: bool) -> tuple[list[dict], list[str]]:
    """The pairs that can be read, and what is wrong with the others; without `keep_going` the first one raises.

    Each pair is told how long the longest head of its modality in frames of its size is, `longest`, at most `SMALL`; or
    None for a few.

    Raises:
        FileError: without `keep_going`, for the first pair that cannot be used.
    """
    good, bad, brightest = [], [], {"fixed": {}, "moving": {}, "label": {}}
    frames, lengths, names = [], {}, {}
    blank = grey_labels = 0
    # Quick enough to leave no trace in a log: None shows the bar on a terminal only.
    for pair in tqdm(pairs, desc=f"checking {modality}", unit="pair", leave=False, disable=rank() > 0 or None):
        try:
            if pair["name"] == "mean":
                raise DataError.at(pair["fixed"], "another name of a pair, as metrics.csv ends with a row mean", "mean")
            if (other := names.setdefault(pair["name"].casefold(), pair["name"])) != pair["name"]:
                expected = f"a name that differs from {other} in more than capitals, to some systems one file"
                raise DataError.at(pair["fixed"], expected, pair["name"])
            images = read_pair(pair, modality)
            if pair["flow"]:
                load_flow(pair["flow"], images.fixed.shape)
        except FileError as error:
            if not keep_going:
                raise
            bad.append(str(error))
            continue
        good.append(pair)
        frames.append(images.fixed.shape)
        lengths.setdefault(frames[-1], []).append(head_length(images.fixed, pair.get("aspect", 1.0)))
        for role, image in images._asdict().items():
            if image is not None:
                brightest[role][pair[role]] = image.max()
        blank += is_blank(images.fixed) or is_blank(images.moving)
        grey_labels += images.label is not None and has_color(images.moving) and not has_color(images.label)
    for role, levels in brightest.items():
        say_what_is_dark(modality, role, levels)
    if blank:
        say(f"{modality}: {counted(blank, 'pair')} with a blank image: not aligned, but counted in the means")
    if grey_labels:
        say(f"{modality}: expected labels in colour for moving images in colour, found grey ones for {grey_labels} of "
            f"{len(good)} pairs; {OTHER_RENDERING}")
    longest = {frame: min(SMALL, max(x)) if len(x) >= SEVERAL else None for frame, x in lengths.items()}
    return [pair | {"longest": longest[frame]} for pair, frame in zip(good, frames, strict=True)], bad


def say_what_is_dark(modality: str, role: str, brightest: dict[Path, float]) -> None:
    """Name files of 16 bits that hardly use their range, or else images of 8 bits none of which does.

    Args:
        brightest: file -> its highest grey level, 0 to 1; only black is left alone.
    """
    expected = "expected grey levels up to about 1, found none above"
    dark = {path: level for path, level in brightest.items() if 0 < level < DARK}
    if deep := [path for path in dark if has_16_bits(path)]:
        more = f" and {len(deep) - 1} more" if len(deep) > 1 else ""
        say(f"{deep[0]}{more}: {expected} {max(dark[path] for path in deep):.2f}; 12 bits in a file of 16? Stretch "
            "them, the network takes them as they are")
    elif dark and max(brightest.values()) < DARK:
        # No path: slices of volumes lie in a folder that is gone when this is read.
        say(f"{modality}, {role} images: {expected} {max(dark.values()):.2f}; the network takes them as they are")


def has_16_bits(path: str | os.PathLike) -> bool:
    """Whether a file that can be read as an image has whole numbers of more than 8 bits; looks at its header only."""
    with Image.open(path) as image:
        return image.mode.startswith("I")
