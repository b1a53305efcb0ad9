"""Displacement fields for other programs: SimpleITK and ANTs apply them with the result of our own warp."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.examples import SHAPE, folders, picture, run_command
from utils.files import FileError
from utils.geometry.fit import Fit
from utils.geometry.warp import apply_flow
from utils.imaging.flows import FLOW_SUFFIXES, flow_files, load_flow, save_flow
from utils.imaging.images import read_image, write_image
from utils.landmarks import carry_points

FORMATS = tuple(FLOW_SUFFIXES)
POINTS = np.stack(np.meshgrid(np.linspace(12, 66, 7), np.linspace(12, 50, 6)), -1).reshape(-1, 2)


@pytest.fixture
def flow() -> np.ndarray:
    return np.stack([12 * (picture(seed) - 0.5) for seed in (5, 6)])


def transform_of(path) -> sitk.Transform:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_written_is_read_again(tmp_path, flow, format_) -> None:
    path = tmp_path / f"a.b{FLOW_SUFFIXES[format_]}"
    save_flow(path, flow)
    np.testing.assert_allclose(load_flow(path, SHAPE), flow, atol=1e-6)
    assert flow_files(tmp_path) == {"a.b": path}


@pytest.mark.parametrize("format_", FORMATS[1:])
def test_simpleitk_applies_our_fields(tmp_path, flow, format_) -> None:
    path = tmp_path / f"a{FLOW_SUFFIXES[format_]}"
    save_flow(path, flow)
    image = picture(1)
    moving = sitk.GetImageFromArray(image)
    actual = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform_of(path), sitk.sitkLinear, -1.0))
    inside = actual >= 0
    np.testing.assert_allclose(actual[inside], apply_flow(image, flow)[inside], atol=1e-4)
    assert inside.mean() > 0.9
    places = np.array([transform_of(path).TransformPoint(point.tolist()) for point in POINTS])
    assert np.linalg.norm(places - carry_points(POINTS, flow), axis=1).max() < 0.01  # mm


@pytest.mark.parametrize("format_", FORMATS[1:])
def test_ants_applies_our_fields(tmp_path, flow, format_) -> None:
    ants = pytest.importorskip("ants")
    path = tmp_path / f"a{FLOW_SUFFIXES[format_]}"
    save_flow(path, flow)
    image = picture(1)
    moving = ants.from_numpy(np.ascontiguousarray(image.T))
    actual = ants.apply_transforms(moving, moving, [str(path)], interpolator="linear").numpy().T
    rows, columns = np.indices(SHAPE) + flow[::-1]
    inside = (rows > 0) & (rows < SHAPE[0] - 1) & (columns > 0) & (columns < SHAPE[1] - 1)
    np.testing.assert_allclose(actual[inside], apply_flow(image, flow)[inside], atol=1e-4)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_command_writes_fields_and_their_inverses(checkpoint, tmp_path, format_) -> None:
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--save-flow", "--flow-format", format_]
    assert run_command(checkpoint, tmp_path / "out", *options) == 0
    paths = [tmp_path / f"out/CT/{kind}/001{FLOW_SUFFIXES[format_]}" for kind in ("flow", "flow_inverse")]
    flow, inverse = (load_flow(path, SHAPE) for path in paths)
    # The field of an untrained network is steep: between its pixels a line is not its exact inverse.
    left = np.linalg.norm(carry_points(carry_points(POINTS, inverse), flow) - POINTS, axis=1)
    assert np.median(left) < 0.05 and left.max() < 0.5


def test_of_unequal_sizes_field_and_inverse_apply_to_the_images_as_they_are(checkpoint, tmp_path) -> None:
    write_image(tmp_path / "fixed/a.png", picture(0))
    write_image(tmp_path / "moving/a.png", picture(1, (140, 150)))
    options = ["--modality", "CT", "--fixed", str(tmp_path / "fixed"), "--moving", str(tmp_path / "moving")]
    assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow", "--flow-format", "itk") == 0
    forth, back = (tmp_path / f"out/CT/{kind}/a.mha" for kind in ("flow", "flow_inverse"))
    assert load_flow(forth).shape == (2, *SHAPE) and load_flow(back).shape == (2, 140, 150)
    forward = np.array([transform_of(forth).TransformPoint(point.tolist()) for point in POINTS])
    again = np.array([transform_of(back).TransformPoint(point.tolist()) for point in forward])
    inside = ((forward > 0) & (forward < [149, 139])).all(axis=1)
    # Of an untrained network the field is steep, and near the border its inverse lies beyond the grid.
    assert inside.sum() > 10 and np.median(np.linalg.norm(again - POINTS, axis=1)[inside]) < 0.15
    fixed, moving = (sitk.GetImageFromArray(read_image(tmp_path / f"{role}/a.png")) for role in ("fixed", "moving"))
    actual = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform_of(forth), sitk.sitkLinear))
    aligned = read_image(tmp_path / "out/CT/aligned/a.png")
    assert np.abs(actual - aligned)[4:-4, 4:-4].mean() < 0.02


def test_fields_of_volumes_in_all_formats(checkpoint, tmp_path) -> None:
    affine = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 4, -10], [0, 0, 0, 1]])
    stack = np.stack([picture(seed) for seed in range(6)]).transpose(2, 1, 0)
    for name, values in (("mri", 900 * stack[..., :3]), ("ct", 2000 * stack[..., 3:] - 1000)):
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}.nii")
    options = ["--modality", "CT", "--fixed", str(tmp_path / "mri.nii"), "--moving", str(tmp_path / "ct.nii")]
    fields = {}
    for format_ in FORMATS:
        output = tmp_path / format_
        assert run_command(checkpoint, output, *options, "--save-flow", "--flow-format", format_) == 0
        assert (output / "CT/flow").exists() == (format_ == "npy")
        suffix = ".mha" if format_ == "itk" else ".nii.gz"
        fields[format_] = transform_of(output / f"CT/displacement{suffix}")
    moving = sitk.ReadImage(str(tmp_path / "ct.nii"))
    for format_, field in fields.items():
        aligned = nib.load(tmp_path / format_ / "CT/aligned.nii.gz").get_fdata().T
        actual = sitk.GetArrayFromImage(sitk.Resample(moving, moving, field, sitk.sitkLinear, -5000.0))
        inside = actual > -2000
        assert inside.mean() > 0.8 and np.abs(actual - aligned)[inside].max() < 0.5  # of 2000


def test_a_format_without_flows_is_refused(checkpoint, tmp_path, capsys) -> None:
    options = ["--modality", "CT", *folders(tmp_path, pairs=1), "--flow-format", "itk"]
    with pytest.raises(SystemExit):
        run_command(checkpoint, tmp_path / "out", *options)
    assert "--flow-format itk: expected --save-flow with it, found none" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["damaged", "a volume's", "another size", "turned"])
def test_other_files_are_no_flows(tmp_path, flow, case) -> None:
    path = tmp_path / "a.mha"
    save_flow(path, flow)
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:300])
    elif case == "a volume's":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 64, 80, 3)), isVector=True), str(path))
    elif case == "turned":
        image = sitk.ReadImage(str(path))
        image.SetDirection((0.0, 1.0, -1.0, 0.0))
        sitk.WriteImage(image, str(path))
    with pytest.raises(FileError, match=r"a.mha: expected .*, found"):
        load_flow(path, (70, 70) if case == "another size" else SHAPE)


def test_fits_convert_flows_both_ways(flow) -> None:
    fit = Fit(1.7, 12.0, -5.0)
    np.testing.assert_allclose(fit.to_frame(fit.to_original(flow)), flow, atol=1e-4)


def test_axes_of_a_tilted_gantry_are_kept_by_itk_and_refused_for_nifti(checkpoint, tmp_path, capsys) -> None:
    affine = np.array([[-1.5, 0, 0, 20], [0, -1.5, 1, 30], [0, 0, 4, -10], [0, 0, 0, 1]])
    for name in ("mri", "ct"):
        values = np.stack([picture(seed) for seed in range(3)]).transpose(2, 1, 0)
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}.nii")
    options = ["--modality", "CT", "--fixed", str(tmp_path / "mri.nii"), "--moving", str(tmp_path / "ct.nii")]
    assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow") == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "tilted" in line)
    assert "mri.nii: expected axes at right angles" in line and "14.0 degrees" in line
    assert not (tmp_path / "out").exists()
    assert run_command(checkpoint, tmp_path / "out", *options, "--save-flow", "--flow-format", "itk") == 0
    direction = np.reshape(sitk.ReadImage(str(tmp_path / "out/CT/displacement.mha")).GetDirection(), (3, 3))
    np.testing.assert_allclose(direction[:, 2], np.array([0, -1, 4]) / np.sqrt(17), atol=1e-6)
