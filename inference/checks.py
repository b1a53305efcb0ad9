"""What the test command checks of its images before it begins, so that a bad one costs no time.

Nothing here imports torch: the processes that score start the faster for it.
"""

import unicodedata
from dataclasses import replace
from pathlib import Path

from data.pairs import PairFiles, SourceImages, check_true_flow, is_blank, read_fitted
from data.table import DataError, lacking_in_name
from inference.marks import read_maps, read_mask, read_points
from utils.files import FileError
from utils.geometry.head_box import SMALL, head_length
from utils.imaging.images import has_16_bits, has_color, read_image
from utils.messages import OTHER_RENDERING, counted, log, with_progress

DARK = 4096 / 65535  # of the range: 12 bits in a file of 16 reach no further
SEVERAL = 5  # images of one size, from which on they are taken to be of one origin


def check_pairs(pairs: list[PairFiles], modality: str, keep_going: bool) -> tuple[list[PairFiles], list[str]]:
    """Read all pairs of a modality and say what about their images may not be as it looks.

    Returns:
        The pairs that can be used, each with its `longest`; and what is wrong with the others. A head longer than
        `SMALL` counts as one of that length; less than `SEVERAL` pairs of one size have no `longest`.

    Raises:
        FileError: without `keep_going`, for the first pair that cannot be used.
    """
    good, bad, names, oddities = [], [], {}, _Oddities(modality)
    sizes, lengths = [], {}
    for pair in with_progress(pairs, f"checking {modality}"):
        try:
            _check_name(pair, names)
            images, fit = read_fitted(pair, modality)
            size = images.fixed.shape
            check_true_flow(pair, size, fit)
            for read in (read_points, read_maps, read_mask):
                read(pair, size)
        except FileError as error:
            if not keep_going:
                raise
            bad.append(str(error))
            continue
        good.append(pair)
        sizes.append(images.fixed.shape)
        lengths.setdefault(sizes[-1], []).append(head_length(images.fixed, pair.aspect))
        oddities.note(pair, images)
        if fit:
            oddities.note_fit(same_size=read_image(pair.moving).shape == size)
    oddities.say()
    longest = {size: min(SMALL, max(x)) if len(x) >= SEVERAL else None for size, x in lengths.items()}
    return [replace(pair, longest=longest[size]) for pair, size in zip(good, sizes, strict=True)], bad


def _check_name(pair: PairFiles, names: dict[str, str]) -> None:
    """Check that a pair's results can be told from those of the pairs before it, and note its name.

    Args:
        names: of these, by how they read without capitals in one form of Unicode.

    Raises:
        DataError: they cannot.
    """
    if expected := lacking_in_name(pair.name):
        raise DataError.at(pair.fixed, expected, repr(pair.name))
    if pair.name == "mean":
        raise DataError.at(pair.fixed, "another name of a pair, as metrics.csv ends with a row mean", "mean")
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", pair.name).casefold())
    if (other := names.setdefault(plain, pair.name)) != pair.name:
        expected = f"a name that differs from {other} in more than capitals or accents' forms, to some systems one file"
        raise DataError.at(pair.fixed, expected, pair.name)


class _Oddities:
    """What the images of a modality have that is no error but may not be meant."""

    def __init__(self, modality: str) -> None:
        self.modality = modality
        self.pairs = self.blank = self.twice = self.grey_labels = self.fitted = self.rescaled = 0
        self.brightest: dict[str, dict[Path, float]] = {"fixed": {}, "moving": {}, "label": {}}

    def note(self, pair: PairFiles, images: SourceImages) -> None:
        """Look at the images of one pair."""
        self.pairs += 1
        for role, image in images._asdict().items():
            if image is not None:
                self.brightest[role][pair.paths[role]] = image.max()
        blank = is_blank(images.fixed) or is_blank(images.moving)
        self.blank += blank
        # Transposed, colours stand in front and a grey image goes with each.
        self.twice += not blank and not (images.moving.T != images.fixed.T).any()
        in_color = has_color(images.moving)
        self.grey_labels += images.label is not None and in_color and not has_color(images.label)

    def note_fit(self, *, same_size: bool) -> None:
        """Note a moving image that was brought to the fixed one's frame."""
        if same_size:
            self.rescaled += 1
        else:
            self.fitted += 1

    def say(self) -> None:
        """Say what was noted."""
        for role, levels in self.brightest.items():
            say_what_is_dark(self.modality, role, levels)
        if self.fitted:
            images = counted(self.fitted, "moving image")
            done = "brought to its frame by the heads' extents (--fit none refuses them)"
            log.warning(f"{self.modality}: expected the size of the fixed image, found another for {images}; {done}")
        if self.rescaled:
            images = counted(self.rescaled, "moving image")
            done = "brought to its scale (--fit none leaves them)"
            log.warning(f"{self.modality}: expected heads of about one size, found {images} with another; {done}")
        if self.blank:
            pairs = counted(self.blank, "pair")
            log.warning(f"{self.modality}: {pairs} with a blank image: not aligned, but counted in the means")
        if self.twice:
            pairs = counted(self.twice, "pair")
            log.warning(f"{self.modality}: expected images of two modalities, found the same image twice in {pairs}")
        if self.grey_labels:
            state = f"grey ones for {self.grey_labels} of {self.pairs} pairs"
            expected = "labels in colour for moving images in colour"
            log.warning(f"{self.modality}: expected {expected}, found {state}; {OTHER_RENDERING}")


def say_what_is_dark(modality: str, role: str, brightest: dict[Path, float]) -> None:
    """Name files of 16 bits that hardly use their range, or else images of 8 bits none of which does.

    Args:
        brightest: file -> its highest grey level, 0 to 1; only black is left alone.
    """
    expected = "expected grey levels up to about 1, found none above"
    dark = {path: level for path, level in brightest.items() if 0 < level < DARK}
    if deep := [path for path in dark if has_16_bits(path)]:
        more = f" and {len(deep) - 1} more" if len(deep) > 1 else ""
        message = f"{expected} {max(dark[path] for path in deep):.2f}; 12 bits in a file of 16?"
        log.warning(f"{deep[0]}{more}: {message} Stretch them, the network takes them as they are")
    elif dark and max(brightest.values()) < DARK:
        # No path: slices of volumes lie in a folder that is gone when this is read.
        message = f"{expected} {max(dark.values()):.2f}"
        log.warning(f"{modality}, {role} images: {message}; the network takes them as they are")
