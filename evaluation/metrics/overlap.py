"""Overlap of label maps."""

import numpy as np
from numpy.typing import NDArray


def dice_of_labels(estimated: NDArray, truth: NDArray) -> dict[int, float]:
    """Compute the Dice coefficient of every label by MONAI (Dice, Ecology 26, 1945).

    Args:
        estimated, truth: whole numbers of one shape, 0 for background.

    Returns:
        Label -> 2 |A and B| / (|A| + |B|), 0 to 1, for every label above 0 in either map, in ascending order.
    """
    # Both take seconds to import, which only label maps are to cost.
    import torch
    from monai.metrics import compute_dice

    labels = np.union1d(np.unique(estimated), np.unique(truth))
    scores = {}
    for label in labels[labels > 0]:  # one by one: all at once would need a volume a label
        masks = (torch.from_numpy(map_ == label)[None, None] for map_ in (estimated, truth))
        scores[int(label)] = float(compute_dice(*masks, ignore_empty=False))
    return scores
