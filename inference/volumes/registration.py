"""Estimate the displacement field of a volume: each slice by the network, then all of them together."""

import threading

import numpy as np
from tqdm import tqdm

from data.pairs import PairFiles
from inference.pair_fuser import PairFuser
from inference.volumes.field import (
    STRIDE,
    VolumeField,
    coarse,
    coarse_lengths,
    coarse_mask,
    join_errors,
    join_slices,
    shown_shares,
)
from inference.volumes.pair import VolumePair
from utils.messages import log
from utils.processes import rank

EVERY = 2.0
"""Distance between the slices that are estimated, mm: those between them would say the same again."""


def register_volume(
    volumes: VolumePair, pairs: list[PairFiles], fuse: PairFuser, stop: threading.Event
) -> VolumeField | None:
    """Estimate the displacement field of a volume.

    Args:
        volumes: on one grid.
        pairs: their slices.
        fuse: estimates a slice. It need not look from other starts: neighbours say where a slice is wrong.
        stop: set where the user wishes to end.

    Returns:
        The field; None where nothing is to be moved (no passes), or where it was stopped.
    """
    if not fuse.passes:
        return None
    fixed, moving = (volumes.levels[role] for role in ("fixed", "moving"))
    shares, spacing = shown_shares(fixed, moving), float(np.linalg.norm(volumes.volumes["fixed"].slices_affine[:3, 2]))
    mask = volumes.mask
    every = max(1, round(EVERY / spacing))
    count, *size = fixed.shape
    flows = np.zeros((count, 2, *(-(-side // STRIDE) for side in size)), np.float32)
    errors, disagreements = np.zeros_like(flows[:, 0]), [None] * count
    todo = [number for number in range(0, count, every) if shares[number] > 0]
    # Slices that are not estimated have no say.
    shares[[number for number in range(count) if number not in set(todo)]] = 0
    for number in tqdm(todo, desc="registration", unit="slice", disable=rank() > 0):
        if stop.is_set():
            return None
        pair = pairs[number]
        beside = None if mask is None else mask[number]
        result = fuse(fixed[number], moving[number], aspect=pair.aspect, longest=pair.longest, mask=beside)
        flows[number], disagreements[number] = coarse(result.flow), result.disagreement
        if "expected_error" in result.maps:
            errors[number] = coarse_lengths(result.maps["expected_error"])
    beside = None if mask is None else coarse_mask(mask)
    pixel = tuple(STRIDE * np.linalg.norm(volumes.volumes["fixed"].slices_affine[:3, axis]) for axis in (1, 0))
    joined = join_slices(flows, shares, disagreements, spacing, beside, pixel)
    expected = join_errors(errors, shares, disagreements, spacing) if errors.any() else None
    field = VolumeField(joined, disagreements, tuple(size), expected)
    if rank() == 0 and field.lies_right(shares):
        log.warning(f"{volumes.name}: these lie right already; --passes 0 fuses them as they are")
    return field
