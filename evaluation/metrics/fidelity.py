"""Fidelity: whether a reader of the fused image still finds what only one of the sources shows.

The fusion metrics of the field reward edges and contrast from wherever they come. They do not ask whether bone is
solid, whether a lesion that one image alone shows survives, or whether a colour still means what it means in the
tracer's image. These measures do. Grey images are (H, W), colour images (H, W, 3), both in grey levels 0..255.
"""

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import KDTree

from evaluation.metrics.common import check_images

BONE, HOLE = 235.0, 160.0
"""Grey levels of CT in the brain window: bone is at least the first, and reads as a hole below the second."""

SOFT_TISSUE = 10.0, 200.0
"""Grey levels between which the moving image shows tissue."""

FROM_BONE = 6
"""Pixels around bone that tell nothing about soft tissue, as its blur reaches there."""

FINE, COARSE = 3.4, 17.0
"""Sigma in pixels of two Gaussian windows, whose difference is the local contrast of structures of a lesion's size."""

STRONG_COLOR = 0.5
"""Chroma (largest minus smallest channel, as a share of 255) from which a colour counts as strong."""

NEAR_WHITE = 0.2
"""Saturation below which a colour reads as white or grey."""

FEWEST = 50
"""Pixels below which a share or a mean would say nothing; the measure is NaN then."""


def fidelity_metrics(
    fixed: np.ndarray,
    aligned: np.ndarray,
    fused: np.ndarray,
    colors: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Compute all measures of fidelity that the images allow.

    Args:
        fixed, aligned, fused: (H, W), grey levels 0..255; luma where an image has colour. `aligned` is the moving image
            that was fused, so that an error of the alignment is not taken for one of the fusion.
        colors: where the moving image is coloured, reference and fused image, (H, W, 3), grey levels 0..255.

    Returns:
        ``contrast_fixed`` and ``contrast_moving``; of a grey moving image ``bone_holes``; of a coloured one the keys of
        `color_kept`. What the images cannot tell is left out.

    Raises:
        ValueError: images that do not fit.
    """
    values = dict(zip(("contrast_fixed", "contrast_moving"), contrast_kept(fixed, aligned, fused), strict=True))
    values |= {"bone_holes": bone_holes(aligned, fused)} if colors is None else color_kept(*colors)
    return {name: value for name, value in values.items() if np.isfinite(value)}


def bone_holes(aligned: np.ndarray, fused: np.ndarray) -> float:
    """Compute the share of solid bone that the fused image draws dark. In [0, 1]; **lower is better**.

    Solid bone is where the CT is at least `BONE`, eroded by one pixel; dark is below `HOLE`.

    Args:
        aligned: the CT that was fused, (H, W), grey levels 0..255 in the brain window.
        fused: (H, W), the same.

    Returns:
        The share, NaN where there are fewer than `FEWEST` pixels of solid bone.

    Raises:
        ValueError: images that do not fit.
    """
    aligned, fused = check_images(aligned=aligned, fused=fused)
    solid = ndimage.binary_erosion(aligned >= BONE)
    return float((fused[solid] < HOLE).mean()) if solid.sum() >= FEWEST else np.nan


def contrast_kept(fixed: np.ndarray, aligned: np.ndarray, fused: np.ndarray) -> tuple[float, float]:
    """Measure how much of the local contrast of either source the fused image shows. 1 is all; higher is better.

    Local contrast is the difference of two Gaussian means, of `FINE` and `COARSE`. That of the fused image is explained
    by those of both sources (least squares) in the moving image's soft tissue, so that what one source alone shows
    counts for that source.

    Args:
        fixed, aligned, fused: (H, W), grey levels 0..255.

    Returns:
        The coefficients of the fixed and of the aligned image; NaN where there are fewer than `FEWEST` pixels of soft
        tissue or a source has no contrast in it.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, aligned, fused = check_images(fixed=fixed, aligned=aligned, fused=fused)
    low, high = SOFT_TISSUE
    near_bone = ndimage.binary_dilation(aligned >= BONE, iterations=FROM_BONE)
    tissue = (aligned > low) & (aligned < high) & ~near_bone
    if tissue.sum() < FEWEST:
        return np.nan, np.nan
    sources = np.stack([local_contrast(image)[tissue] for image in (fixed, aligned)], axis=1)
    sources -= sources.mean(axis=0)
    shown = local_contrast(fused)[tissue]
    coefficients, _, rank, _ = np.linalg.lstsq(sources, shown - shown.mean(), rcond=1e-3)
    return tuple(map(float, coefficients)) if rank == 2 else (np.nan, np.nan)


def local_contrast(image: np.ndarray) -> np.ndarray:
    """Subtract the Gaussian means of `COARSE` from those of `FINE` around each pixel of an image (H, W)."""
    return ndimage.gaussian_filter(image, FINE) - ndimage.gaussian_filter(image, COARSE)


def color_kept(reference: np.ndarray, fused: np.ndarray) -> dict[str, float]:
    """Measure how much of strong colours of the tracer is kept.

    Args:
        reference: the moving image in its place, (H, W, 3), grey levels 0..255.
        fused: (H, W, 3) likewise.

    Returns:
        - ``saturation_kept``: mean saturation (of HSV) where the reference is strongly coloured, as a share of the
          reference's there; higher is better;
        - ``near_white``: share of those pixels whose saturation is below `NEAR_WHITE`; lower is better;
        - ``hue_error``: mean difference of hue in degrees, each pixel weighted by the fused chroma, as grey has no hue;
          lower is better;
        - ``tracer_order``: `tracer_order`; higher is better.

        All NaN where fewer than `FEWEST` pixels are strongly coloured.

    Raises:
        ValueError: images that are not of one shape (H, W, 3) or leave 0..255.
    """
    reference, fused = (_checked_colour(**{role: x}) for role, x in (("reference", reference), ("fused", fused)))
    if reference.shape != fused.shape:
        raise ValueError(f"fused: expected shape {reference.shape} like reference, found {fused.shape}")
    strong = np.ptp(reference, axis=2) > STRONG_COLOR
    if strong.sum() < FEWEST:
        return dict.fromkeys(("saturation_kept", "near_white", "hue_error", "tracer_order"), np.nan)
    saturation = _saturation(fused[strong])
    chroma = np.ptp(fused[strong], axis=1)
    turn = np.abs(_hue(reference[strong]) - _hue(fused[strong]))
    turn = np.minimum(turn, 360 - turn)
    return {
        "saturation_kept": float(saturation.mean() / _saturation(reference[strong]).mean()),
        "near_white": float((saturation < NEAR_WHITE).mean()),
        "hue_error": float((turn * chroma).sum() / chroma.sum()) if chroma.any() else np.nan,
        "tracer_order": tracer_order(reference, fused),
    }


def tracer_order(reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute the rank correlation between the tracer and what a reader takes it for by the fused colour.

    It lies in [-1, 1]; higher is better.

    The colour scale is read off the reference: the place of a colour on it is the length of the shortest path from the
    darkest colour through the colours that occur. A fused colour is taken for the colour of the scale that is most like
    it, above all in hue and saturation, as brightness is also the fixed image's. Places are compared where the tracer
    is strongly coloured or bright.

    Args:
        reference, fused: (H, W, 3) in [0, 1].

    Returns:
        Spearman's rank correlation, NaN where the tracer or what it is taken for does not vary.
    """
    scale, place = _colour_scale(reference)
    shown = (np.ptp(reference, axis=2) > STRONG_COLOR) | (reference.min(axis=2) > STRONG_COLOR)
    chosen = np.flatnonzero(shown)
    chosen = chosen[:: max(1, len(chosen) // _SAMPLES)]
    true, taken = (x.reshape(-1, 3)[chosen] for x in (reference, fused))
    true, taken = place[KDTree(scale).query(true)[1]], place[KDTree(_appearance(scale)).query(_appearance(taken))[1]]
    # The test command counts its pairs a third sooner without it.
    from scipy.stats import spearmanr

    return float(spearmanr(true, taken).statistic) if np.ptp(true) > 0 and np.ptp(taken) > 0 else np.nan


_STEPS, _RARE, _NEIGHBOURS, _SAMPLES = 32, 3, 8, 4000
_BRIGHTNESS = 0.3  # weight of brightness beside hue and saturation


def _colour_scale(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the colours (N, 3) of an image (H, W, 3) in [0, 1], coarsely, with a place (N,) of each."""
    steps = np.rint(image.reshape(-1, 3) * (_STEPS - 1)).astype(int)
    colours, counts = np.unique(steps, axis=0, return_counts=True)
    scale = colours[counts >= _RARE] / (_STEPS - 1)
    distance, neighbour = KDTree(scale).query(scale, k=min(_NEIGHBOURS, len(scale)))
    distance, neighbour = distance.reshape(len(scale), -1), neighbour.reshape(len(scale), -1)
    rows = np.repeat(np.arange(len(scale)), distance.shape[1])
    # Squares: many short steps along the scale are nearer than a leap across.
    edges = sparse.coo_matrix((distance.ravel() ** 2, (rows, neighbour.ravel())), (len(scale),) * 2).tocsr()
    place = sparse.csgraph.dijkstra(edges, directed=False, indices=int(scale.sum(axis=1).argmin()))
    reached = np.isfinite(place)
    return scale[reached], place[reached]


def _appearance(colours: np.ndarray) -> np.ndarray:
    """Weight colours (N, 3) as a reader compares them: mixture of the channels, and brightness with little weight."""
    value = colours.max(axis=1, keepdims=True)
    return np.concatenate((colours / np.maximum(value, 1e-6), _BRIGHTNESS * value), axis=1)


def _checked_colour(**named: np.ndarray) -> np.ndarray:
    """Check a colour image and bring its channels to [0, 1]."""
    ((role, image),) = named.items()
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{role}: expected a colour image of shape (H, W, 3), found shape {image.shape}")
    channels = check_images(**{f"{role}, channel {index}": image[..., index] for index in range(3)})
    return np.stack(channels, axis=2).clip(0, 255) / 255


def _saturation(colours: np.ndarray) -> np.ndarray:
    return np.ptp(colours, axis=1) / np.maximum(colours.max(axis=1), 1e-6)


def _hue(colours: np.ndarray) -> np.ndarray:
    """Compute the hue in degrees, 0 to 360, of colours (N, 3); 0 of grey."""
    red, green, blue = colours.T
    return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
