"""tools/misalign.py: a benchmark whose truth is true, the same every time, and that of the project's validation."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data.dataset import VAL_SEED, PairDataset
from data.deformation import DeformationRange, random_flow
from data.splits import find_table
from data.table import MODALITIES, read_table
from tools.misalign import main, misalign, true_flow
from utils.geometry.warp import apply_flow, compose, resize_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image, write_image

SAMPLE = Path(__file__).parents[2] / "data/sample"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of aligned pairs: those of the embedded sample, two for validation and one for training."""
    root = tmp_path_factory.mktemp("aligned")
    for modality in MODALITIES:
        folder, rows = root / f"{modality}-MRI", ["split,name"]
        for number, fixed in enumerate(sorted((SAMPLE / modality / "fixed").iterdir())):
            for source, role in ((fixed, "MRI"), (SAMPLE / modality / "label" / fixed.name, modality)):
                (folder / role).mkdir(parents=True, exist_ok=True)
                (folder / role / fixed.name).write_bytes(source.read_bytes())
            rows.append(f"{'train' if number == 0 else 'val'},{fixed.name}")
        (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def bench(root, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("bench")
    assert main(["--root", str(root), "--output", str(output)]) == 0
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_table_names_every_file(bench):
    table = read_table(bench / "pairs.csv", bench)
    assert list(table.columns) == ["fixed", "moving", "label", "flow", "modality", "name"]
    assert table["modality"].to_list() == ["CT", "CT", "PET", "PET", "SPECT", "SPECT"]
    assert table["name"].to_list() == [f"simulated_{slice_:03d}" for slice_ in (90, 116, 96, 108, 84, 102)]
    assert len(files(bench)) == 6 * 4 + 1


def test_the_flow_brings_the_moving_image_to_its_label(bench):
    for row in read_table(bench / "pairs.csv", bench).itertuples():
        color = row.modality != "CT"
        fixed, moving, label = (read_image(bench / path, color=color) for path in (row.fixed, row.moving, row.label))
        assert fixed.shape == moving.shape == label.shape == ((256, 256, 3) if color else (256, 256))
        inside = np.s_[12:-12, 12:-12]
        before = np.abs(moving - label)[inside].mean()
        assert np.abs(apply_flow(moving, load_flow(bench / row.flow, (256, 256))) - label)[inside].mean() < before / 4


def test_by_default_the_pairs_are_those_of_the_validation(root, bench):
    for modality in MODALITIES:
        table = find_table(root, modality)
        validation = PairDataset(table[table["split"] == "val"], root, seed=VAL_SEED)
        written = read_table(bench / "pairs.csv", bench, modality=modality)
        for pair, row in zip((validation[n] for n in range(2)), written.itertuples(), strict=True):
            flow = resize_flow(pair.flow[None], (256, 256))[0].numpy()
            assert np.allclose(load_flow(bench / row.flow, (256, 256)), flow, atol=1e-5)
            # Luma is taken before the warp there and after it here, and both round.
            assert np.abs(read_image(bench / row.moving) - pair.moving[0].numpy()).max() < 0.01
            assert np.abs(read_image(bench / row.label) - pair.moving_aligned[0].numpy()).max() < 0.01


def test_a_seed_decides_and_other_modalities_do_not(root, bench, tmp_path):
    for name, options in (("again", []), ("alone", ["--modality", "PET"]), ("other", ["--seed", "7"])):
        assert main(["--root", str(root), "--output", str(tmp_path / name), *options]) == 0
    same = files(bench)
    assert files(tmp_path / "again") == same
    alone = files(tmp_path / "alone")
    assert len(alone) == 9 and all(alone[name] == same[name] for name in alone if name != "pairs.csv")
    other = files(tmp_path / "other")
    assert all((other[name] == same[name]) == ("/flow/" not in name and "/moving/" not in name) for name in same)


def test_pairs_are_called_as_the_table_says(tmp_path):
    # Files of two patients with one name.
    rows = []
    for name, level in (("one", 0.4), ("two", 0.6)):
        for role in ("MRI", "CT"):
            write_image(tmp_path / name / role / "a001.png", np.full((64, 64), level, np.float32))
        paths = {"fixed": f"{name}/MRI/a001.png", "moving": f"{name}/CT/a001.png"}
        rows.append(paths | {"modality": "CT", "name": name})
    written = misalign(pd.DataFrame(rows), tmp_path, tmp_path / "out")
    assert written["label"].to_list() == ["CT/label/one.png", "CT/label/two.png"]
    levels = [read_image(tmp_path / "out" / path).mean() for path in written["label"]]
    assert levels == pytest.approx([0.4, 0.6], abs=1e-3)


def test_turn_by_hand():
    def turn(size: tuple[int, int], degrees: float) -> torch.Tensor:
        only = DeformationRange(amplitude=(0, 0), sigma=(16, 16), rotation=(degrees, degrees))
        return random_flow(size, only, torch.Generator().manual_seed(0))

    flow = resize_flow(turn((64, 64), 90), (64, 64))
    # About the centre (31.5, 31.5) a quarter turn takes the point 20 px to the right of it to 20 px below it.
    assert torch.allclose(flow[0, :, 32, 52], torch.tensor([-21.0, 20.0]), atol=0.01)
    assert turn((64, 80), 0).abs().max() == 0 and turn((64, 80), 5).shape == (1, 2, 16, 20)


def test_other_deformations_and_sizes(root, tmp_path):
    still = ["--amplitude", "0", "--translation", "0"]
    options = ["--root", str(root), "--modality", "CT", *still, "--rotation", "10", "--size", "128", "200"]
    assert main([*options, "--output", str(tmp_path)]) == 0
    row = next(read_table(tmp_path / "pairs.csv", tmp_path).itertuples())
    assert read_image(tmp_path / row.fixed).shape == read_image(tmp_path / row.moving).shape == (128, 200)
    flow = load_flow(tmp_path / row.flow, (128, 200))
    y, x = np.mgrid[:128, :200] - np.array([63.5, 99.5])[:, None, None]
    cos, sin = math.cos(math.radians(-10)), math.sin(math.radians(-10))
    true = np.stack((cos * x - sin * y - x, sin * x + cos * y - y))
    assert np.abs(flow - true)[:, 20:-20, 20:-20].max() < 0.05


def test_larger_and_smoother_deformations_are_so(root, tmp_path):
    strength = {}
    for name, options in (("usual", []), ("large", ["--amplitude", "5.212"]), ("smooth", ["--sigma", "40"])):
        arguments = ["--root", str(root), "--modality", "CT", "--translation", "0", *options]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
        flows = np.stack([load_flow(path, (256, 256)) for path in sorted((tmp_path / name).rglob("*.npy"))])
        strength[name] = np.std(flows), np.std(np.diff(flows, axis=3))
    assert strength["large"][0] > 1.7 * strength["usual"][0]
    assert strength["smooth"][1] < 0.6 * strength["usual"][1]


@pytest.mark.parametrize(("amplitude", "sigma", "rotation"), [(0, 16, 50), (4.43, 16, 0), (4.43, 28, -30)])
def test_the_truth_of_strong_deformations_is_true_as_well(amplitude, sigma, rotation):
    ranges = DeformationRange((amplitude,) * 2, (sigma,) * 2, translation=2.56, rotation=(rotation,) * 2)
    for number in range(20):
        deformation = random_flow((256, 200), ranges, torch.Generator().manual_seed(number))
        flow = true_flow("a001", deformation)
        # A point of the grid for 4 px.
        assert 4 * compose(deformation, flow)[..., 4:-4, 4:-4].norm(dim=1).max() < 0.25


@pytest.mark.parametrize(
    ("options", "actual"),
    [
        ("--rotation 58", r"one that leaves [0-9]{2}\.[0-9] px"),
        ("--amplitude 12", "one that folds"),
        ("--sigma 4", "one that folds"),
    ],
)
def test_a_deformation_without_an_inverse_is_refused(root, tmp_path, capsys, options, actual):
    output = tmp_path / "bench"
    assert main(["--root", str(root), "--output", str(output), "--modality", "CT", *options.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"CT.simulated_090: expected .*{options.split()[0]}.*, found {actual}$", line), line
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], "pairs of the split test"),
        (["--root", "nowhere"], "nowhere"),
    ],
)
def test_what_is_missing_is_one_line(root, tmp_path, capsys, options, words):
    assert main(["--root", str(root), "--output", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and "expected" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_table_must_say_the_modality(root, tmp_path, capsys):
    row = "CT-MRI/MRI/simulated_090.png,CT-MRI/CT/simulated_090.png,val\n"
    (tmp_path / "table.csv").write_text(f"fixed,moving,split\n{row}")
    assert main(["--root", str(root), "--csv", str(tmp_path / "table.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "a column modality" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--amplitude -1", "--sigma 0", "--rotation nan", "--rotation -60", "--rotation 180", "--translation inf",
     "--size 9 99", "--seed -1"],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["--root", ".", "--output", str(tmp_path), *option.split()])
    assert f"{option.split()[0]}: expected" in capsys.readouterr().err


def test_sizes_that_differ_are_named(tmp_path):
    for role, side in (("MRI", 64), ("CT", 72)):
        write_image(tmp_path / role / "a001.png", np.zeros((side, 64), np.float32))
    table = pd.DataFrame([{"fixed": "MRI/a001.png", "moving": "CT/a001.png", "modality": "CT"}])
    with pytest.raises(ValueError, match="a001.png.*expected.*found"):
        misalign(table, tmp_path, tmp_path / "out")


def test_neither_the_pairs_nor_their_table_are_written_over(tmp_path, capsys):
    for name, source in (("fixed", "fixed"), ("moving", "label")):
        (tmp_path / "CT" / name).mkdir(parents=True)
        image = SAMPLE / "CT" / source / "simulated_090.png"
        (tmp_path / "CT" / name / image.name).write_bytes(image.read_bytes())
    table = "fixed,moving,modality,split\nCT/fixed/simulated_090.png,CT/moving/simulated_090.png,CT,val\n"
    (tmp_path / "mine.csv").write_text(table)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/pairs.csv").write_text(table)
    before = files(tmp_path)
    for csv, output in (("mine.csv", "."), ("bench/pairs.csv", "bench")):
        assert main(["--root", str(tmp_path), "--csv", str(tmp_path / csv), "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "expected an input that no result is written over" in error
        assert files(tmp_path) == before
