"""What the network makes of a pair of images."""

from typing import NamedTuple

import numpy as np

from utils.geometry.fit import Fit


class FusedPair(NamedTuple):
    """What the network makes of one pair.

    Attributes:
        fused, aligned: (H, W), or (H, W, 3) in colour; float32 in [0, 1].
        flow: float32 (2, H, W), px; aligned(p) = moving(p + flow(p)), channel 0 is x.
        inverse_flow: the way back, where it is wanted: moving(q) shows what fixed(q + inverse_flow(q)) shows.
        maps: (H, W) arrays by their name in `evaluation.map_styles.MAPS`.
        seconds: time to align and fuse, without reading and writing.
        disagreement: of the averaged estimates, as in `models.outputs.Output`; None for a single one.
        expected_error: mean in the head of the map of that name, px; None where there is none.
        fit: how the moving image was brought to this size, if it had another.
        blend: the plain overlay, as `fused`, where one was asked for.
        fused_grey: (H, W), a grey tracer fused without the colour scale that `fused` shows it in, where asked for.
    """

    fused: np.ndarray
    aligned: np.ndarray
    flow: np.ndarray
    maps: dict[str, np.ndarray]
    seconds: float
    disagreement: float | None = None
    expected_error: float | None = None
    fit: Fit | None = None
    blend: np.ndarray | None = None
    inverse_flow: np.ndarray | None = None
    fused_grey: np.ndarray | None = None
