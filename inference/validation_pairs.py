"""Commands that measure a network on the validation pairs: their options, and the network and pairs they name."""

import argparse
from typing import NamedTuple

import torch

from data.dataset import VAL_SEED, PairDataset
from data.splits import add_group_pattern
from data.table import MODALITIES, modality_name, modality_of
from data.training_pairs import validation_table
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from utils.arguments import add_checkpoint, add_device
from utils.device import choose_device


class ValidationSet(NamedTuple):
    """A network in evaluation mode, the pairs to measure it on, and the device that both are used on."""

    model: EDARFusion
    pairs: PairDataset
    device: torch.device


def add_validation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the validation pairs and the network."""
    parser.add_argument("--root", metavar="DIR", required=True,
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--csv", metavar="FILE",
                        help="table of pairs with their split (python -m tools.make_csv); only rows of val are used")
    add_group_pattern(parser)
    parser.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), default="all",
                        help="modality of the pairs (default: %(default)s)")
    add_checkpoint(parser)
    add_device(parser)


def load_validation_set(options: argparse.Namespace) -> ValidationSet:
    """Load what the options of `add_validation_options` name.

    Raises:
        InputError: pairs, network or device cannot be used, or the network is for another modality.
    """
    table = validation_table(
        options.root, options.modality, csv=options.csv, group_pattern=options.group_pattern
    )
    device = choose_device(options.device)
    modality = modality_of(table["modality"].unique())
    model = load_checkpoint(options.checkpoint, modality=modality, device=device).model
    return ValidationSet(model, PairDataset(table, ".", seed=VAL_SEED), device)
