"""What each map shows and in which colours: one table for figures, report and local page."""

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize


class MapStyle(NamedTuple):
    """How one map is drawn. The value range is fixed, so that pictures of different pairs can be compared.

    Attributes:
        title, unit: of the picture and its bar.
        vmin, vmax: ends of the bar.
        colormap: of matplotlib.
        meaning: what the map says, in a sentence.
    """

    title: str
    unit: str
    vmin: float
    vmax: float
    colormap: str
    meaning: str


MAPS: dict[str, MapStyle] = {
    "entropy_fixed": MapStyle(
        "Local entropy, fixed", "bits", 0.0, 2.0, "viridis", "How much the grey levels of the MRI vary around a pixel."
    ),
    "entropy_moving": MapStyle(
        "Local entropy, moving", "bits", 0.0, 2.0, "viridis",
        "How much the grey levels of the moving image vary around a pixel.",
    ),
    "entropy_difference": MapStyle(
        "Entropy difference", "bits", 0.0, 2.0, "magma", "Where only one of the images shows structure."
    ),
    "gate": MapStyle(
        "Gate W", "weight", 0.0, 1.0, "cividis", "How far the entropies let a step of the displacement pass."
    ),
    "reliability": MapStyle(
        "Reliability R", "weight", 0.0, 1.0, "cividis", "How much weight a place has in the search for the alignment."
    ),
    "consistency": MapStyle(
        "Consistency C", "weight", 0.0, 1.0, "cividis", "Where the edges of both images agree and may be joined."
    ),
    "expected_error": MapStyle(
        "Expected error", "px", 0.0, 6.0, "magma", "How far off the alignment of a place is likely to be."
    ),
    "jacobian": MapStyle(
        "Jacobian determinant", "area ratio", 0.0, 2.0, "RdBu_r",
        "How the area around a pixel changes: 1 keeps it, and space would fold at 0 or below.",
    ),
}  # fmt: skip
"""Maps by the name of their folder. Entropy stays below 2 bits, as its 16 bins are so wide that a grey value lies in
several (`utils.maps.soft_histogram`). Where values go on, a bar has an arrow. The Jacobian determinant diverges around
1, blue below and red above; values below 0 (folding) are painted yellow."""

_FOLDED = "#ffe800"
_MISSING = "#8c8c8c"


def map_colors(name: str) -> tuple[Normalize, Colormap]:
    """Return the fixed range and the colours of a map, by its key in `MAPS`."""
    style = MAPS[name]
    folded = _FOLDED if name == "jacobian" else None
    return Normalize(style.vmin, style.vmax), colormaps[style.colormap].with_extremes(
        bad=_MISSING, under=folded
    )


def check_map(array: np.ndarray, name: str, place: str) -> np.ndarray:
    """Check a map, and return it as an array.

    Args:
        array: (H, W) values in the unit of the map.
        name: a key of `MAPS`.
        place: start of the message of an error.

    Raises:
        ValueError: `name` is unknown, or the array is not (H, W).
    """
    if name not in MAPS:
        raise ValueError(f"{place}: expected a map named one of {', '.join(MAPS)}, found {name!r}")
    array = np.asarray(array)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{place}: expected a {name} map of shape (H, W), found {array.shape}")
    return array


def map_picture(array: np.ndarray, name: str) -> np.ndarray:
    """Paint a map in its colours, without bar and title: float32 RGB (H, W, 3) in [0, 1].

    Args:
        array: (H, W) values in the unit of the map.
        name: a key of `MAPS`.

    Raises:
        ValueError: as `save_map`.
    """
    array = check_map(array, name, name)
    norm, colormap = map_colors(name)
    return colormap(norm(np.ma.masked_invalid(array)))[..., :3].astype(np.float32)
