"""Colour scales for grey images of PET and SPECT: matplotlib's, and those that the brain atlas is shown in."""

import difflib

import numpy as np

OWN = {
    "pet": ("black", "#0000a0", "#0040ff", "#00c0ff", "#60ff90", "#ffff00", "#ff9000", "#ff0000", "#ff00ff"),
    "spect": ("black", "#203038", "#300060", "#6010a0", "#b03060", "#ff6010", "#ff9040", "#ffd090", "white"),
}
"""Scales in the manner of the Harvard Whole Brain Atlas, by colours at even distances."""


def palette(name: str) -> np.ndarray:
    """Return the colours of a scale.

    Args:
        name: of a colormap of matplotlib (hot, viridis ...), or one of `OWN`.

    Returns:
        (256, 3), float32 in [0, 1], from the least to the most.

    Raises:
        ValueError: no such scale.
    """
    # Only who uses colour scales waits for it.
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if name in OWN:
        scale = LinearSegmentedColormap.from_list(name, OWN[name])
    elif name in colormaps:
        scale = colormaps[name]
    else:
        near = difflib.get_close_matches(name, [*OWN, *colormaps], n=3)
        expected = f"one like {', '.join(near)}" if near else "pet, spect or one of matplotlib, such as hot or viridis"
        raise ValueError(f"expected a colour scale, {expected}; found {name!r}")
    return scale(np.linspace(0, 1, 256))[:, :3].astype(np.float32)
