"""Validation on pairs whose misalignment is known."""

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import Pair
from data.table import MODALITIES
from models.edarfusion import EDARFusion
from utils.foreground import foreground, masked_means
from utils.maps import jacobian_determinant
from utils.metrics import qabf
from utils.warp import resize_flow


@torch.inference_mode()
def validate(
    model: EDARFusion, pairs: Dataset[Pair], device: torch.device, *, batch_size: int = 8, fusion: bool = False
) -> pd.DataFrame:
    """Score the model on every pair.

    Args:
        model: in evaluation mode.
        pairs: without augmentation, so that the deformations are the same each time.
        device: where the model is.
        batch_size: pairs at once.
        fusion: also score the fused images (0.02 s a pair).

    Returns:
        A row a pair: modality; epe and zero, the mean endpoint error (px) inside the foreground of the flow and of
        zero flow, which is the mean true displacement; rmse and rmse_before (grey levels 0 to 255,
        whole image); folding (share of pixels); with `fusion` qabf of the fused image against the truly aligned pair.
    """
    rows = []
    for pair in DataLoader(pairs, batch_size=batch_size):
        pair = pair.to(device)
        full = pair.fixed.shape[2:]
        output = model(pair.fixed, pair.moving)
        truth = resize_flow(pair.flow, full)
        mask = foreground(pair.moving_aligned, full)

        values = {
            "epe": _mean_length(output.flow - truth, mask),
            "zero": _mean_length(truth, mask),
            "rmse": _rmse(output.aligned, pair.moving_aligned),
            "rmse_before": _rmse(pair.moving, pair.moving_aligned),
            "folding": (jacobian_determinant(output.flow) <= 0).float().mean(dim=(1, 2, 3)),
        }
        part = pd.DataFrame({name: value.cpu().numpy() for name, value in values.items()})
        part.insert(0, "modality", [MODALITIES[index] for index in pair.modality.tolist()])
        if fusion:
            images = [255 * x[:, 0].cpu().double().numpy() for x in (pair.fixed, pair.moving_aligned, output.fused)]
            part["qabf"] = [qabf(*arrays) for arrays in zip(*images, strict=True)]
        rows.append(part)
    return pd.concat(rows, ignore_index=True)


def by_modality(scores: pd.DataFrame) -> pd.DataFrame:
    """Means of what `validate` returns, a row a modality, with the share of pairs improved as `better`.

    A figure that is not a number makes its mean none, so that a network that fails on some pairs is not taken for good.
    """
    better = (scores["epe"] < scores["zero"]).astype(float)
    return scores.assign(better=better).groupby("modality").agg(lambda values: values.mean(skipna=False))


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Means by modality of what `validate` returns, such as `epe_CT`; `better_CT` is the share of pairs improved."""
    means = by_modality(scores)
    return {f"{column}_{modality}": float(means.at[modality, column]) for column in means for modality in means.index}


def _mean_length(flow: Tensor, mask: Tensor) -> Tensor:
    return masked_means(flow.norm(dim=1, keepdim=True), mask)


def _rmse(image: Tensor, label: Tensor) -> Tensor:
    return 255 * (image - label).square().mean(dim=(1, 2, 3)).sqrt()
