"""training/stages.py: the step of each stage is one graph for the compiler, and trains the largest network too."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import default_collate

from data.dataset import Pair, PairDataset
from losses.fusion import make_matrices
from models.edarfusion import EDARFusion
from tests.examples import SAMPLE, aligned_sample
from training.options import STAGES, Options
from training.stages import begin_stage


@pytest.fixture(scope="module")
def batch() -> Pair:
    pairs = PairDataset(aligned_sample(), SAMPLE, augment=True, size=64)
    return default_collate([pairs[0], pairs[3]])


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_one_graph(batch, stage, taught):
    torch.manual_seed(0)
    model = EDARFusion("tiny").train()
    module, _ = begin_stage(stage, model, Options(), EDARFusion("tiny").eval() if taught else None)
    make_matrices(tuple(batch.fixed.shape[2:]), batch.fixed.device)
    torch.compiler.reset()
    called = set()

    def backend(module: torch.fx.GraphModule, inputs: list) -> Callable:
        called.update(str(node.target) for node in module.graph.nodes)
        return module.forward

    # A break of the graph would be an error here.
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    loss, expected = compiled(batch, nullcontext()), module(batch, nullcontext())
    # What hangs on the size alone is an input. In the graph it would be made, and copied to the device, in each step.
    assert called and not any("numpy" in name or " eye " in name for name in called)
    assert loss.total.requires_grad
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_the_largest_network_makes_a_step(batch, stage):
    torch.manual_seed(0)
    model = EDARFusion("base").train()
    module, optimizer = begin_stage(stage, model, Options())
    before = [parameter.detach().clone() for parameter in module.parameters()]
    loss = module(batch, nullcontext()).total
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
