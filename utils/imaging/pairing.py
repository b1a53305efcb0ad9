"""Images of several folders, matched by file name."""

import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from utils.files import entries, lacking
from utils.imaging.images import IMAGE_SUFFIXES, ImageError
from utils.messages import listed, log, printable

OTHER_FILES = {"fixed_landmarks": (".csv",), "moving_landmarks": (".csv",)}
"""Roles whose files are no images -> how their names end."""

BESIDE = (".csv", ".json", ".txt", ".md", ".xml", ".html", "thumbs.db", "desktop.ini")
"""How files end that lie beside images as a rule."""


def list_images(folder: str | os.PathLike) -> list[Path]:
    """List the images directly in a folder in natural order (``2.png`` before ``10.png``), without hidden files.

    A link to nothing is listed like any other: who reads it says so, and no image is lost without a word.

    Raises:
        FileError: no such folder, it cannot be read, it holds no image, or two of its images share a stem.
    """
    return list_files(folder, IMAGE_SUFFIXES, "image")


def list_files(folder: str | os.PathLike, suffixes: tuple[str, ...], kind: str) -> list[Path]:
    """List the files of a kind, by how their names end, as `list_images` does.

    What else lies among images is named in a warning, as it may be an image that was lost.

    Args:
        kind: noun for messages, such as image.

    Raises:
        FileError: as of `list_images`.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        state = "a file" if os.path.isfile(folder) else f"{lacking(folder)}"
        raise ImageError.at(folder, f"a folder of {kind}s", state)
    files = [path for path in entries(folder) if not path.is_dir()]
    chosen = sorted((path for path in files if path.name.lower().endswith(suffixes)), key=_natural_key)
    if not chosen:
        state = next((f"{path.name}, {reason}" for path in sorted(files) if (reason := lacking(path))), "none")
        raise ImageError.at(folder, f"{kind}s ({' '.join(suffixes)})", state)
    others = sorted(path.name for path in files if path not in chosen and not path.name.lower().endswith(BESIDE))
    if others and suffixes == IMAGE_SUFFIXES:
        log.warning(printable(f"{folder}: no images by their names, left out: {listed(others)}"))
    by_stem: dict[str, Path] = {}
    for path in chosen:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ImageError.at(folder, f"one {kind} a name", f"{other.name} and {path.name}")
    return chosen


def plain_stem(path: str | os.PathLike) -> str:
    """Return the name of a file without its suffix, in one form of Unicode. macOS takes accents apart."""
    return unicodedata.normalize("NFC", Path(path).stem)


def pair_files(*, left_out: list[str] | None = None, **folders: str | os.PathLike | None) -> list[dict]:
    """Match the images of several folders by file name without suffix, in any form of Unicode.

    Args:
        left_out: where stems that are lacking somewhere are named, a line for each folder, instead of an error.
        folders: role -> folder, or None for a role that is not given, such as
            ``pair_files(fixed="MRI", moving="CT", label=None)``. If every role that is given names a file instead
            of a folder, these files are the one pair, whatever their names.

    Returns:
        A dict for each pair in natural order: ``name`` (the stem, NFC; for single files the first one's) and each
        role's Path, None where the role is None.

    Raises:
        ImageError: a folder is missing, empty or ambiguous, or a stem of one folder is lacking in another.
    """
    places = {role: Path(folder) for role, folder in folders.items() if folder is not None}
    if not places:
        raise ValueError("pair_files needs at least one folder")
    absent = dict.fromkeys(folders.keys() - places.keys())
    for role, path in places.items():
        if not os.path.exists(path):
            expected = f"a {_named(role)}" if path.suffix else f"the folder of {_named(role, 's')}"
            raise ImageError.at(path, expected, f"{lacking(path)}")
    _check_of_one_kind(places.values())
    if all(path.is_file() for path in places.values()):
        return [{"name": plain_stem(next(iter(places.values()))), **places, **absent}]
    images: dict[str, dict[str, Path]] = {role: {} for role in places}
    for role, folder in places.items():
        suffixes = OTHER_FILES.get(role, IMAGE_SUFFIXES)
        for path in list_files(folder, suffixes, "image" if suffixes == IMAGE_SUFFIXES else "file"):
            if images[role].setdefault(plain_stem(path), path) is not path:
                raise ImageError.at(folder, "one image a name", f"{path.name} twice, in two forms of Unicode")
    first, *others = images
    for other in others:
        for role, partner in ((first, other), (other, first)):
            missing = [stem for stem in images[role] if stem not in images[partner]]
            if missing:
                names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                expected = f"a {_named(partner)} for each {_named(role)} in {places[role]}"
                error = ImageError.at(places[partner], expected, f"none for {names}")
                if left_out is None:
                    raise error
                left_out.append(str(error))
    common = [stem for stem in images[first] if all(stem in images[role] for role in places)]
    return [{"name": stem, **{role: images[role][stem] for role in places}, **absent} for stem in common]


def _check_of_one_kind(paths: Collection[Path]) -> None:
    """Check that there are only files or only folders.

    Raises:
        ImageError: there are both. It names one of the fewer.
    """
    folders, files = ([path for path in paths if path.is_dir() == is_one] for is_one in (True, False))
    if files and folders:
        fewer_folders = len(folders) < len(files)
        odd, other = (folders[0], files[0]) if fewer_folders else (files[0], folders[0])
        expected, actual = ("file", "folder") if fewer_folders else ("folder", "file")
        raise ImageError.at(odd, f"a {expected}, as {other} is one", f"a {actual}")


def _named(role: str, ending: str = "") -> str:
    """Name a file of a role, or with the ending s several: fixed image, files of fixed landmarks."""
    words = role.replace("_", " ")
    return f"file{ending} of {words}" if role in OTHER_FILES else f"{words} image{ending}"


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Make a sort key in which digits compare as numbers and come before letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.lower())
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts]
