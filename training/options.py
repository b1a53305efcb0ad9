"""The options of a training run and how the command line states them."""

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.splits import GROUP_PATTERN
from data.table import MODALITIES, modality_name
from models.presets import PRESETS
from utils.arguments import OneLineParser, natural, positive, positive_float, share

STAGES = ("registration", "fusion")
"""Stages of a run in their order."""

ABLATIONS = ("entropy", "prereg", "reliability", "aggregation", "gate", "refinement", "consistency")
"""Parts of the method that `--without` leaves out."""

LENGTHS = ("epochs", "minutes")

CHANGEABLE = {"csv", "device", "heads", "workers", "root", "save_minutes", "teacher", "threads", "compile", *LENGTHS}
"""Options that --resume takes anew. They change where and how long a run computes, but not what."""


@dataclass(frozen=True)
class Options:
    """The options of a run; `EDARFusion_train.py --help` explains each one.

    Attributes:
        epochs, minutes: length of the run; exactly one of them is set.
        batch_size: pairs per step and process; None until the device is known.
        workers, threads, compile: None leaves the choice to the device.
    """

    root: list[str] = field(default_factory=list)
    modality: str = "all"
    csv: str | None = None
    group_pattern: str = GROUP_PATTERN
    overfit: int | None = None
    wide: float = 0.5
    simulated: float = 0.0
    heads: str | None = None
    second_pass: float = 0.0
    own_offset: float = 0.0
    repeat_after: int | None = None
    workers: int | None = None
    output: str | None = None
    init: str | None = None
    teacher: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    stage: str = "all"
    fusion_share: float = 0.15
    save_minutes: float = 3.0
    val_every: int = 5
    preset: str | None = None
    without: list[str] = field(default_factory=list)
    batch_size: int | None = None
    lr: float = 1.5e-3
    dropout: float = 0.0
    averaging: float = 0.998
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    amp: bool = False
    compile: bool | None = None

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> "Options":
        """Read the options that a checkpoint has kept. What an older version did not know is at its default."""
        known = {option.name for option in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def length(self) -> float:
        """Length of the run in its own unit, epochs or minutes."""
        return self.epochs or self.minutes

    @property
    def plan(self) -> dict[str, tuple[float, float]]:
        """Each stage with the shares of the run at which it begins and ends."""
        if self.stage != "all":
            return {self.stage: (0.0, 1.0)}
        return {"registration": (0.0, 1 - self.fusion_share), "fusion": (1 - self.fusion_share, 1.0)}


@dataclass(frozen=True)
class Resumption:
    """A run to go on with, and its options that change."""

    folder: Path
    changes: dict[str, Any]


def parse_arguments(arguments: list[str] | None = None) -> Options | Resumption:
    """Parse the command line of `EDARFusion_train.py`.

    Args:
        arguments: words of the command line; None takes those of this process.

    Returns:
        The options of a new run, or the run to resume.

    Raises:
        SystemExit: with status 2 for options that are wrong or do not go together, after one line on stderr.
    """
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    if "resume" in values:
        folder = values.pop("resume")
        if kept := values.keys() - CHANGEABLE:
            names = ", ".join(map(_flag, sorted(kept)))
            parser.error(f"--resume: expected the run's own options, found {names}; for others --init")
        return Resumption(Path(folder), values)
    options = Options(**values)
    if not options.root:
        parser.error("--root: expected a folder of aligned pairs, found none")
    if (options.epochs is None) == (options.minutes is None):
        parser.error(f"expected either --epochs or --minutes, found {'both' if options.epochs else 'neither'}")
    if options.seed >= 2**32:
        parser.error(f"--seed: expected a number below {2**32}, found {options.seed}")
    if options.heads and not options.simulated:
        parser.error("--heads: expected --simulated SHARE with it, found none")
    if options.own_offset:
        if options.batch_size and options.batch_size % 2:
            parser.error(f"--own-offset: expected an even --batch-size, found {options.batch_size}")
        if other := next((name for name in ("overfit", "teacher", "repeat_after") if getattr(options, name)), None):
            parser.error(f"--own-offset: expected no {_flag(other)} with it, found both")
    if options.stage == "fusion" and not options.init:
        parser.error("--stage fusion: expected --init FILE with a trained registration, found none")
    return options


_EXAMPLES = """Train EDARFusion on pairs of truly aligned images. The registration comes first, the fusion last.

examples:
  python EDARFusion_train.py --root DATA --minutes 90  # all modalities
  python EDARFusion_train.py --root DATA --modality CT --epochs 100
  python EDARFusion_train.py --resume runs/all-001         # go on after Ctrl-C
  python EDARFusion_train.py --resume runs/all-001 --minutes 180  # prolong it
  torchrun --nproc_per_node=2 EDARFusion_train.py --root DATA --epochs 50

DATA holds folders CT-MRI, PET-MRI and SPECT-MRI, each with a folder MRI and one named after the other modality.
Ctrl-C saves the run and ends it. See docs/training.md."""


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _parser() -> OneLineParser:
    """Make the parser. Its result holds only what was given; the defaults are those of `Options`."""
    parser = OneLineParser("EDARFusion_train", description=_EXAMPLES, argument_default=argparse.SUPPRESS)
    _add_data(parser.add_argument_group("data"))
    _add_run(parser.add_argument_group("run"))
    _add_optimisation(parser.add_argument_group("network and optimisation"))
    _add_machine(parser.add_argument_group("machine"))
    return parser


def _default(name: str) -> str:
    return f"(default: {getattr(Options(), name)})"


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--root", nargs="+", metavar="DIR",
                       help="folders of aligned pairs; with --csv the folder that its paths start from")
    group.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"),
                       help=f"modality of the moving images {_default('modality')}")
    group.add_argument("--csv", metavar="FILE", help="table of pairs with their split (python -m tools.make_csv)")
    group.add_argument("--group-pattern", metavar="REGEX",
                       help="regular expression for file names; its first group is the patient "
                       f"{_default('group_pattern')}")
    group.add_argument("--overfit", type=positive, metavar="N",
                       help="train and validate on N pairs with fixed deformations, to test the set-up")
    group.add_argument("--wide", type=share, metavar="SHARE",
                       help=f"share of training pairs with large deformations {_default('wide')}")
    group.add_argument("--simulated", type=share, metavar="SHARE",
                       help=f"share of training pairs that show simulated heads {_default('simulated')}")
    group.add_argument("--heads", metavar="DIR",
                       help="labelled heads to simulate on (python -m tools.make_heads); without them --simulated "
                       "draws random shapes")
    group.add_argument("--second-pass", type=share, metavar="SHARE",
                       help="share of steps that first align the pairs by the network itself and train on what is left "
                       f"{_default('second_pass')}")
    group.add_argument("--own-offset", type=share, metavar="SHARE",
                       help="show the registration each pair in two deformations; this share of what both errors have "
                       "in common counts as an offset of the pair itself (simulated pairs have none) "
                       f"{_default('own_offset')}")
    group.add_argument("--repeat-after", type=positive, metavar="EPOCHS",
                       help="repeat the random deformations of this many epochs; the fusion then registers each pair "
                            "once, which saves most of its time on a CPU (default: always draw new ones)")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=positive, metavar="N", help="length of the run in passes over all pairs")
    group.add_argument("--minutes", type=positive_float, metavar="N",
                       help="length of the run in minutes of training, instead of --epochs")
    group.add_argument("--output", metavar="DIR",
                       help="folder of the run (default: runs/MODALITY-NNN with the next free number)")
    group.add_argument("--resume", metavar="DIR",
                       help="go on with the run in this folder. A run keeps its options; these may change: "
                       f"{', '.join(map(_flag, sorted(CHANGEABLE)))}. Larger --epochs or --minutes prolong it")
    group.add_argument("--init", metavar="FILE", help="checkpoint with the weights to start from")
    group.add_argument("--teacher", metavar="FILE",
                       help="checkpoint of a network to imitate, instead of learning from the truth")
    group.add_argument("--stage", choices=(*STAGES, "all"),
                       help=f"what to train; all is first the registration, then the fusion {_default('stage')}")
    group.add_argument("--fusion-share", type=share, metavar="SHARE",
                       help=f"share of the run, at its end, that trains the fusion {_default('fusion_share')}")
    group.add_argument("--val-every", type=positive, metavar="N",
                       help=f"epochs from one validation to the next {_default('val_every')}")
    group.add_argument("--save-minutes", type=positive_float, metavar="N",
                       help=f"minutes from one save to the next {_default('save_minutes')}")


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preset", choices=PRESETS,
                       help="size of the network (default: small; with --init that of the checkpoint)")
    group.add_argument("--without", nargs="+", choices=ABLATIONS, metavar="PART",
                       help=f"ablation: leave out parts of the method ({', '.join(ABLATIONS)})")
    group.add_argument("--batch-size", type=positive, metavar="N",
                       help="pairs per step of one process (default: 8, on CUDA 16)")
    group.add_argument("--lr", type=positive_float, metavar="RATE", help=f"highest learning rate {_default('lr')}")
    group.add_argument("--dropout", type=share, metavar="SHARE",
                       help="share of the registration's deeper channels that each step leaves out "
                       f"{_default('dropout')}")
    group.add_argument("--averaging", type=share, metavar="SHARE",
                       help=f"decay of the running mean of the weights; the mean is saved {_default('averaging')}")
    group.add_argument("--seed", type=natural, metavar="N",
                       help=f"seed of the first weights and of all random draws {_default('seed')}")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"),
                       help=f"where to compute; auto prefers a GPU {_default('device')}")
    group.add_argument("--threads", type=positive, metavar="N",
                       help="CPU threads of one process (default: OMP_NUM_THREADS, or the cores that are idle)")
    group.add_argument("--workers", type=natural, metavar="N",
                       help="processes that make the pairs on the CPU (default: none; beside a GPU up to 8 for "
                       "--simulated)")
    group.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    group.add_argument("--compile", action=argparse.BooleanOptionalAction,
                       help="compile the training step, which takes minutes once (default: on CUDA only)")
