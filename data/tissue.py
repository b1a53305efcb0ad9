"""Tissue labels of a head: from an MRI slice alone, from FreeSurfer's labels, or as shares of a template.

Labels are rough on purpose. Images that are simulated from them lie on the MRI exactly, whatever a class is called.
"""

from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from utils.geometry.head_box import TISSUE


class Tissue(IntEnum):
    """Classes of a label image."""

    AIR = 0
    SCALP = 1
    BONE = 2
    FLUID = 3
    GREY = 4
    WHITE = 5


_BONE_DEPTH = 22
"""px below the surface, of a head of 200 px, up to which a dark ring may be bone."""

_WHITE = (2, 7, 28, 41, 46, 60, 77, 85, 251, 252, 253, 254, 255)
_FLUID = (4, 5, 14, 15, 24, 31, 43, 44, 63, 72)


def tissue_of_slice(mri: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Classify the pixels of an MRI slice by intensity and by depth below the surface of the head.

    Args:
        mri: (H, W) in [0, 1], any plane and weighting.

    Returns:
        (H, W) of `Tissue`; all air where the slice shows no head.
    """
    smooth = cv2.GaussianBlur(mri, (0, 0), 1.0)
    bright = smooth[smooth > TISSUE]
    labels = np.zeros(mri.shape, np.uint8)
    if bright.size < 400:
        return labels
    shown = ndimage.binary_closing(smooth > max(0.04, 0.15 * np.percentile(bright, 90)), iterations=3)
    head = _largest(_filled(shown))
    depth = ndimage.distance_transform_edt(head)
    length = np.sqrt(head.sum())
    brain = _brain(smooth, head, depth, length)
    labels[head] = Tissue.SCALP
    dark = smooth < 0.5 * np.median(smooth[brain])
    between = head & ~brain
    # Bone is the dark ring under the scalp; deeper dark places outside the brain are air of sinuses and the like.
    labels[between & dark] = Tissue.AIR
    labels[between & (depth > 2) & (depth < _BONE_DEPTH * length / 180) & dark] = Tissue.BONE
    labels[brain] = _brain_tissue(smooth, brain)
    return labels


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else mask


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ndimage.binary_fill_holes(mask)


def _brain(
    smooth: NDArray[np.float32], head: NDArray[np.bool_], depth: NDArray[np.float64], length: float
) -> NDArray[np.bool_]:
    """Find the largest bright piece inside the ring of the skull, or without one the pixels that lie deep enough."""
    inside = head & (depth > 0.03 * length)
    tissue = inside & (smooth > 0.45 * np.median(smooth[inside]))
    core = _largest(ndimage.binary_erosion(tissue, iterations=3))
    brain = _filled(ndimage.binary_closing(ndimage.binary_dilation(core, iterations=3), iterations=4)) & inside
    if not 0.25 < brain.sum() / head.sum() < 0.9:
        brain = head & (depth > 0.085 * length)
    return brain


def _brain_tissue(smooth: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Classify the brain by intensity. Fluid is the extreme class that lies nearer to the surface of the brain."""
    values = smooth[brain].astype(np.float32)
    start = np.searchsorted(np.percentile(values, (33, 67)), values).astype(np.int32)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 15, 1e-3)
    _, labels, centres = cv2.kmeans(values[:, None], 3, start[:, None], criteria, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    rank = np.argsort(np.argsort(centres[:, 0]))[labels[:, 0]]
    depth = ndimage.distance_transform_edt(brain)[brain]
    shallow = [depth[rank == k].mean() if (rank == k).any() else np.inf for k in (0, 2)]
    order = (Tissue.FLUID, Tissue.GREY, Tissue.WHITE)
    return np.array(order if shallow[0] < shallow[1] else order[::-1], np.uint8)[rank]


def tissue_of_freesurfer(labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Convert FreeSurfer's labels (aparc+aseg), of any shape (X, Y, ...), to `Tissue`.

    They become fluid, grey and white matter, and 0 elsewhere.
    """
    tissue = np.where(labels > 0, np.uint8(Tissue.GREY), np.uint8(Tissue.AIR))
    tissue[np.isin(labels, _WHITE)] = Tissue.WHITE
    tissue[np.isin(labels, _FLUID)] = Tissue.FLUID
    return tissue
