"""Volumes through the test command: grids, windows, headers, and what is said of them."""

import json
import shutil
from itertools import islice

import nibabel as nib
import numpy as np
import pytest
import torch

from inference.scoring_pool import scored
from inference.volumes import checks as volume_checks
from inference.volumes.pair import read_volumes
from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import folders, picture, pull, read_table, run_command
from tests.utils.test_volumes import series
from utils.imaging.images import read_image, write_image
from utils.imaging.volumes import looks_like_hu, robust_window
from utils.signals import INTERRUPTED


class TestVolumes:
    AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 4, -10], [0, 0, 0, 1]])

    def save(self, path, volume):
        """Write (S, H, W) as the slices that the reader shows: x runs left, y back in this affine, as in the images."""
        nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), self.AFFINE), path)
        return str(path)

    @pytest.fixture
    def options(self, tmp_path):
        stack = np.stack([picture(seed) for seed in range(6)])
        fixed = self.save(tmp_path / "head.nii.gz", 900 * stack[:3])
        moving = self.save(tmp_path / "ct.nii.gz", 2000 * stack[3:] - 1000)
        return ["--modality", "CT", "--fixed", fixed, "--moving", moving]

    def test_slices_become_volumes_on_the_fixed_grid(self, checkpoint, tmp_path, options):
        fixed = nib.Nifti1Image(nib.load(options[3]).get_fdata(), self.AFFINE)
        fixed.set_sform(self.AFFINE, 1)
        fixed.set_qform(self.AFFINE, 1)
        nib.save(fixed, options[3])
        assert run_command(checkpoint, tmp_path / "out", *options, "--window", "0", "2000", "--save-flow") == 0
        folder = tmp_path / "out/CT"
        assert len(read_table(folder / "metrics.csv")) == 4 and (folder / "report.html").is_file()
        aligned, fused = (nib.load(folder / f"{kind}.nii.gz") for kind in ("aligned", "fused"))
        for image in (aligned, fused):
            assert image.shape == (80, 64, 3) and np.allclose(image.affine, self.AFFINE)
            for form in (image.get_sform(coded=True), image.get_qform(coded=True)):
                assert form[1] == 1 and np.allclose(form[0], self.AFFINE)
        moving = nib.load(options[-1]).get_fdata().transpose(2, 1, 0)
        for number in range(3):
            flow = np.load(folder / f"flow/head_{number:03}.npy")
            expected = pull(moving[number], flow) / 255
            # At the border ITK takes the nearest pixel, without interpolation along it.
            within = [(x >= 0) & (x <= n - 1) for x, n in zip(np.indices((64, 80)) + flow[::-1], (64, 80), strict=True)]
            different = np.abs(aligned.get_fdata()[..., number].T - expected)[within[0] & within[1]]
            assert different.size > 4000 and different.max() < 2.0
            saved = read_image(folder / f"fused/head_{number:03}.png")
            np.testing.assert_allclose(fused.get_fdata()[..., number].T, saved, atol=1e-6)

    @pytest.mark.parametrize("numbers", [("nan", "80"), ("inf", "80"), ("40", "nan"), ("40", "0"), ("40", "-80")])
    def test_windows_are_finite_and_wide(self, checkpoint, tmp_path, options, capsys, numbers):
        with pytest.raises(SystemExit, match="2"):
            run_command(checkpoint, tmp_path / "out", *options, "--window", *numbers)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"--window: expected two finite numbers, the width above 0, found {' '.join(numbers)}")

    @pytest.mark.parametrize("center", ["4000", "-4000"])
    def test_windows_show_something(self, checkpoint, tmp_path, options, capsys, center):
        assert run_command(checkpoint, tmp_path / "out", *options, "--window", center, "80") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--window: expected a window within the moving volume's values, -1000 to 1000, found one from" in line
        assert f"from {int(center) - 40} to {int(center) + 40}" in line and not (tmp_path / "out").exists()

    def test_the_window_stands_in_the_report(self, checkpoint, tmp_path, options):
        assert run_command(checkpoint, tmp_path / "out", *options, "--window", "-10", "900") == 0
        assert "center -10, width 900" in (tmp_path / "out/CT/report.html").read_text()
        assert run_command(checkpoint, tmp_path / "default", *options) == 0
        assert "center 40, width 80" in (tmp_path / "default/CT/report.html").read_text()

    def test_brain_window_is_the_default_for_hounsfield_units(self, options):
        levels = read_volumes("CT", options[3], options[5]).levels["moving"]
        values = nib.load(options[5]).get_fdata().transpose(2, 1, 0)
        np.testing.assert_allclose(levels, np.clip(values / 80, 0, 1), atol=1e-5)
        fixed = read_volumes("CT", options[3], options[5]).levels["fixed"]
        assert fixed.min() == 0 and fixed.max() == 1 and 0.2 < fixed.mean() < 0.8

    def test_ct_that_is_not_shown_in_the_brain_window_is_named(self, checkpoint, tmp_path, options, capsys):
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        assert "Hounsfield" not in capsys.readouterr().err
        defaced = np.clip(nib.load(options[5]).get_fdata(), 0, None)
        nib.save(nib.Nifti1Image(defaced.astype(np.float32), self.AFFINE), options[5])
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "Hounsfield" in line]
        assert f"{options[5]}: expected Hounsfield units" in line and "window of center" in line and "--window" in line
        assert run_command(checkpoint, tmp_path / "out", *options, "--window", "40", "80") == 0
        assert "Hounsfield" not in capsys.readouterr().err

    def test_only_ct_of_unknown_units_is_taken_for_hounsfield_units(self, tmp_path, options):
        # Counts of PET with noise below zero, which look like Hounsfield units.
        noise = np.random.default_rng(0).normal(0, 9000, (3, 64, 80))
        path = self.save(tmp_path / "pet.nii", noise + 20_000 * np.stack([picture(seed) for seed in range(3)]))
        values = nib.load(path).get_fdata(dtype=np.float32)
        assert looks_like_hu(values)
        assert read_volumes("CT", options[3], path).window == (40, 80)
        for modality in ("PET", "SPECT"):
            assert read_volumes(modality, options[3], path).window == robust_window(values)

    def test_the_window_does_not_hang_on_the_field_of_view_of_the_fixed_volume(self, tmp_path, options):
        moving = self.save(tmp_path / "pet.nii", 300 * np.stack([picture(seed) for seed in range(3)]))
        wide = self.save(tmp_path / "mri.nii", np.stack([np.pad(picture(seed), 30) for seed in range(3)]))
        own, resampled = (read_volumes("PET", fixed, moving, resample=True).window for fixed in (moving, wide))
        assert own == resampled

    @pytest.mark.parametrize("modality", ["PET", "SPECT"])
    def test_a_fused_volume_in_colour_opens_in_viewers(self, tmp_path, checkpoint, options, modality):
        options = ["--modality", modality, *options[2:]]
        assert run_command(checkpoint, tmp_path / "out", *options, "--colormap", "hot") == 0
        folder = tmp_path / "out" / modality
        volume, grey = (nib.load(folder / f"{kind}.nii.gz") for kind in ("fused_rgb", "fused"))
        assert volume.header["datatype"] == 128 and volume.header["bitpix"] == 24  # NIfTI's RGB24
        assert volume.shape == grey.shape and np.allclose(volume.affine, self.AFFINE)
        colors = np.asarray(volume.dataobj)
        assert colors.dtype.names == ("R", "G", "B")
        pictures = [read_image(path, color=True) for path in sorted((folder / "fused").glob("*.png"))]
        shown = np.stack([np.stack([colors[channel] for channel in "RGB"])[..., z].T for z in range(len(pictures))])
        np.testing.assert_array_equal(shown, np.rint(255 * np.stack(pictures)))
        assert np.ptp(shown, axis=3).max() > 100
        assert (read_table(folder / "metrics.csv")["saturation_kept"] > 0.3).all()
        pictures = [read_image(path) for path in sorted((folder / "fused_grey").glob("*.png"))]
        np.testing.assert_allclose(np.moveaxis(grey.get_fdata(), (0, 1, 2), (2, 1, 0)), pictures, atol=1e-6)

    def test_moving_volume_and_label_have_one_scale(self, tmp_path, options):
        # No Hounsfield units; the label has more of nothing around the head, so percentiles of its own.
        moving = 300 * np.stack([picture(seed) for seed in range(3)])
        label = np.where(moving > 150, moving, 0)
        paths = [self.save(tmp_path / f"{name}.nii", x) for name, x in (("moving", moving), ("label", label))]
        levels = read_volumes("CT", options[3], *paths).levels
        inside = moving > 150
        np.testing.assert_allclose(levels["label"][inside], levels["moving"][inside], atol=1e-6)
        low, high = np.percentile(moving, (1, 99.5))
        np.testing.assert_allclose(levels["moving"], np.clip((moving - low) / (high - low), 0, 1), atol=1e-4)

    def test_a_label_map_in_the_place_of_the_moving_volume_is_named(self, checkpoint, tmp_path, options, capsys):
        labels = np.rint(5 * np.stack([picture(seed) for seed in range(3)]))
        moving = self.save(tmp_path / "labels.nii", labels)
        assert run_command(checkpoint, tmp_path / "out", *options[:4], "--moving", moving, "--passes", "0") == 0
        assert "labels.nii: expected an image, found what looks like a label map" in capsys.readouterr().err

    def test_volumes_of_another_kind_are_named(self, tmp_path, options):
        volumes = read_volumes("CT", options[3], options[5])
        assert volumes.of_other_kind("CT") == {}  # NIfTI does not say
        kinds = {"fixed": "CT", "moving": "MR"}
        swapped = volumes._replace(
            volumes={role: x._replace(modality=kinds[role]) for role, x in volumes.volumes.items()}
        )
        assert swapped.of_other_kind("CT") == kinds
        right = {"fixed": "MR", "moving": "PT"}
        volumes = volumes._replace(
            volumes={role: x._replace(modality=right[role]) for role, x in volumes.volumes.items()}
        )
        assert volumes.of_other_kind("PET") == {} and volumes.of_other_kind("CT") == {"moving": "PT"}

    def test_resample_brings_the_moving_volume_onto_the_fixed_grid(self, checkpoint, tmp_path, options, capsys):
        # The same voxels but one slice higher up, and one slice more: only the header says so.
        values = nib.load(options[5]).get_fdata()
        affine = self.AFFINE.copy()
        affine[2, 3] -= 4
        higher = np.concatenate((values[..., :1], values), axis=2)
        nib.save(nib.Nifti1Image(higher.astype(np.float32), affine), options[5])
        levels = read_volumes("CT", options[3], options[5], resample=True).levels["moving"]
        np.testing.assert_allclose(levels, np.clip(values.transpose(2, 1, 0) / 80, 0, 1), atol=1e-4)
        assert run_command(checkpoint, tmp_path / "out", *options, "--resample") == 0
        assert "mm off" not in capsys.readouterr().err
        aligned = nib.load(tmp_path / "out/CT/aligned.nii.gz")
        assert aligned.shape == (80, 64, 3) and np.allclose(aligned.affine, self.AFFINE)

    def test_resample_takes_the_label_along(self, tmp_path, options):
        values, affine = nib.load(options[5]).get_fdata(), self.AFFINE.copy()
        affine[0, 3] += 3 * 1.5  # columns run to the left, where x falls
        label = str(tmp_path / "label.nii.gz")
        for path in (options[5], label):
            nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
        volumes = read_volumes("CT", options[3], options[5], label, resample=True).volumes
        for role in ("moving", "label"):
            actual = volumes[role].slices[..., :-3]
            np.testing.assert_allclose(actual, values.transpose(2, 1, 0)[..., 3:], atol=1e-2)

    def test_slices_know_the_shape_of_their_pixels(self, tmp_path, options):
        for path in (options[3], options[5]):  # rows further apart than columns
            nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), self.AFFINE @ np.diag([1, 1.4, 1, 1])), path)
        pairs = read_volumes("CT", options[3], options[5]).write_slices(tmp_path / "slices")
        assert [pair.aspect for pair in pairs] == pytest.approx([1.4] * 3)

    @pytest.mark.parametrize(("distance", "named"), [(0.4, False), (0.6, True)])
    def test_half_a_millimetre_is_off_the_grid(self, options, distance, named):
        affine = self.AFFINE.copy()
        affine[1, 3] += distance
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        off = read_volumes("CT", options[3], options[5]).off_grid()
        assert off == ({"moving": pytest.approx(distance, abs=1e-3)} if named else {})

    @pytest.mark.parametrize(("space", "by_place"), [("1.2.3", True), (None, False)])
    def test_volumes_of_one_scanner_go_by_their_place(self, tmp_path, space, by_place):
        stack = np.stack([np.rint(1000 * picture(seed)) for seed in range(5)])
        for role, first in (("fixed", 0), ("moving", 1)):
            places = [(0, 0, 4.0 * (number + first)) for number in range(4)]
            series(tmp_path / role, stack[first : first + 4], places, FrameOfReferenceUID=space)
        volumes = read_volumes("CT", tmp_path / "fixed", tmp_path / "moving")
        assert volumes.covered == ({"moving": 0.75} if by_place else {})
        if by_place:
            result = volumes.volumes["moving"].slices[1:]
            np.testing.assert_allclose(result, volumes.volumes["fixed"].slices[1:], atol=0.01)

    def test_resampled_volumes_of_another_space_and_of_little_overlap_are_named(
        self, checkpoint, tmp_path, options, capsys, monkeypatch
    ):
        monkeypatch.setattr("inference.run.check_chosen", lambda options, pairs, left_out: (pairs, left_out))
        monkeypatch.setattr("inference.run.fuse_and_score", lambda *_: 0)
        affine = self.AFFINE.copy()
        affine[2, 3] += 4
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        assert run_command(checkpoint, tmp_path / "out", *options, "--resample") == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{options[5]}: expected" in line and "covers 67 % of the fixed volume" in line
        volumes = read_volumes("CT", options[3], options[3], resample=True)
        assert volumes.covered == {"moving": 1} and volumes.of_other_space() == []
        spaces = {"fixed": "1.2", "moving": "1.3"}
        volumes = volumes._replace(
            volumes={role: x._replace(space=spaces[role]) for role, x in volumes.volumes.items()},
            window=volume_checks.BRAIN_WINDOW,
        )
        assert volumes.of_other_space() == ["moving"]
        monkeypatch.setattr(volume_checks, "read_volumes", lambda *_, **__: volumes)
        assert run_command(checkpoint, tmp_path / "out", *options, "--resample") == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{options[5]}: expected the DICOM frame of reference of {options[3]}, found another" in line

    def test_a_coarse_moving_volume_is_resampled(self, checkpoint, tmp_path, options):
        coarse = np.repeat(nib.load(options[5]).get_fdata()[::2, ::2], 2, axis=2)
        assert coarse.shape[:2] == (40, 32)
        affine = self.AFFINE @ np.diag([2, 2, 0.5, 1])
        nib.save(nib.Nifti1Image(coarse.astype(np.float32), affine), options[5])
        for extra in ((), ("--resample",)):
            assert run_command(checkpoint, tmp_path / "out", *options, *extra) == 0
            assert nib.load(tmp_path / "out/CT/aligned.nii.gz").shape == (80, 64, 3)

    def test_volumes_at_other_places_are_taken_as_they_lie_with_a_warning(self, checkpoint, tmp_path, options, capsys):
        affine = self.AFFINE.copy()
        affine[2, 3] -= 4
        nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), affine), options[5])
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "mm off" in line)
        assert options[5] in line and "4.0 mm off" in line and "--resample" in line
        for kind in ("aligned", "fused"):
            assert np.allclose(nib.load(tmp_path / f"out/CT/{kind}.nii.gz").affine, self.AFFINE)

    def test_an_interrupted_run_leaves_no_volumes_and_report_of_others(
        self, checkpoint, tmp_path, options, capsys, monkeypatch
    ):
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        files = [tmp_path / "out/CT" / name for name in ("aligned.nii.gz", "fused.nii.gz", "report.html")]
        options[5] = self.save(tmp_path / "other.nii", 2000 * np.stack([picture(seed) for seed in (7, 8, 9)]) - 1000)
        with monkeypatch.context() as patch:
            patch.setattr("inference.run.scored", lambda *x: ())
            assert run_command(checkpoint, tmp_path / "out", *options) == INTERRUPTED
            assert all(path.exists() for path in files)  # so is their table
            capsys.readouterr()
            patch.setattr("inference.run.scored", lambda *x: islice(scored(*x), 2))
            assert run_command(checkpoint, tmp_path / "out", *options) == INTERRUPTED
        assert not any(path.exists() for path in files)
        assert "1 result of an earlier run as well: head_002\n" in capsys.readouterr().err
        assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0
        assert all(path.exists() for path in files)

    @pytest.mark.parametrize("role", ["fixed", "moving"])
    def test_volumes_without_orientation_are_named_and_not_resampled(
        self, checkpoint, tmp_path, options, capsys, monkeypatch, role
    ):
        path = options[3 if role == "fixed" else 5]
        nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), None), path)
        assert run_command(checkpoint, tmp_path / "out", *options, "--resample") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected a header that says how the volume lies" in line and "found neither" in line
        monkeypatch.setattr("inference.run.check_chosen", lambda options, pairs, left_out: (pairs, left_out))
        monkeypatch.setattr("inference.run.fuse_and_score", lambda *_: 0)
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        (line,) = capsys.readouterr().err.splitlines()  # how far apart they lie is not known
        assert f"{path}: expected" in line and "left, front and head: check left and right" in line

    @pytest.mark.parametrize(
        "case", ["damaged", "apart", "small", "window without volumes", "resample without volumes"]
    )
    def test_bad_volumes(self, checkpoint, tmp_path, options, capsys, case):
        if case == "damaged":
            (tmp_path / "ct.nii.gz").write_bytes((tmp_path / "ct.nii.gz").read_bytes()[:-1000])
        elif case == "apart":
            apart = self.AFFINE.copy()
            apart[0, 3] = 1000
            nib.save(nib.Nifti1Image(nib.load(options[5]).get_fdata(), apart), options[5])
            options.append("--resample")
        elif case == "small":
            for name in ("head", "ct"):
                self.save(tmp_path / f"{name}.nii.gz", np.stack([picture(seed, (63, 80)) for seed in range(3)]))
        else:
            options = ["--modality", "CT", *folders(tmp_path, pairs=1)]
            options += ["--window", "40", "80"] if "window" in case else ["--resample"]
        try:
            code = run_command(checkpoint, tmp_path / "out", *options)
        except SystemExit as exit_:
            code = exit_.code
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and "expected" in line and "found" in line and not (tmp_path / "out").exists()

    def test_the_window_that_was_used_and_how_the_head_lies_are_kept(self, checkpoint, tmp_path, options):
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        settings = json.loads((tmp_path / "out/CT/settings.json").read_text())
        assert settings["window"] == [40, 80] and settings["prealign"] is None
        assert "slice by slice, as the files lie" in (tmp_path / "out/CT/report.html").read_text()
        assert run_command(checkpoint, tmp_path / "out", *options, "--resume") == 0

    def test_thick_sagittal_slices_are_cut_anew_and_the_results_lie_on_their_grid(self, checkpoint, tmp_path, capsys):
        # 24 sagittal slices of 6 mm: axial ones would be 24 px wide.
        stack = np.stack([picture(seed, (96, 96)) for seed in range(24)])  # (left-right, rows, columns)
        affine = np.array([[6.0, 0, 0, -69], [0, 0, -1.5, 71], [0, -1.5, 0, 71], [0, 0, 0, 1]])
        paths = [tmp_path / f"{name}.nii.gz" for name in ("mri", "ct")]
        for path, values in zip(paths, (900 * stack, 2000 * stack - 1000), strict=True):
            nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
        options = ["--modality", "CT", "--fixed", str(paths[0]), "--moving", str(paths[1]), "--rigid-only"]
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        assert "cut anew into axial slices" in capsys.readouterr().err
        assert read_image(tmp_path / "out/CT/fused/mri_050.png").shape == (96, 96)
        aligned = nib.load(tmp_path / "out/CT/aligned.nii.gz")
        assert aligned.shape == stack.shape and np.allclose(aligned.affine, affine)
        np.testing.assert_allclose(aligned.get_fdata(), nib.load(paths[1]).get_fdata(), atol=0.1)

    @pytest.mark.parametrize("sagittal", [True, False])
    def test_maps_become_volumes_on_the_fixed_grid(self, tmp_path, sagittal):
        torch.manual_seed(0)
        model = EDARFusion("tiny", expected_error=True).eval()
        torch.nn.init.normal_(model.fusion.head.weight, std=0.01)
        checkpoint = tmp_path / "tiny.safetensors"
        save_checkpoint(checkpoint, model, modality="all", training={"note": "untrained, for tests"}, metrics={})
        axial = picture(1, (72, 72))
        head = np.repeat(axial[::4][:16, None], 3, axis=1)  # 16 thick sagittal slices, 3 thin axial ones
        affine = np.array([[6.5, 0, 0, -49], [0, 0, -1.5, 53], [0, -1.5, 0, 4], [0, 0, 0, 1]])
        if not sagittal:
            affine = np.diag([-1.5, -1.5, 5, 1])
            head = np.repeat(axial[..., None], 3, axis=2)
        paths = [tmp_path / f"{name}.nii.gz" for name in ("mri", "pet")]
        for path in paths:
            nib.save(nib.Nifti1Image(900 * head.astype(np.float32), affine), path)
        options = ["--modality", "PET", "--fixed", str(paths[0]), "--moving", str(paths[1])]
        options += ["--save-maps", "--save-flow", "--prealign", "none", "--average"]
        assert run_command(checkpoint, tmp_path / "out", *options) == 0
        folder = tmp_path / "out/PET"
        names = ["aligned", "fused", "fused_rgb", "maps/gate", "maps/jacobian", "maps/expected_error"]
        for image in (nib.load(folder / f"{name}.nii.gz") for name in names):
            assert image.shape == head.shape and np.allclose(image.affine, affine)
        expected, jacobian = (nib.load(folder / f"maps/{x}.nii.gz").get_fdata() for x in ("expected_error", "jacobian"))
        assert expected.min() > 0 and jacobian.min() > 0
        assert read_table(folder / "metrics.csv")["expected_error"].min() > 0
        if not sagittal:
            slice_ = np.load(folder / "maps/values/mri_002.npz")["expected_error"]
            np.testing.assert_allclose(expected[..., 2].T, slice_, rtol=1e-5)
        field = nib.load(folder / "displacement.nii.gz")
        corners = [nib.affines.apply_affine(x.affine, np.array([[-0.5] * 3, np.array(x.shape[:3]) - 0.5]))
                   for x in (field, image)]
        for low_high in (np.min, np.max):
            np.testing.assert_allclose(*(low_high(x, axis=0) for x in corners), atol=0.75)  # half a pixel

    @pytest.mark.parametrize("role", ["fixed", "moving"])
    def test_of_a_volume_and_something_unknown_the_latter_is_named(self, checkpoint, tmp_path, options, capsys, role):
        path = tmp_path / "brain.mnc"
        path.write_bytes(b"of MINC")
        options[3 if role == "fixed" else 5] = str(path)
        assert run_command(checkpoint, tmp_path / "out", *options, "--resample") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected a .nii" in line and "found 'brain.mnc'" in line

    @pytest.mark.parametrize("case", ["folders", "series", "moving only", "table"])
    def test_several_volumes_at_once_are_told_how_they_are_given(self, checkpoint, tmp_path, options, capsys, case):
        for role in ("fixed", "moving"):
            (tmp_path / role / "series").mkdir(parents=True)
        named = tmp_path / "fixed"
        if case == "folders":
            for role, file in (("fixed", "head.nii.gz"), ("moving", "ct.nii.gz")):
                shutil.copy(tmp_path / file, tmp_path / role / "1.nii.gz")
                shutil.copy(tmp_path / file, tmp_path / role / "2.nii.gz")
            options = [*options[:3], str(named), "--moving", str(tmp_path / "moving")]
        elif case == "series":
            (named / "series/IM001").write_bytes(bytes(128) + b"DICM")
            options[3] = str(named)
        elif case == "moving only":
            write_image(named / "ct.png", picture(1))
            options[3], named = str(named), tmp_path / "ct.nii.gz"
        else:
            named = tmp_path / "head.nii.gz"
            (tmp_path / "pairs.csv").write_text("fixed,moving\nhead.nii.gz,ct.nii.gz\n")
            options = ["--modality", "CT", "--csv", str(tmp_path / "pairs.csv"), "--keep-going"]
        assert run_command(checkpoint, tmp_path / "out", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{named}: expected" in line and "volumes one pair at a time" in line and "found" in line
