"""Landmarks, label maps and masks through the test command, and how they score."""

import nibabel as nib
import numpy as np
import pytest
import torch

from data.pairs import PairFiles
from inference.marks import score_marks
from inference.pair_fuser import PairFuser
from models.checkpoint import load_checkpoint
from tests.examples import SAMPLE, folders, picture, read_table, run_command
from utils.arguments import DEFAULT_CHECKPOINT
from utils.geometry.fit import Fit
from utils.imaging.images import read_image, write_image
from utils.imaging.label_maps import write_label_map
from utils.maps import jacobian_determinant

SHAPE = (64, 80)
AFFINE = np.array([[-1.5, 0, 0, 60], [0, -1.5, 0, 48], [0, 0, 4, -10], [0, 0, 0, 1.0]])


def boxes(shift: int = 0) -> np.ndarray:
    """Two labels, moved to the right."""
    labels = np.zeros(SHAPE, np.int32)
    labels[10:30, 20 + shift : 40 + shift], labels[40:50, 20 + shift : 60 + shift] = 3, 12
    return labels


def points(path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["x,y,z" if len(rows[0]) == 3 else "x,y", *(",".join(map(str, row)) for row in rows)]))
    return str(path)


@pytest.fixture
def marked(tmp_path) -> PairFiles:
    """A pair whose moving image lies 5 px further right."""
    roles = "fixed", "moving", "fixed_segmentation", "moving_segmentation"
    files = {role: tmp_path / f"{role}.png" for role in roles}
    for role in ("fixed", "moving"):
        write_image(files[role], picture(1))
    write_label_map(files["fixed_segmentation"], boxes())
    write_label_map(files["moving_segmentation"], boxes(5))
    for role, shift in (("fixed", 0), ("moving", 5)):
        files[f"{role}_landmarks"] = tmp_path / f"{role}.csv"
        points(files[f"{role}_landmarks"], [(20 + shift, 10), (40 + shift, 30), (30 + shift, 44)])
    return PairFiles("a", **files)


def test_the_true_flow_leaves_no_error_and_half_of_it_half(marked) -> None:
    flow = np.zeros((2, *SHAPE), np.float32)
    flow[0] = 5
    scores = score_marks(marked, flow, None)
    assert scores == pytest.approx(
        {"tre": 0, "tre_before": 5, "dice": 1, "dice_before": (0.75 + 0.875) / 2, "dice_3": 1, "dice_12": 1}
    )
    half = score_marks(marked, flow / 2, None)
    assert half["tre"] == pytest.approx(2.5) and scores["dice_before"] < half["dice"] < 1


def test_distances_are_in_px_of_the_fixed_image_whatever_the_size_of_the_moving_one(marked, tmp_path) -> None:
    write_image(marked.moving, picture(1, (128, 160)))
    write_label_map(marked.moving_segmentation, np.kron(boxes(5), np.ones((2, 2), np.int32)))
    points(marked.moving_landmarks, [(2 * x + 0.5, 2 * y + 0.5) for x, y in ((25, 10), (45, 30), (35, 44))])
    flow = np.zeros((2, *SHAPE), np.float32)
    scores = score_marks(marked, flow, Fit(2.0, 0.5, 0.5))
    assert scores["tre"] == pytest.approx(5) == scores["tre_before"] and scores["dice_3"] == pytest.approx(0.75)
    flow[0] = 5
    assert score_marks(marked, flow, Fit(2.0, 0.5, 0.5))["dice"] == pytest.approx(1)


def test_folders_of_marks_are_matched_by_name(checkpoint, tmp_path) -> None:
    options = ["--modality", "CT", *folders(tmp_path)]
    for name in ("001", "002"):
        for role, shift in (("fixed", 0), ("moving", 4)):
            points(tmp_path / f"{role}_points/{name}.csv", [(20 + shift, 10), (40 + shift, 30)])
            write_label_map(tmp_path / f"{role}_maps/{name}.png", boxes(shift))
    marks = ["--landmarks", f"{tmp_path}/fixed_points", f"{tmp_path}/moving_points"]
    marks += ["--segmentations", f"{tmp_path}/fixed_maps", f"{tmp_path}/moving_maps"]
    assert run_command(checkpoint, tmp_path / "out", *options, *marks) == 0
    table = read_table(tmp_path / "out/CT/metrics.csv")
    assert list(table["name"]) == ["001", "002", "mean"] and np.allclose(table["tre_before"], 4)
    assert table[["tre", "dice", "dice_before", "dice_3", "dice_12"]].notna().all(axis=None)
    assert "TRE" in (tmp_path / "out/CT/report.html").read_text()
    # Taken over as they are; other points make another pair.
    assert run_command(checkpoint, tmp_path / "out", *options, *marks, "--resume") == 0
    assert read_table(tmp_path / "out/CT/metrics.csv").equals(table)
    points(tmp_path / "moving_points/002.csv", [(20, 10), (40, 30)])
    assert run_command(checkpoint, tmp_path / "out", *options, *marks, "--resume") == 0
    assert list(read_table(tmp_path / "out/CT/metrics.csv")["tre_before"]) == pytest.approx([4, 0, 2])


@pytest.mark.parametrize("case", ["lacking", "other number", "other size", "no pairs", "beside", "mask size"])
def test_marks_that_do_not_fit_are_named_before_anything_is_written(checkpoint, tmp_path, capsys, case) -> None:
    options = ["--modality", "CT", *folders(tmp_path)]
    for name in ("001", "002"):
        for role in ("fixed", "moving"):
            points(tmp_path / f"{role}_points/{name}.csv", [(20, 10), (40, 30)])
        write_label_map(tmp_path / f"maps/{name}.png", boxes())
    marks = ["--landmarks", f"{tmp_path}/fixed_points", f"{tmp_path}/moving_points"]
    if case == "lacking":
        (tmp_path / "moving_points/002.csv").unlink()
    elif case == "other number":
        points(tmp_path / "moving_points/002.csv", [(20, 10)])
    elif case == "beside":
        points(tmp_path / "moving_points/002.csv", [(20, 10), (80, 10)])
    elif case == "no pairs":
        options = []
    else:
        write_label_map(tmp_path / "maps/002.png", boxes()[:, :-4])
        marks = ["--mask", f"{tmp_path}/maps"] if "mask" in case else ["--segmentations", *[f"{tmp_path}/maps"] * 2]
    try:
        code = run_command(checkpoint, tmp_path / "out", *options, *marks)
    except SystemExit as exit_:
        code = exit_.code
    (line,) = capsys.readouterr().err.splitlines()
    named = {"lacking": "moving_points", "no pairs": "--landmarks"}.get(case, "002")
    assert code == 2 and named in line and "expected" in line and "found" in line and not (tmp_path / "out").exists()


class TestVolumes:
    @pytest.fixture
    def options(self, tmp_path):
        """Two volumes one above the other in their headers, slices of one index belong together."""
        stack = np.stack([picture(seed) for seed in range(6)]).transpose(2, 1, 0)
        for name, values in (("mri", 900 * stack[..., :3]), ("ct", 2000 * stack[..., 3:] - 1000)):
            nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), tmp_path / f"{name}.nii")
        return ["--modality", "CT", "--fixed", f"{tmp_path}/mri.nii", "--moving", f"{tmp_path}/ct.nii"]

    def labels(self, path, shift: int = 0, count: int = 3) -> str:
        labels = np.stack([boxes(shift)] * count).transpose(2, 1, 0)
        nib.save(nib.Nifti1Image(labels.astype(np.int16), AFFINE), path)
        return str(path)

    def test_errors_are_in_mm_and_voxels_and_overlap_is_that_of_the_volume(self, checkpoint, tmp_path, options) -> None:
        fixed = [(20, 10, 2), (10, 0, -6)]
        moving = [(20, 13, 2), (10, 3, -6)]  # 3 mm are 2 px
        marks = ["--landmarks", points(tmp_path / "f.csv", fixed), points(tmp_path / "m.csv", moving)]
        marks += ["--segmentations", self.labels(tmp_path / "f.nii"), self.labels(tmp_path / "m.nii", 5)]
        assert run_command(checkpoint, tmp_path / "out", *options, *marks, "--rigid-only") == 0
        table = read_table(tmp_path / "out/CT/metrics.csv")
        assert len(table) == 4
        for name, value in (("tre_mm", 3), ("tre", 2), ("dice", 0.8125), ("dice_3", 0.75), ("dice_12", 0.875)):
            np.testing.assert_allclose(table[name], value, rtol=1e-5)
        # Voxels of the files' own arrays say the same.
        inverse = np.linalg.inv(AFFINE)
        for name, rows in (("f", fixed), ("m", moving)):
            indices = nib.affines.apply_affine(inverse, rows)
            text = "\n".join(",".join(map(str, row)) for row in indices)
            (tmp_path / f"{name}.csv").write_text(f"i,j,k\n{text}\n")
        assert run_command(checkpoint, tmp_path / "out", *options, *marks[:3], "--rigid-only") == 0
        np.testing.assert_allclose(read_table(tmp_path / "out/CT/metrics.csv")["tre_mm"], 3, rtol=1e-5)

    @pytest.mark.parametrize("option", ["--segmentations", "--mask"])
    def test_marks_on_another_grid_are_named(self, checkpoint, tmp_path, options, capsys, option) -> None:
        path = self.labels(tmp_path / "labels.nii", count=2)
        marks = [option, *[path] * (2 if option == "--segmentations" else 1)]
        assert run_command(checkpoint, tmp_path / "out", *options, *marks) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected the grid of its volume, 3 slices of 80 x 64, found 2 slices" in line

    def test_a_mask_is_taken_along(self, checkpoint, tmp_path, options) -> None:
        plain, masked = tmp_path / "plain", tmp_path / "masked"
        more = ["--save-flow", "--save-maps"]
        assert run_command(checkpoint, plain, *options, *more) == 0
        assert run_command(checkpoint, masked, *options, *more, "--mask", self.labels(tmp_path / "mask.nii")) == 0
        inside = boxes() > 0
        for name in ("mri_000", "mri_002"):
            gate = np.load(masked / f"CT/maps/values/{name}.npz")["gate"]
            assert not gate[inside].any() and gate[~inside].min() > 0
            flows = [np.load(folder / f"CT/flow/{name}.npy") for folder in (plain, masked)]
            assert np.abs(flows[0] - flows[1]).max() > 0


@pytest.fixture(scope="module")
def fuse() -> PairFuser:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    return PairFuser(checkpoint.model, torch.device("cpu"), passes=1, average=True, multistart=False)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair of the sample and a mask of 40 px in its brain."""
    name = sorted((SAMPLE / "CT/fixed").iterdir())[0].name
    rows, columns = np.indices((256, 256))
    mask = (rows - 110) ** 2 + (columns - 150) ** 2 < 20**2
    return read_image(SAMPLE / "CT/fixed" / name), read_image(SAMPLE / "CT/moving" / name), mask


class TestMask:
    def test_what_lies_within_has_no_say(self, fuse, pair) -> None:
        fixed, moving, mask = pair
        noise = np.random.default_rng(0).random(moving.shape, dtype=np.float32)
        flows = [fuse(fixed, image, mask=mask).flow for image in (moving, np.where(mask, noise, moving))]
        np.testing.assert_allclose(flows[0], flows[1], atol=1e-3)
        with_say = fuse(fixed, np.where(mask, noise, moving)).flow
        assert np.abs(with_say - flows[0])[:, mask].max() > 0.5

    def test_elsewhere_the_field_stays_and_within_it_goes_on_without_a_fold(self, fuse, pair) -> None:
        fixed, moving, mask = pair
        plain, masked = fuse(fixed, moving), fuse(fixed, moving, mask=mask)
        rows, columns = np.indices((256, 256))
        far = (rows - 110) ** 2 + (columns - 150) ** 2 > 50**2
        assert np.linalg.norm(plain.flow - masked.flow, axis=0)[far].mean() < 0.3
        assert jacobian_determinant(torch.from_numpy(masked.flow)[None]).min() > 0
        around = masked.flow[:, ~mask]
        assert around.min() < masked.flow[:, mask].min() and masked.flow[:, mask].max() < around.max()
        assert not masked.maps["gate"][mask].any() and plain.maps["gate"][mask].any()

    def test_the_command_takes_masks_by_name(self, checkpoint, tmp_path) -> None:
        options = ["--modality", "CT", *folders(tmp_path)]
        for name in ("001", "002"):
            write_label_map(tmp_path / f"masks/{name}.png", boxes() * 20)
        assert run_command(checkpoint, tmp_path / "out", *options, "--mask", f"{tmp_path}/masks", "--save-maps") == 0
        gate = np.load(tmp_path / "out/CT/maps/values/002.npz")["gate"]
        assert not gate[boxes() > 0].any() and gate[boxes() == 0].min() > 0
