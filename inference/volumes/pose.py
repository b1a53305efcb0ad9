"""Find the pose of a head in one volume relative to another: a rigid or affine transform by mutual information.

Mutual information of slices that are deformed is higher at wrong alignments than at the true one, which is why the
deformation is left to the network. The pose of a whole head is another matter: six numbers, and every structure votes.
Mattes' estimate is maximised from coarse to fine (Mattes et al. 2003, Viola and Wells 1997) by SimpleITK's conjugate
gradients with line search.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import SimpleITK as sitk

from utils.files import write_bytes
from utils.imaging.flows import write_itk_image
from utils.imaging.resampling import itk_image
from utils.imaging.volumes import Volume
from utils.processes import available_cores

Kind = Literal["rigid", "affine"]

SPACING = 2.0
"""Voxel size at which poses are searched, mm. Finer ones change the pose by a tenth of a millimetre."""

SHIFTS = (-45.0, -25.0, 25.0, 45.0)
"""Further starts from the centres of mass, along the body, mm: one volume may end above the chin, another below."""

LEAST = 0.2
"""Mutual information, in nats, below which no pose was found. Of simulated heads it is 0.5 to 0.9 at the truth; of
a head and noise it stays below 0.1."""

LEAST_OVERLAP = 0.3
"""The same for the share of the fixed head that lies within the moving volume."""

LEAST_TOGETHER = 0.85
"""Share of the smaller head that lies in the other one where two volumes lie alike."""

_BINS, _MARGIN, _SAMPLES = 32, 10.0, 0.15  # of histograms; round the head, mm; share of voxels at the finest level
_GAP = 20.0  # widest dark gap within one head, mm
_COARSE, _FINE = ((4, 4.0),), ((4, 4.0), (2, 2.0), (1, 0.0))  # shrink factor and blur in mm of each level


class PoseError(ValueError):
    """No pose was found; the message says why."""


class Pose(NamedTuple):
    """Where the moving head lies.

    Attributes:
        transform: SimpleITK's: point of the fixed space -> point of the moving space, LPS mm.
        kind: "rigid" or "affine".
        start: from where the better one was found, "the headers" or "the centres of mass".
        information: mutual information at the end, nats.
        moved: mean distance of the fixed head's points from where the headers put them, mm.
    """

    transform: sitk.Transform
    kind: Kind
    start: str
    information: float
    moved: float


def estimate_pose(fixed: Volume, moving: Volume, kind: Kind = "rigid") -> Pose:
    """Find how the head of the fixed volume lies in the moving one.

    The search starts from the headers and from the heads' centres of mass; the better end is kept.

    Args:
        fixed, moving: volumes of one head, in any modality, spacing and direction; turned against each other by up to
            about 30 degrees.
        kind: "rigid" for six numbers; "affine" for twelve, which also takes up scales that differ.

    Raises:
        PoseError: one of the volumes shows no head, or no start led to a pose in which the two tell of each other.
    """
    images = [_prepared(volume) for volume in (fixed, moving)]
    heads = [_head(image, role) for image, role in zip(images, ("fixed", "moving"), strict=True)]
    centres = [_centre(head) for head in heads]
    radius = [round(_MARGIN / SPACING)] * 3
    search = _Search(*images, mask=sitk.BinaryDilate(heads[0], radius))

    apart = centres[1] - centres[0]
    starts = {"the headers": [np.zeros(3)], "the centres of mass": [apart, *(apart + [0, 0, z] for z in SHIFTS)]}
    ends = []
    for name, shifts in starts.items():
        for shift in shifts:
            transform = sitk.Euler3DTransform()
            transform.SetCenter(centres[0].tolist())
            transform.SetTranslation(shift.tolist())
            ends.append((search.improve(transform, _COARSE), name, transform))
    _, start, transform = max(ends, key=lambda end: end[0])
    information = search.improve(transform, _FINE)
    if kind == "affine" and information > LEAST:
        rigid, transform = transform, sitk.AffineTransform(3)
        transform.SetCenter(rigid.GetCenter())
        transform.SetMatrix(rigid.GetMatrix())
        transform.SetTranslation(rigid.GetTranslation())
        information = search.improve(transform, _FINE[1:])
    overlap = search.overlap(transform, heads[0])
    if information < LEAST or overlap < LEAST_OVERLAP:
        raise PoseError(
            "no pose from the headers or the centres of mass (at the best one, mutual information is "
            f"{information:.2f} nats, of at least {LEAST:g}, and {overlap:.0%} of the fixed head lie in the moving "
            f"volume, of at least {LEAST_OVERLAP:.0%})"
        )
    return Pose(transform, kind, start, information, _moved(transform, heads[0]))


def heads_apart(fixed: Volume, moving: Volume) -> bool:
    """Return whether, by the headers, less than `LEAST_TOGETHER` of the smaller head lies in the other one.

    Raises:
        PoseError: one of the volumes shows no head.
    """
    heads = [_filled(_head(_prepared(volume), role)) for volume, role in ((fixed, "fixed"), (moving, "moving"))]
    moving_head = sitk.Resample(heads[1], heads[0], sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    masks = [sitk.GetArrayViewFromImage(head) > 0 for head in (heads[0], moving_head)]
    smaller = min(int(sitk.GetArrayViewFromImage(head).sum()) for head in heads)
    return float((masks[0] & masks[1]).sum()) < LEAST_TOGETHER * smaller


def write_transform(path: str | os.PathLike, transform: sitk.Transform) -> None:
    """Write an ITK transform file (`.tfm`), which SimpleITK, 3D Slicer and ANTs read.

    Raises:
        FileError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        # SimpleITK takes names of files only, and would leave half a file where the disk is full.
        file = Path(folder, "pose.tfm")
        sitk.WriteTransform(transform, str(file))
        write_bytes(path, file.read_bytes())


def write_field(path: str | os.PathLike, field: sitk.DisplacementFieldTransform) -> None:
    """Write a displacement field in LPS mm: what SimpleITK, ANTs and 3D Slicer take for a transform.

    Raises:
        FileError: the file cannot be written, or NIfTI cannot hold the axes of a tilted gantry.
    """
    write_itk_image(path, field.GetDisplacementField())


class _Search:
    """Maximises the mutual information of two images."""

    def __init__(self, fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image) -> None:
        self.fixed, self.moving, self.mask = fixed, moving, mask

    def improve(self, transform: sitk.Transform, levels: Sequence[tuple[int, float]]) -> float:
        """Improve a transform; return its mutual information at the end, 0 if the search failed."""
        method = self._method()
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentagePerLevel([min(1.0, _SAMPLES * factor**2) for factor, _ in levels], 1)
        method.SetShrinkFactorsPerLevel([factor for factor, _ in levels])
        method.SetSmoothingSigmasPerLevel([blur for _, blur in levels])
        method.SetOptimizerAsConjugateGradientLineSearch(
            learningRate=1.0, numberOfIterations=40, convergenceMinimumValue=1e-5, convergenceWindowSize=6,
            lineSearchLowerLimit=0, lineSearchUpperLimit=5, lineSearchEpsilon=0.01, lineSearchMaximumIterations=20,
            estimateLearningRate=method.EachIteration,
        )  # fmt: skip
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
            return self.information(transform)
        except RuntimeError:
            return 0.0  # ITK raises this where nearly all samples lie beside the moving image

    def information(self, transform: sitk.Transform) -> float:
        """Compute the mutual information over all voxels of the mask that meet the moving image, nats."""
        method = self._method()
        method.SetInitialTransform(transform)
        return -method.MetricEvaluate(self.fixed, self.moving)

    def overlap(self, transform: sitk.Transform, head: sitk.Image) -> float:
        """Compute the share of the voxels of the fixed head that lie within the moving image, 0 to 1."""
        inside = self.moving * 0 + 1
        met = sitk.Resample(inside, head, transform, sitk.sitkNearestNeighbor)
        return float(sitk.GetArrayViewFromImage(met)[sitk.GetArrayViewFromImage(head) > 0].mean())

    def _method(self) -> sitk.ImageRegistrationMethod:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricFixedMask(self.mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetNumberOfThreads(available_cores())
        return method


def _prepared(volume: Volume) -> sitk.Image:
    """Bring a volume to voxels of `SPACING` and cut off its rare extremes. Fine voxels are averaged."""
    image = itk_image(volume.slices, volume.slices_affine)
    factors = [max(1, int(SPACING / side)) for side in image.GetSpacing()]
    image = sitk.BinShrink(image, [min(n, side) for n, side in zip(factors, image.GetSize(), strict=True)])
    extent = np.multiply(image.GetSize(), image.GetSpacing())
    size = np.maximum(np.round(extent / SPACING), 1).astype(int)
    turn = np.reshape(image.GetDirection(), (3, 3))
    origin = image.GetOrigin() + turn @ (extent / size - image.GetSpacing()) / 2
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size.tolist())
    resampler.SetOutputSpacing((extent / size).tolist())
    resampler.SetOutputOrigin(origin.tolist())
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetUseNearestNeighborExtrapolator(True)
    image = resampler.Execute(image)
    low, high = np.percentile(sitk.GetArrayViewFromImage(image), (1, 99.5))
    return sitk.Clamp(image, sitk.sitkFloat32, float(low), float(high))


def _head(image: sitk.Image, role: str) -> sitk.Image:
    """Find the largest piece above Otsu's threshold: 1 inside, 0 outside.

    Raises:
        PoseError: there is none.
    """
    bright = sitk.BinaryMorphologicalOpening(sitk.OtsuThreshold(image, 0, 1), [1] * 3)
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(bright))
    head = pieces == 1
    if not sitk.GetArrayViewFromImage(head).any():
        raise PoseError(f"the {role} volume shows no head: nothing in it stands out from its background")
    return head


def _filled(head: sitk.Image) -> sitk.Image:
    """Close the gaps and holes of a head up to `_GAP`: bone and fluid are dark in an MRI, where PET may be bright."""
    radius = [round(_GAP / 2 / SPACING)] * 3
    padded = sitk.ConstantPad(head, radius, radius)
    return sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(padded, radius))


def _centre(head: sitk.Image) -> np.ndarray:
    """Compute the centre of mass (3,), LPS mm."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(head)
    return np.array(shape.GetCentroid(1))


def _moved(transform: sitk.Transform, head: sitk.Image) -> float:
    """Compute the mean distance by which a transform moves points of a head, mm."""
    indices = np.argwhere(sitk.GetArrayViewFromImage(head))[:, ::-1]
    some = indices[:: max(1, len(indices) // 1000)].tolist()
    points = [head.TransformIndexToPhysicalPoint(index) for index in some]
    return float(np.mean([np.linalg.norm(np.subtract(transform.TransformPoint(p), p)) for p in points]))
