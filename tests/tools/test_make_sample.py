"""The embedded sample of simulated pairs is complete and true, and can be made again."""

import numpy as np
import pytest
import torch

from evaluation.metrics import rmse
from evaluation.scoring import read_grey
from tools.make_sample import SLICES, main, simulate_pair
from utils.arguments import SAMPLE_ROOT
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image
from utils.imaging.pairing import pair_files

PAIRS = [
    pytest.param(modality, pair, id=f"{modality}-{pair['name']}")
    for modality in SLICES
    for pair in pair_files(**{role: SAMPLE_ROOT / modality / role for role in ("fixed", "moving", "label")})
]


def flow_path(modality: str, name: str):
    return SAMPLE_ROOT / modality / "flow" / f"{name}.npy"


def test_three_pairs_a_modality_and_small():
    assert [p.values[0] for p in PAIRS] == ["CT"] * 3 + ["PET"] * 3 + ["SPECT"] * 3
    assert sum(f.stat().st_size for f in SAMPLE_ROOT.rglob("*") if f.is_file()) < 2_000_000


def test_notice_and_the_word_simulated():
    assert "Copyright (C)" in (SAMPLE_ROOT / "NOTICE").read_text()
    assert "simulated" in (SAMPLE_ROOT / "README.md").read_text()


@pytest.mark.parametrize(("modality", "pair"), PAIRS)
def test_true_flow_brings_moving_to_label(modality, pair):
    moving, label = read_grey(pair["moving"]), read_grey(pair["label"])
    flow = load_flow(flow_path(modality, pair["name"]), (256, 256))
    assert flow.shape == (2, 256, 256) and flow.dtype == np.float32
    before, after = rmse(moving, label), rmse(apply_flow(moving, flow), label)
    assert after < 0.4 * before
    # The other direction, half the flow and swapped axes must all be worse.
    assert rmse(apply_flow(moving, -flow), label) > before
    assert rmse(apply_flow(moving, flow / 2), label) > after
    assert rmse(apply_flow(moving, flow[::-1].copy()), label) > after


@pytest.mark.parametrize(("modality", "pair"), PAIRS)
def test_flow_is_of_the_benchmarks_size(modality, pair):
    length = np.hypot(*load_flow(flow_path(modality, pair["name"]), (256, 256)))
    assert 2 < length.mean() < 6 and length.max() < 16


@pytest.mark.parametrize(("modality", "pair"), PAIRS)
def test_pictures_look_like_their_modality(modality, pair):
    fixed = read_image(pair["fixed"])
    head = np.argwhere(fixed > 0.2)
    height, width = np.ptp(head, axis=0) + 1
    assert 140 < height < 240 and 120 < width < 210
    assert fixed[:8].max() < 0.1 and fixed[-8:].max() < 0.1
    colored = {role: np.ptp(read_image(pair[role], color=True), axis=2).any() for role in ("fixed", "label", "moving")}
    assert not colored["fixed"] and colored["label"] == colored["moving"] == (modality != "CT")
    if modality == "CT":
        skull = read_image(pair["label"]) > 0.99
        assert 0.05 < skull.mean() < 0.2
        assert np.median(fixed[skull]) < 0.6 * np.median(fixed[fixed > 0.1])


def test_simulate_pair_refuses_unknown_names():
    with pytest.raises(ValueError, match="expected one of CT, PET, SPECT"):
        simulate_pair(80, "US", torch.Generator())
    with pytest.raises(ValueError, match="expected T1 or T2"):
        simulate_pair(80, "CT", torch.Generator(), weighting="T3")


def test_made_again_it_is_the_same(tmp_path, capsys):
    pytest.importorskip("nilearn")
    assert main(["--output", str(tmp_path)]) == 0
    assert "9 simulated pairs" in capsys.readouterr().out
    for file in sorted(tmp_path.rglob("*.*")):
        embedded = SAMPLE_ROOT / file.relative_to(tmp_path)
        if file.suffix == ".png":
            new, old = (read_image(f, color=True) for f in (file, embedded))
        else:
            new, old = np.load(file), np.load(embedded)
        np.testing.assert_allclose(new, old, atol=2 / 255, err_msg=file.name)


def test_seeds_and_slices_vary():
    pytest.importorskip("nilearn")
    first, again, other = (
        simulate_pair(90, "CT", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert rmse(255 * first[0], 255 * other[0]) > 5 and rmse(255 * first[1], 255 * other[1]) > 5


def test_training_pairs_take_nothing_s_place(tmp_path, capsys):
    split = tmp_path / "PET-MRI/split.csv"
    split.parent.mkdir()
    split.write_text("split,name\ntrain,16003.png\n")
    assert main(["--training", "1", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{split.parent}: expected nothing there" in error
    assert split.read_text() == "split,name\ntrain,16003.png\n"
    assert [path.name for path in tmp_path.iterdir()] == ["PET-MRI"]


def test_the_embedded_sample_is_not_written_to_without_a_word(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "--output" in capsys.readouterr().err


def test_unwritable_output_is_one_line(tmp_path, capsys):
    pytest.importorskip("nilearn")
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "file" in error and "expected" in error
