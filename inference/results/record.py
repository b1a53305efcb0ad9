"""The record of what results were made from: settings and inputs, so that a resumed run mixes nothing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from data.pairs import PairFiles
from utils.files import FileError


def check_settings(path: Path, settings: Mapping) -> None:
    """Check that results of an earlier run were made with these settings.

    Args:
        path: settings.json of that run. Versions that did not write one are trusted.
        settings: what the results depend on beside the pairs, as JSON.

    Raises:
        FileError: the file cannot be read, or its settings are others.
    """
    try:
        earlier = dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise FileError.at(path, "the settings of an earlier run", str(error)) from error
    differing = [name for name in settings if earlier.get(name) != settings[name]]
    if differing:
        expected, actual = (", ".join(f"{n} {x.get(n)}" for n in differing) for x in (settings, earlier))
        raise FileError.at(path, f"results with {expected} to resume", f"some with {actual}")


def read_inputs(path: Path) -> dict[str, str]:
    """Name of the pair -> fingerprint; nothing where there is no file, or none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def fingerprint(pair: PairFiles) -> str:
    """Compute what tells a pair from others of the same name: the content of its files, and its scale.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        FileError: a file cannot be read.
    """
    digest = hashlib.sha256(str([pair.aspect, pair.longest]).encode())
    for role, path in pair.paths.items():
        try:
            with path.open("rb") as file:
                digest.update(role.encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise FileError.at(path, "a file that can be read", error.strerror or str(error)) from error
    return digest.hexdigest()[:16]
