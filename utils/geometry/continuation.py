"""Smooth continuation of a field into a mask: the harmonic one, whose values stay between those around the mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt
from scipy.sparse.linalg import cg

TOLERANCE, ROUNDS = 1e-5, 2000
"""Relative residual that ends the conjugate gradients, and their largest number."""


def continue_into(
    field: NDArray[np.float32], mask: NDArray[np.bool_], spacing: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Replace a field within a mask by the solution of Laplace's equation there.

    At the mask's rim the field is continuous. Where the mask meets the border of the grid, nothing changes across it.

    Args:
        field: (C, *size), of any number of dimensions.
        mask: (*size), True where the field is replaced; not True everywhere.
        spacing: of the grid along each axis; None for 1.

    Returns:
        float32 (C, *size), the same as `field` outside of the mask. All zero where nothing is outside.
    """
    if not mask.any():
        return field
    if mask.all():
        return np.zeros_like(field)
    count, number = int(mask.sum()), np.full(mask.shape, -1)
    number[mask] = np.arange(count)
    rows, columns, weights, known = [], [], [], np.zeros((len(field), count))
    total = np.zeros(count)
    for axis in range(mask.ndim):
        weight = 1.0 if spacing is None else 1.0 / spacing[axis] ** 2
        before = (slice(None),) * axis
        ahead, behind = (*before, slice(1, None)), (*before, slice(None, -1))
        for cell, neighbour in ((ahead, behind), (behind, ahead)):
            inside = mask[cell]
            both, rim = inside & mask[neighbour], inside & ~mask[neighbour]
            rows.append(number[cell][both])
            columns.append(number[neighbour][both])
            weights.append(np.full(int(both.sum()), -weight))
            np.add.at(total, number[cell][inside], weight)
            for channel, values in enumerate(field):
                np.add.at(known[channel], number[cell][rim], weight * values[neighbour][rim])
    around = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_array(sparse.coo_array(around, shape=(count, count))) + sparse.diags_array(total)
    nearest = distance_transform_edt(mask, return_distances=False, return_indices=True)
    result = field.copy()
    for channel, values in enumerate(field):
        start = values[tuple(nearest)][mask].astype(np.float64)
        result[channel][mask] = cg(matrix, known[channel], start, rtol=TOLERANCE, maxiter=ROUNDS)[0]
    return result
