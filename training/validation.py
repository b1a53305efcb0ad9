"""Validation on pairs whose misalignment is known."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import Pair, PairDataset
from data.table import MODALITIES, DataError
from evaluation.figures import figure_pair
from evaluation.map_styles import MAPS
from evaluation.metrics import qabf
from losses.steps import colored_room
from models.edarfusion import EDARFusion
from utils.geometry.foreground import foreground, masked_means
from utils.geometry.head_box import TISSUE
from utils.geometry.warp import resize_flow
from utils.maps import jacobian_determinant


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
        output = model(pair.fixed, pair.moving, room=colored_room(pair.moving_color, pair.moving))
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
    """Average the scores of `validate`, a row for each modality, with the share of pairs improved as `better`.

    A figure that is not a number makes its mean none, so that a network that fails on some pairs is not taken for good.
    """
    better = (scores["epe"] < scores["zero"]).astype(float)
    return scores.assign(better=better).groupby("modality").agg(lambda values: values.mean(skipna=False))


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Name the means by modality of `validate`, such as `epe_CT`; `better_CT` is the share of pairs improved."""
    means = by_modality(scores)
    return {f"{column}_{modality}": float(means.at[modality, column]) for column in means for modality in means.index}


def _mean_length(flow: Tensor, mask: Tensor) -> Tensor:
    return masked_means(flow.norm(dim=1, keepdim=True), mask)


def _rmse(image: Tensor, label: Tensor) -> Tensor:
    return 255 * (image - label).square().mean(dim=(1, 2, 3)).sqrt()


def check(model: EDARFusion, pairs: PairDataset, device: torch.device, stage: str) -> dict[str, float]:
    """Compute the validation figures and the score by which the best checkpoint is chosen."""
    metrics = summary(validate(model, pairs, device, fusion=stage == "fusion"))
    return metrics | {"score": score(metrics, stage)}


def score(metrics: dict[str, float], stage: str) -> float:
    """Compute the score that the best checkpoint has least of: endpoint error over zero flow's, or lost edges.

    Args:
        metrics: of `summary`.
        stage: registration or fusion.

    Raises:
        DataError: the validation pairs of a modality show no tissue.
    """
    kinds = [name.removeprefix("epe_") for name in metrics if name.startswith("epe_")]
    if stage == "registration":
        for kind in kinds:
            if not metrics[f"zero_{kind}"] > 0:
                raise DataError.at(kind, f"tissue in the validation pairs, brighter than {TISSUE} of the range", "none")
        return sum(metrics[f"epe_{kind}"] / metrics[f"zero_{kind}"] for kind in kinds) / len(kinds)
    return 1 - sum(metrics[f"qabf_{kind}"] for kind in kinds) / len(kinds)


def picture(model: EDARFusion, pairs: PairDataset, device: torch.device, row: int) -> Figure:
    """Draw the results of the model for one validation pair."""
    pair = pairs[row]
    with torch.inference_mode():
        output = model(pair.fixed[None].to(device), pair.moving[None].to(device))
    fields = {name: field for name, field in output._asdict().items() if field is not None}
    shown = {name: field[0].cpu().squeeze().numpy() for name, field in fields.items()}
    images = {"fixed": pair.fixed[0].numpy(), "moving": pair.moving[0].numpy(), "label": pair.moving_aligned[0].numpy()}
    maps = {name: array for name, array in shown.items() if name in MAPS}
    return figure_pair(
        images["fixed"], images["moving"], shown["aligned"], shown["fused"], label=images["label"], flow=shown["flow"],
        maps=maps, title=pairs.fixed[row].stem,
    )  # fmt: skip
