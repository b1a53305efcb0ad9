"""Align and fuse pairs of an MRI and a CT, PET or SPECT image with a trained network, and score the results.

examples:
  python EDARFusion_test_val.py                     # fuse the embedded sample
  python EDARFusion_test_val.py --modality CT --fixed mri.png --moving ct.png
  python EDARFusion_test_val.py --fixed MRI --moving PET --save-maps
  python EDARFusion_test_val.py --fixed mri.nii --moving ct.nii --save-flow
  python EDARFusion_test_val.py --csv pairs.csv --root DATA --split val
  torchrun --nproc_per_node=2 EDARFusion_test_val.py --csv pairs.csv # 2 GPUs

Images of folders are matched by file name. Results go to OUTPUT/MODALITY: fused and aligned images, metrics.csv and
report.html. Ctrl-C ends after the current pair; --resume continues. See docs/using.md.
"""

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from data.table import SPLITS, modality_name, split_name
from inference.options import Options
from utils.arguments import (
    COLOR_MODES,
    ENGINES,
    FLOW_FORMATS,
    OneLineParser,
    add_checkpoint,
    add_device,
    colormap_name,
    natural,
    positive,
    print_anywhere,
    share,
)
from utils.command import run_command
from utils.files import InputError
from utils.messages import printable, show_messages
from utils.processes import available_cores, local_world, rank

PROGRAM = "EDARFusion_test_val"


def parse_arguments(arguments: list[str] | None = None) -> Options:
    """Read the options, checked as far as they go together."""
    parser = OneLineParser(PROGRAM, description=__doc__)
    add_pairs(parser.add_argument_group("pairs (default: the embedded sample)"))
    add_marks(parser.add_argument_group("marks on the images"))
    add_volumes(parser.add_argument_group("volumes"))
    add_network(parser.add_argument_group("network"))
    add_colors(parser.add_argument_group("colours of PET and SPECT"))
    add_results(parser.add_argument_group("results"))
    options = parser.parse_args(arguments)
    try:
        return Options(**vars(options))
    except InputError as error:
        parser.error(str(error))


def add_pairs(group: argparse._ArgumentGroup) -> None:
    """Add the options that name the images."""
    group.add_argument("--modality", type=modality_name, default="all", metavar="CT|PET|SPECT|all",
                       help="modality of the moving images (default: all of the sample or table; guessed from images)")
    group.add_argument("--fixed", metavar="DIR", help="folder or file of fixed images (MRI), or a volume: NIfTI, DICOM")
    group.add_argument("--moving", metavar="DIR", help="folder or file of moving images, grey or colour, or a volume")
    group.add_argument("--label", metavar="DIR", help="truly aligned moving images, if known, to score the alignment")
    group.add_argument("--csv", metavar="FILE",
                       help="table of pairs instead: columns fixed, moving [, name, label, flow, modality, split]")
    group.add_argument("--root", metavar="DIR",
                       help="folder that the paths of the table start from (default: that of the table)")
    group.add_argument("--split", type=split_name, choices=SPLITS, help="rows of the table to take (default: all)")
    group.add_argument("--fit", choices=("heads", "none"), default="heads",
                       help="heads: scale a moving image of another size, or a CT whose head is far larger or smaller, "
                            "so that both heads match roughly; none: refuse other sizes (default: %(default)s)")


def add_marks(group: argparse._ArgumentGroup) -> None:
    """Add the options that name what the user has marked on the images."""
    group.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"),
                       help="CSV files, or folders of them, with the same points in both images: their distance before "
                            "and after goes to metrics.csv")
    group.add_argument("--segmentations", nargs=2, metavar=("FIXED", "MOVING"),
                       help="label maps of both images: their Dice overlap before and after goes to metrics.csv")
    group.add_argument("--mask", metavar="DIR",
                       help="images or volume on the fixed grid, above 0 where nothing is to be matched, such as a "
                            "lesion: the displacement continues smoothly from around it")


def add_volumes(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how volumes are read and brought together."""
    group.add_argument("--window", type=float, nargs=2, metavar=("CENTER", "WIDTH"),
                       help="window of grey levels of the moving volume (default: 40 80 for CT in Hounsfield units)")
    group.add_argument("--resample", action="store_true",
                       help="resample moving volume and label onto the grid of the fixed one, by their headers")
    group.add_argument("--prealign", choices=("rigid", "affine", "none"),
                       help="find the pose of the moving head in space first (default: rigid if the headers cannot be "
                            "right about it)")
    group.add_argument("--frame", type=positive, metavar="N",
                       help="use frame N, from 1, of a moving volume in time (default: the mean of all frames)")
    group.add_argument("--rigid-only", dest="passes", action="store_const", const=0,
                       help="stop after the pose of the head: the same as --passes 0")


def add_network(group: argparse._ArgumentGroup) -> None:
    """Add the options of the network and of what computes it."""
    add_checkpoint(group)
    add_device(group)
    group.add_argument("--engine", choices=ENGINES, default=ENGINES[0],
                       help="library that computes; openvino-bf16 can be faster on a CPU (default: %(default)s)")
    group.add_argument("--batch-size", type=positive, metavar="N",
                       help="number of pairs of one size that the network takes at a time; slices of volumes go one by "
                            "one (default: 8 on CUDA, otherwise 1)")
    group.add_argument("--passes", type=natural, metavar="N",
                       help="number of registrations, each on the result of the one before; 0 only fuses pairs that "
                            "are aligned already (default: that of the checkpoint)")
    group.add_argument("--average", action=argparse.BooleanOptionalAction,
                       help="average four estimates (both directions, also of the mirrored pair), and shorten the "
                            "displacement where they disagree (default: that of the checkpoint)")
    group.add_argument("--no-multistart", dest="multistart", action="store_false",
                       help="do not try other poses for pairs that lie far apart")


def add_colors(group: argparse._ArgumentGroup) -> None:
    """Add the options of how fused images show a tracer."""
    group.add_argument("--colour", "--color", dest="color", choices=COLOR_MODES, default=COLOR_MODES[0],
                       help="keep: keep the tracer's hue and saturation, and the MRI's detail as far as they allow; "
                            "luma: the usual way, colours turn pale where the MRI is bright (default: %(default)s)")
    group.add_argument("--colormap", type=colormap_name, metavar="NAME", default="hot",
                       help="colour scale for grey images: pet, spect, or one of matplotlib; gray keeps them grey "
                            "(default: %(default)s)")
    group.add_argument("--luma-steps", type=natural, metavar="N",
                       help="steps that improve the fused luma of each coloured pair whose colours are kept; 0 shows "
                            "what the network fuses (default: 24 with --modality SPECT, else 0)")
    group.add_argument("--blend", type=share, metavar="ALPHA",
                       help="also write the plain overlay, blend/NAME.png, with this share of the moving image")


def add_results(group: argparse._ArgumentGroup) -> None:
    """Add the options of what is written, and how."""
    group.add_argument("--output", metavar="DIR", type=Path, default=Path("results"),
                       help="folder to write to (default: %(default)s)")
    group.add_argument("--save-flow", action="store_true",
                       help="write displacement fields and their inverses: flow/NAME.npy, flow_inverse/NAME.npy")
    group.add_argument("--flow-format", choices=FLOW_FORMATS, metavar="FORMAT",
                       help=f"format of the fields: {', '.join(FLOW_FORMATS)} (default: npy, in px); the others "
                            "are in mm, LPS, for ITK and ANTs")
    group.add_argument("--save-maps", action="store_true",
                       help="write entropy, gate, reliability and the other maps: maps/MAP/NAME.png and, as numbers, "
                            "maps/values/NAME.npz")
    group.add_argument("--save-figures", action="store_true",
                       help="write all of a pair as one picture: figures/NAME.png and, as a row, "
                            "figures/strips/NAME.png")
    group.add_argument("--resume", action="store_true",
                       help="continue an interrupted run: keep the pairs that are finished")
    group.add_argument("--keep-going", action="store_true",
                       help="skip pairs that cannot be read or are incomplete, list them, and exit with status 1")
    group.add_argument("--workers", type=positive, metavar="N",
                       default=max(1, min(16, available_cores() // local_world())),
                       help="number of processes that save and score (default: one per core, at most 16)")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python EDARFusion_test_val.py``; return the exit status."""
    print_anywhere()
    show_messages(PROGRAM)
    options = parse_arguments(arguments)

    return run_command(PROGRAM, work, options, hint="; the same command with --resume goes on")


def work(options: Options) -> int:
    """Do what the options ask for, and say at once how far it is: on a busy machine loading PyTorch takes minutes.

    The processes that score import this file again and do without torch, so the modules that bring it wait.
    """
    output = f"results go to {printable(str(options.output))}"
    if options.has_volumes:
        say(f"{output}; loading PyTorch")
        from inference.run import run_volumes

        return run_volumes(options)
    say(output)
    from inference.chosen_pairs import choose_pairs, counted_pairs

    chosen, left_out = choose_pairs(options)
    say(f"{counted_pairs(chosen)}; loading PyTorch")
    from inference.run import fuse_and_score

    return fuse_and_score(options, chosen, left_out)


def say(text: str) -> None:
    """Print a line, once. That a reader is gone is said at the end."""
    if rank() == 0:
        with suppress(OSError):
            print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
