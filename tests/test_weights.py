"""The shipped weights: they align the embedded sample, and the public benchmark where it is at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.make_csv import MODALITIES
from utils.checkpoint import load_checkpoint
from utils.flow_io import load_flow
from utils.image_io import LUMA, read_image
from utils.inference import PairFuser, endpoint_scores
from utils.metrics import folding_share, rmse
from utils.pairs import folder_pairs, read_pair, sample_pairs
from utils.report import DOUBTFUL

ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted((ROOT / "checkpoints").glob("*.safetensors"))
BENCHMARK = ROOT.parent / "shared" / "data" / "unaligned"


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda path: path.stem)
def fuse(request: pytest.FixtureRequest) -> PairFuser:
    checkpoint = load_checkpoint(request.param)
    return PairFuser(checkpoint.model, torch.device("cpu"), **checkpoint.training.get("inference", {}))


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) in [0, 1] -> luma (H, W), 0 to 255."""
    return 255 * (image if image.ndim == 2 else image @ np.array(LUMA))


def test_both_are_there():
    assert [path.stem for path in CHECKPOINTS] == ["edarfusion", "edarfusion_fast"]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_file_is_small_and_says_what_it_is(path):
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size <= 10e6
    assert checkpoint.modality == "all"
    assert {f"epe_{m}" for m in MODALITIES} <= checkpoint.metrics.keys()
    assert {"seconds", "step", "options"} <= checkpoint.training.keys()
    assert not checkpoint.state


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_sample_is_aligned(fuse, modality):
    before, after = [], []
    for pair in sample_pairs(modality)[modality]:
        images = read_pair(pair, modality)
        result = fuse(images.fixed, images.moving)
        scores = endpoint_scores(result.flow, load_flow(pair["flow"], images.fixed.shape), read_image(pair["label"]))
        before.append(scores["epe_before"])
        after.append(scores["epe"])
        assert folding_share(result.flow) == 0
    assert np.mean(after) < 0.8 * np.mean(before)


@pytest.mark.parametrize("modality", MODALITIES)
def test_disagreement_tells_images_that_do_not_lie_alike(fuse, modality):
    for pair in sample_pairs(modality)[modality]:
        images = read_pair(pair, modality)
        assert fuse(images.fixed, images.moving).disagreement < DOUBTFUL
        assert fuse(images.fixed, np.rot90(images.moving).copy()).disagreement > DOUBTFUL


@pytest.mark.parametrize(("modality", "closed"), [("CT", 0.1), ("PET", 0.1), ("SPECT", 0.05)])
def test_the_benchmark_is_aligned(fuse, modality, closed):
    folder = BENCHMARK / f"{modality}-MRI"
    if not folder.is_dir():
        pytest.skip(f"no public benchmark at {folder}")
    label = folder / (f"{modality}_label" if modality == "CT" else f"{modality}_label_RGB")
    before, after = [], []
    for pair in folder_pairs(modality, folder / "MRI", folder / modality, label)[modality][:8]:
        images = read_pair(pair, modality)
        result = fuse(images.fixed, images.moving)
        moving, aligned, truth = (grey(image) for image in (images.moving, result.aligned, images.label))
        before.append(rmse(moving, truth))
        after.append(rmse(aligned, truth))
        assert folding_share(result.flow) == 0
    assert np.mean(after) < (1 - closed) * np.mean(before)
