"""Which pixels of an aligned image the moving image has a value for: beyond its field of view there is nothing.

Nothing here imports torch: the processes that score start the faster for it.
"""

import numpy as np


def field_of_view(flow: np.ndarray) -> np.ndarray:
    """Mark the pixels whose displacement leads into the moving image.

    Args:
        flow: (2, H, W), px; aligned(p) = moving(p + flow(p)), channel 0 is x.

    Returns:
        bool (H, W). A pixel of the moving image reaches half a px beyond its centre.
    """
    height, width = flow.shape[1:]
    x, y = np.arange(width) + flow[0], np.arange(height)[:, None] + flow[1]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
