"""The inverse of a displacement field, and its error where the true one is known."""

import numpy as np
import torch

from evaluation.metrics import endpoint_error
from utils.geometry.foreground import foreground
from utils.geometry.warp import invert_steep


def inverse_of(flow: np.ndarray) -> np.ndarray:
    """Invert a displacement field (2, H, W), px, where it is smooth to 0.001 px."""
    return invert_steep(torch.from_numpy(flow)[None])[0].numpy()


def endpoint_scores(flow: np.ndarray, true_flow: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Compute the endpoint error of a flow, and of zero flow, within about 8 px of the label's tissue.

    Args:
        flow, true_flow: (2, H, W), px.
        label: the truly aligned moving image, (H, W) in [0, 1]; of one without tissue the whole counts.

    Returns:
        epe and epe_before, px.
    """
    tissue = foreground(torch.from_numpy(label)[None, None], label.shape)[0, 0].numpy() > 0.5
    mask = tissue if tissue.any() else None
    return {
        "epe": endpoint_error(flow, true_flow, mask),
        "epe_before": endpoint_error(np.zeros_like(true_flow), true_flow, mask),
    }
