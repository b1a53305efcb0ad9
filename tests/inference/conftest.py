"""A small untrained network, and a checkpoint of it, that all tests of the test command share."""

from pathlib import Path

import pytest
import torch

from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion


@pytest.fixture(scope="session")
def model() -> EDARFusion:
    """The network; its fusion is not zero, which would be the mark of one without training."""
    torch.manual_seed(0)
    model = EDARFusion("tiny").eval()
    torch.nn.init.normal_(model.fusion.head.weight, std=0.01)
    return model


@pytest.fixture(scope="session")
def checkpoint(model: EDARFusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with it, for all modalities."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, model, modality="all", training={"note": "untrained, for tests"}, metrics={})
    return path
