"""Volumes on other grids: where they lie in space, and bringing one onto the grid of another by SimpleITK.

A transform here is SimpleITK's: it takes a point of the fixed space to the point of the moving space that belongs
there. Both are in LPS mm. ITK and ANTs apply their transforms to images in the same way.
"""

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from utils.imaging.volumes import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_image(values: NDArray, affine: NDArray[np.float64]) -> sitk.Image:
    """Make a SimpleITK image at the place that `affine` gives.

    Args:
        values: (S, H, W), or vectors (S, H, W, N).
        affine: (4, 4), (column, row, slice) to RAS mm; may be sheared, as by a tilted gantry.
    """
    lps = _RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=values.ndim == 4)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    """Make SimpleITK's transform of a matrix (4, 4), RAS mm."""
    lps = _RAS_TO_LPS @ matrix @ _RAS_TO_LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def linear_part(transform: sitk.Transform, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linearise a transform near a point: matrix (4, 4), RAS mm.

    Args:
        transform: exact for a rigid or affine one.
        at: (3,), RAS mm.
    """
    corner = np.asarray(at, np.float64) * [-1, -1, 1]
    places = np.array([transform.TransformPoint((corner + step).tolist()) for step in (np.zeros(3), *np.eye(3))])
    matrix = np.eye(4)
    matrix[:3, :3] = (places[1:] - places[0]).T
    matrix[:3, 3] = places[0] - matrix[:3, :3] @ corner
    return _RAS_TO_LPS @ matrix @ _RAS_TO_LPS


def distance_between(volume: Volume, like: Volume) -> float:
    """Measure the largest distance, in mm, between equal corner voxels of two volumes of one shape."""
    last = np.array(like.slices.shape) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last  # slices, rows, columns
    places = [apply_affine(x.slices_affine, corners[:, ::-1]) for x in (volume, like)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def coverage(volume: Volume, like: Volume, transform: sitk.Transform | None = None) -> float:
    """Compute the share of the voxels of `like`, 0 to 1, whose centre lies in a voxel of `volume`."""
    return float(_covered(volume, like, transform).mean())


def resample_volume(
    volume: Volume,
    like: Volume,
    transform: sitk.Transform | None = None,
    displacement: sitk.Transform | None = None,
) -> Volume:
    """Bring a volume onto the grid of another one, linearly and in one step; finer voxels are averaged first.

    Args:
        volume: whose values are wanted.
        like: on whose grid.
        transform: from the space of `like` to that of `volume`; None where both have one space.
        displacement: within the space of `like`, comes before `transform`.

    Returns:
        Slices of the shape of `like` and its affine and forms, in the volume's own units. Where the volume does not
        reach, its lowest value stands. It reaches to the outer faces of its voxels, so that a single slice has the
        thickness that its affine gives it.

    Raises:
        ValueError: the volumes do not overlap.
    """
    joined = _joined(transform, displacement)
    inside = _covered(volume, like, joined)
    if not inside.any():
        raise ValueError("expected volumes that overlap in space, found one beside the other")
    source = _averaged(volume, like, transform)
    slices = sitk.GetArrayFromImage(_sampled(source, like, joined, sitk.sitkLinear))
    # Beyond the faces of the averaged voxels lies no value; within those of the volume the nearest one holds.
    slices[~inside] = volume.slices.min()
    return volume._replace(slices=slices, affine=like.affine, forms=like.forms)


def resample_labels(
    volume: Volume,
    like: Volume,
    transform: sitk.Transform | None = None,
    displacement: sitk.Transform | None = None,
) -> Volume:
    """Bring a label map onto the grid of another volume: the nearest label, none mixed, 0 where it does not reach.

    Args and Raises: as of `resample_volume`.
    """
    joined = _joined(transform, displacement)
    if not _covered(volume, like, joined).any():
        raise ValueError("expected volumes that overlap in space, found one beside the other")
    source = itk_image(volume.slices, volume.slices_affine)
    sampled = _sampled(source, like, joined, sitk.sitkNearestNeighbor)
    return volume._replace(slices=sitk.GetArrayFromImage(sampled), affine=like.affine, forms=like.forms)


def _joined(*transforms: sitk.Transform | None) -> sitk.Transform | None:
    """Join several transforms to one. The last comes first, as in all of ITK."""
    steps = [step for step in transforms if step is not None]
    return sitk.CompositeTransform(steps) if steps else None


def _sampled(source: sitk.Image, like: Volume, transform: sitk.Transform | None, interpolator: int) -> sitk.Image:
    depth, height, width = like.slices.shape
    grid = itk_image(np.zeros((1, 1, 1), np.float32), like.slices_affine)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize((width, height, depth))
    resampler.SetOutputOrigin(grid.GetOrigin())
    resampler.SetOutputSpacing(grid.GetSpacing())
    resampler.SetOutputDirection(grid.GetDirection())
    resampler.SetInterpolator(interpolator)
    resampler.SetUseNearestNeighborExtrapolator(interpolator == sitk.sitkLinear)
    resampler.SetTransform(sitk.Transform(3, sitk.sitkIdentity) if transform is None else transform)
    return resampler.Execute(source)


def _covered(volume: Volume, like: Volume, transform: sitk.Transform | None) -> NDArray[np.bool_]:
    """Mark the voxels of `like` whose centre lies in a voxel of `volume`: (S, H, W)."""
    # The faces belong to it, whatever the rounding of the affines: voxels a little larger about the same middle.
    affine, middle = volume.slices_affine.copy(), (np.array(volume.slices.shape[::-1]) - 1) / 2
    centre = apply_affine(affine, middle)
    affine[:3, :3] *= 1 + 1e-4 / np.max(volume.slices.shape)
    affine[:3, 3] = centre - affine[:3, :3] @ middle
    ones = itk_image(np.ones(volume.slices.shape, np.uint8), affine)
    return sitk.GetArrayFromImage(_sampled(ones, like, transform, sitk.sitkNearestNeighbor)) > 0


def _averaged(volume: Volume, like: Volume, transform: sitk.Transform | None) -> sitk.Image:
    """Average as many voxels of `volume` as a step of `like` spans along each axis, at the mean's place.

    Points of a fine, noisy volume would say less of a thick slice than what lies within it.
    """
    values, affine, target = volume.slices, volume.slices_affine.copy(), like.slices_affine
    if transform is not None:
        target = linear_part(transform, apply_affine(target, (np.array(like.slices.shape[::-1]) - 1) / 2)) @ target
    steps = np.linalg.norm((np.linalg.inv(affine) @ target)[:3, :3], axis=1)  # columns, rows, slices
    for axis, step in enumerate(steps):
        count = min(round(step), values.shape[2 - axis])
        if count > 1:
            values = uniform_filter1d(values, count, 2 - axis, mode="nearest")
            # Of an even number, one more lies before the voxel than behind it.
            affine[:3, 3] -= affine[:3, axis] * (0.5 if count % 2 == 0 else 0)
    return itk_image(values, affine)
