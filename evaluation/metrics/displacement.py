"""Endpoint error and folding of displacement fields."""

import numpy as np

DOUBTFUL = 1.0
"""Disagreement, px of 256, above which an alignment is tried anew (`inference.multistart`) and to be looked at.

Few validation pairs lie there, and nearly all pairs that do not belong together: experiment 83, docs/experiments.md.
"""


def endpoint_error(flow: np.ndarray, true_flow: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Compute the mean Euclidean distance between two flows, in pixels. At least 0, lower is better; symmetric.

    Baker et al., "A database and evaluation methodology for optical flow", IJCV 92, 2011.

    Args:
        flow, true_flow: (2, H, W), pixels, channel 0 is x.
        mask: (H, W), true where the error counts; everywhere if left out.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a mask without a pixel.
    """
    flow, true_flow = _check_flow("flow", flow), _check_flow("true_flow", true_flow)
    if flow.shape != true_flow.shape:
        raise ValueError(f"true_flow: expected shape {flow.shape} like flow, found {true_flow.shape}")
    error = np.hypot(*(flow - true_flow))
    if mask is None:
        return float(error.mean())
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != error.shape:
        raise ValueError(f"mask: expected shape {error.shape}, found {mask.shape}")
    if not mask.any():
        raise ValueError("mask: expected at least one pixel, found none")
    return float(error[mask].mean())


def folding_share(flow: np.ndarray) -> float:
    """Compute the share of pixels where p + flow(p) folds space: Jacobian determinant <= 0. In [0, 1], lower is better.

    Central differences, one-sided at the border, as in :func:`utils.maps.jacobian_determinant`.

    Args:
        flow: (2, H, W), pixels, channel 0 is x.

    Raises:
        ValueError: not a flow.
    """
    x, y = _check_flow("flow", flow)
    (x_y, x_x), (y_y, y_x) = np.gradient(x), np.gradient(y)
    return float(((1 + x_x) * (1 + y_y) - x_y * y_x <= 0).mean())


def _check_flow(name: str, flow: np.ndarray) -> np.ndarray:
    flow = np.asarray(flow, dtype=np.float64)
    if flow.ndim != 3 or flow.shape[0] != 2 or min(flow.shape[1:]) < 2:
        raise ValueError(f"{name}: expected a flow of shape (2, H, W), found shape {flow.shape}")
    if not np.isfinite(flow).all():
        raise ValueError(f"{name}: expected finite values, found NaN or infinity")
    return flow
