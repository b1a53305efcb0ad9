"""Train the part of a network that predicts errors, on the mistakes of its finished registration, and check it."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import Pair
from models.eda_flowreg import CELL
from models.edarfusion import EDARFusion
from models.expected_error import COVERAGE, LEAST, ExpectedError, expected_error_loss
from utils.geometry.foreground import channel_means, foreground
from utils.geometry.warp import resize_flow

IN_HEAD = 0.5
"""Share of a cell that must lie in the head for it to be scored."""


class Mistakes(NamedTuple):
    """Mistakes of a registration on N pairs, on the grid of cells.

    Attributes:
        signs: (N, C, h, w), of `models.expected_error.signs_of_error`.
        error: (N, 1, h, w), endpoint error, px.
        mask: (N, 1, h, w), share of the cell in the head.
        spread: (N, 1, h, w), what the estimates' disagreement says of each cell, in any unit.
    """

    signs: Tensor
    error: Tensor
    mask: Tensor
    spread: Tensor


def joined(parts: list[Mistakes]) -> Mistakes:
    """Join mistakes on several sets of pairs."""
    return Mistakes(*map(torch.cat, zip(*parts, strict=True)))


class Calibration(NamedTuple):
    """Quality of the predicted errors.

    Attributes:
        pairs: how many.
        error, expected: means in the heads, px.
        coverage: share of the cells in heads whose error lies below the bound; `COVERAGE` is wanted.
        within: mean over pairs of the rank correlation of expected and true error among a pair's cells.
        over: rank correlation of expected and true mean error over the pairs; not a number below three of them.
        sparsification: area between the sparsification curve by expected errors and the oracle's, over that between
            chance and the oracle: 0 is perfect, 1 is chance (Ilg et al., ECCV 2018, there not over chance).
        by_disagreement: the same where cells are ordered by the disagreement of the estimates instead.
    """

    pairs: int
    error: float
    expected: float
    coverage: float
    within: float
    over: float
    sparsification: float
    by_disagreement: float


@torch.no_grad()
def collect(
    model: EDARFusion,
    pairs: Dataset[Pair],
    device: torch.device,
    *,
    passes: int,
    draws: int | None = None,
    batch: int = 8,
) -> Mistakes:
    """Register pairs and note the mistakes.

    Args:
        model: in evaluation mode, with the part that expects errors, whatever its weights.
        pairs: with known deformations, in frames of 256 px.
        device: where the model is.
        passes: as in `EDARFusion.forward`; estimates are averaged.
        draws: the first so many of `pairs`; None takes all.
        batch: pairs at once.
    """
    batches: list[Tensor] = []
    hook = model.expected_error.register_forward_hook(lambda module, inputs, output: batches.append(inputs[0].cpu()))
    errors, masks = [], []
    numbers = range(len(pairs) if draws is None else draws)
    try:
        for pair in DataLoader(pairs, batch, sampler=numbers):
            pair = pair.to(device)
            size = tuple(pair.fixed.shape[2:])
            flow = model(pair.fixed, pair.moving, passes, average=True).flow
            error = (flow - resize_flow(pair.flow, size)).norm(dim=1, keepdim=True)
            errors.append(F.avg_pool2d(error, CELL).cpu())
            masks.append(foreground(pair.moving_aligned, tuple(errors[-1].shape[2:])).cpu())
    finally:
        hook.remove()
    signs = torch.cat(batches)
    return Mistakes(signs, torch.cat(errors), torch.cat(masks), signs[:, :1])


def fit(network: ExpectedError, mistakes: Mistakes, *, steps: int = 800, batch: int = 16, seed: int = 0) -> float:
    """Train the network on mistakes, in place, and set its bound; return the mean loss of the last tenth of the steps.

    Maps are mirrored at random, so that left and right make no difference.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(mistakes.signs), (batch,), generator=generator)
        axes = [3] if torch.rand((), generator=generator) < 0.5 else []
        signs, error, mask, _ = (part[rows].flip(axes) for part in mistakes)
        loss = expected_error_loss(network(signs), error, mask + 1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    network.eval()
    set_bound(network, mistakes)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def rescale(network: ExpectedError, mistakes: Mistakes, iterations: int = 20) -> float:
    """Adapt the scale and offset of a network's last layer to mistakes, in place, and its bound; return the loss.

    The map keeps the order in which it doubts the places of a pair. It needs few mistakes, so that they can come from
    networks that stand for the one which the map belongs to.
    """
    last, head = network.layers[-1], mistakes.mask > IN_HEAD
    with torch.no_grad():
        before = network.layers(mistakes.signs)[head]
    error = mistakes.error[head]
    scale, offset = (torch.tensor(value, requires_grad=True) for value in (1.0, 0.0))
    optimizer = torch.optim.LBFGS([scale, offset], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        expected = F.softplus(scale * before + offset) + LEAST
        value = (error / expected + expected.log()).mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(offset)
    set_bound(network, mistakes)
    return loss().item()


@torch.no_grad()
def set_bound(network: ExpectedError, mistakes: Mistakes) -> None:
    """Set the multiple of the expected error below which `COVERAGE` of the errors in heads lie."""
    ratios = (mistakes.error / network(mistakes.signs))[mistakes.mask > IN_HEAD]
    network.bound_ratio.fill_(float(np.quantile(ratios.numpy(), COVERAGE)))


@torch.no_grad()
def calibration(network: ExpectedError, mistakes: Mistakes) -> Calibration:
    """Check expectations against mistakes that they were not fitted to."""
    expected = network(mistakes.signs)
    inside = mistakes.mask > IN_HEAD
    bound = expected * network.bound_ratio
    cells = [
        (e[i].numpy(), x[i].numpy(), s[i].numpy())
        for e, x, s, i in zip(mistakes.error, expected, mistakes.spread, inside, strict=True)
        if i.sum() > 2
    ]
    means = [channel_means(map_, mistakes.mask + 1e-6).flatten().numpy() for map_ in (mistakes.error, expected)]
    error, by_network, by_spread = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    return Calibration(
        pairs=len(mistakes.signs),
        error=float(means[0].mean()),
        expected=float(means[1].mean()),
        coverage=float((mistakes.error <= bound)[inside].float().mean()),
        within=float(np.mean([spearmanr(e, x).statistic for e, x, _ in cells])),
        over=float(spearmanr(*means).statistic) if len(means[0]) > 2 else float("nan"),
        sparsification=sparsification_area(error, by_network),
        by_disagreement=sparsification_area(error, by_spread),
    )


def sparsification_area(error: np.ndarray, doubt: np.ndarray) -> float:
    """Compute the area under the sparsification error, relative to chance: 0 is perfect, 1 is chance.

    The sparsification curve is the mean error of what is left after the most doubtful share was taken away. Its error
    is the distance to the curve of the oracle, which takes away what errs most.

    Args:
        error, doubt: (N,).
    """

    def curve(order: np.ndarray) -> np.ndarray:
        kept = error[order]
        return np.cumsum(kept) / np.arange(1, len(kept) + 1)

    oracle = curve(np.argsort(error, kind="stable"))
    chance = error.mean() - oracle.mean()
    return float((curve(np.argsort(doubt, kind="stable")).mean() - oracle.mean()) / chance) if chance > 0 else 0.0


def risk_coverage(network: ExpectedError, mistakes: Mistakes, shares: tuple[float, ...]) -> list[float]:
    """Compute the mean error (px) of the surest cells in heads, for shares of all cells."""
    with torch.no_grad():
        expected = network(mistakes.signs)
    inside = mistakes.mask > IN_HEAD
    error, order = mistakes.error[inside], expected[inside].argsort()
    return [float(error[order[: max(1, round(share * len(order)))]].mean()) for share in shares]
