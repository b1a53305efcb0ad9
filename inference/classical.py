"""Classical registration by mutual information: what a trained network is measured against.

Each method takes a pair of grey images and returns the displacement field in the project's convention. The packages
are those of requirements-baselines.txt; each is imported only by the methods that use it. Nothing here imports torch.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import SimpleITK as sitk

Register = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Fixed and moving image, (H, W) in [0, 1] -> flow (2, H, W), px: ``aligned(p) = moving(p + flow(p))``."""

BINS = 50
"""Histogram bins of Mattes mutual information, as in SimpleITK's registration notebooks."""

MESH = 8
"""B-spline cells along each axis at the finest level: 32 px in images of 256 px, twice the benchmark's smoothness."""


class RegistrationFailed(RuntimeError):
    """A registration that gave no displacement field. The message is one line."""


class ClassicalMethod(NamedTuple):
    """A registration method.

    Attributes:
        package: the package that must be installed, by its import name.
        settings: what it does, in words for a table.
        register: the function.
    """

    package: str
    settings: str
    register: Register


def rigid(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn and shift the moving image (`Register`): flow (2, H, W), px."""
    import SimpleITK as sitk

    images = _itk_images(fixed, moving)
    return _flow_of(_linear(sitk.Euler2DTransform(), *images), images[0])


def affine(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn, shift, scale and shear the moving image, from the rigid solution on (`Register`)."""
    images = _itk_images(fixed, moving)
    return _flow_of(_affine(*images), images[0])


def bspline(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Deform the moving image by cubic B-splines on 2, 4 and 8 cells an axis, from the affine solution on (`Register`).

    Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18, 1999.
    """
    import SimpleITK as sitk

    images = _itk_images(fixed, moving)
    first = _affine(*images)
    splines = sitk.BSplineTransformInitializer(images[0], [MESH // 4] * 2)
    method = _mutual_information()
    method.SetMovingInitialTransform(first)
    method.SetInitialTransformAsBSpline(splines, inPlace=True, scaleFactors=[1, 2, 4])
    method.SetOptimizerAsLBFGS2(solutionAccuracy=1e-4, numberOfIterations=100, deltaConvergenceTolerance=1e-4)
    method.Execute(*images)
    # Of a composite transform the last one is applied to the fixed image's points first.
    return _flow_of(sitk.CompositeTransform([first, splines]), images[0])


def syn(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Align by the settings that ANTsPy recommends: affine, then symmetric normalisation (`Register`).

    Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 12, 2008;
    with Mattes mutual information in place of cross-correlation, as for pairs of two modalities.
    """
    return _by_ants(fixed, moving, type_of_transform="SyN")


def syn_identity(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Align by symmetric normalisation alone, from the pair as it lies (`Register`)."""
    return _by_ants(fixed, moving, type_of_transform="SyNOnly", initial_transform="identity")


CLASSICAL: dict[str, ClassicalMethod] = {
    "rigid": ClassicalMethod(
        "SimpleITK",
        f"SimpleITK, Mattes mutual information ({BINS} bins, all pixels), three resolutions, regular-step descent",
        rigid,
    ),
    "affine": ClassicalMethod("SimpleITK", "SimpleITK, the same, affine after rigid", affine),
    "bspline": ClassicalMethod(
        "SimpleITK",
        f"SimpleITK, the same, then cubic B-splines on 2, 4 and {MESH} cells an axis, L-BFGS",
        bspline,
    ),
    "syn": ClassicalMethod("ants", "ANTsPy's default: affine, then SyN, Mattes mutual information", syn),
    "syn-identity": ClassicalMethod("ants", "ANTsPy's SyNOnly from the pair as it lies", syn_identity),
}


def register_within(
    name: str, fixed: NDArray[np.float32], moving: NDArray[np.float32], limit: float
) -> tuple[NDArray[np.float32], float]:
    """Register a pair in a process of its own, which is ended after a time limit or may crash without harm.

    Args:
        name: a key of `CLASSICAL`.
        fixed, moving: (H, W) in [0, 1].
        limit: seconds, the start of the process included.

    Returns:
        The flow (2, H, W), px, and the seconds that the registration took, imports left out.

    Raises:
        RegistrationFailed: it took longer, raised an error, crashed, or gave values that are not finite.
    """
    # This file alone: a process that multiprocessing spawns would import the command that is running, and torch.
    command = [sys.executable, __file__, name]
    # One thread a pair: several pairs share the cores, and threads that wait for each other would count as seconds.
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "images.npz"), fixed=fixed, moving=moving)
        try:
            done = subprocess.run(
                [*command, folder], env=environment, timeout=limit, capture_output=True, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired:
            raise RegistrationFailed(f"not done within {limit:g} s") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"its process ended with status {done.returncode}"]
            raise RegistrationFailed(last[0][-200:])
        with np.load(Path(folder, "flow.npz")) as result:
            flow, seconds = result["flow"], float(result["seconds"])
    if not np.isfinite(flow).all():
        raise RegistrationFailed("displacements that are not finite")
    return flow, seconds


def _register_files(name: str, folder: str) -> None:
    """Register the images of images.npz and write flow.npz, in the process of `register_within`."""
    method = CLASSICAL[name]
    importlib.import_module(method.package)
    with np.load(Path(folder, "images.npz")) as images:
        start = time.perf_counter()
        flow = method.register(images["fixed"], images["moving"])
    np.savez(Path(folder, "flow.npz"), flow=flow, seconds=time.perf_counter() - start)


def _itk_images(*images: NDArray[np.float32]) -> list["sitk.Image"]:
    import SimpleITK as sitk

    return [sitk.GetImageFromArray(np.ascontiguousarray(image, np.float32)) for image in images]


def _mutual_information() -> "sitk.ImageRegistrationMethod":
    """Set up what all SimpleITK methods share: metric, interpolation and resolutions of its notebooks."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _linear(start: "sitk.Transform", fixed: "sitk.Image", moving: "sitk.Image") -> "sitk.Transform":
    """Optimise a rigid or affine transform, in place."""
    import SimpleITK as sitk

    if isinstance(start, sitk.Euler2DTransform):
        size = fixed.GetSize()
        start.SetCenter([(side - 1) / 2 for side in size])
    method = _mutual_information()
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=1.0, minStep=1e-3, numberOfIterations=200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _affine(fixed: "sitk.Image", moving: "sitk.Image") -> "sitk.Transform":
    import SimpleITK as sitk

    turned = _linear(sitk.Euler2DTransform(), fixed, moving)
    start = sitk.AffineTransform(2)
    start.SetCenter(turned.GetCenter())
    start.SetMatrix(turned.GetMatrix())
    start.SetTranslation(turned.GetTranslation())
    return _linear(start, fixed, moving)


def _flow_of(transform: "sitk.Transform", fixed: "sitk.Image") -> NDArray[np.float32]:
    """Sample the displacement field of a transform on the grid of the fixed image, whose pixels are 1 mm wide."""
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, fixed.GetSize())
    return np.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 0, 1), np.float32)


def _by_ants(fixed: NDArray[np.float32], moving: NDArray[np.float32], **settings: str) -> NDArray[np.float32]:
    """Register by ANTsPy, whose arrays have x first, and compose its transforms to one displacement field."""
    import ants

    with tempfile.TemporaryDirectory() as folder:
        images = [ants.from_numpy(np.ascontiguousarray(image.T, np.float32)) for image in (fixed, moving)]
        registration = ants.registration(*images, outprefix=f"{folder}/", random_seed=1, **settings)
        path = ants.apply_transforms(*images, registration["fwdtransforms"], compose=f"{folder}/composed")
        field = ants.image_read(path).numpy()
    return np.ascontiguousarray(field.transpose(2, 1, 0), np.float32)


if __name__ == "__main__":
    _register_files(*sys.argv[1:])
