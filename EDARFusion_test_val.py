"""Align and fuse pairs of an MRI slice and a CT, PET or SPECT slice with a trained network, and score the results.

    python EDARFusion_test_val.py                                  # the embedded sample, all modalities
    python EDARFusion_test_val.py --modality CT --fixed MRI --moving CT [--label CT_label]
    python EDARFusion_test_val.py --modality PET --csv PAIRS.csv --root DATA --split val
    python EDARFusion_test_val.py --modality CT --fixed MRI.nii.gz --moving CT.nii.gz [--window 40 80] [--resample]
    torchrun --nproc_per_node=2 EDARFusion_test_val.py ...         # several processes share the pairs

Results go to OUTPUT/MODALITY: fused/ and aligned/ images, metrics.csv, settings.json, report.html and, if asked for,
flow/, maps/ and figures/. Of NIfTI files and DICOM folders each axial slice is a pair, and aligned.nii.gz and
fused.nii.gz lie on the grid of the fixed volume. Ctrl-C and SIGTERM end after the pair at hand; --resume goes on from
there, with the same checkpoint.
"""

import argparse
import sys
from pathlib import Path

from data.table import SPLITS, modality_name, split_name
from inference.options import Options
from utils.arguments import DEFAULT_CHECKPOINT, ENGINES, OneLineParser, natural, positive, print_anywhere
from utils.files import InputError
from utils.messages import log, show_messages
from utils.processes import available_cores, local_world
from utils.signals import INTERRUPTED

PROGRAM = "EDARFusion_test_val"


def parse_arguments(arguments: list[str] | None = None) -> Options:
    """Read the options, checked as far as they go together."""
    parser = OneLineParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("pairs (default: the embedded sample)")
    data.add_argument("--modality", type=modality_name, default="all", metavar="CT|PET|SPECT|all",
                      help="of the moving images (default: %(default)s)")
    data.add_argument("--fixed", metavar="DIR", help="fixed images (MRI); or a volume: NIfTI, DICOM")
    data.add_argument("--moving", metavar="DIR", help="moving images, grey or colour, matched by file name")
    data.add_argument("--label", metavar="DIR", help="truly aligned moving images, to score the alignment")
    data.add_argument("--csv", metavar="FILE",
                      help="table of pairs, columns fixed, moving [, name, label, flow, modality, split]")
    data.add_argument("--root", metavar="DIR", help="folder that its paths start from (default: that of the table)")
    data.add_argument("--split", type=split_name, choices=SPLITS, help="which of its rows (default: all)")
    data.add_argument("--window", type=float, nargs=2, metavar=("CENTER", "WIDTH"),
                      help="grey levels of the moving volume (default: 40 80 for CT in Hounsfield units)")
    data.add_argument("--resample", action="store_true",
                      help="bring moving volume and label onto the grid of the fixed one, as their headers say")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", metavar="FILE", default=DEFAULT_CHECKPOINT, help="default: %(default)s")
    model.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    model.add_argument("--engine", choices=ENGINES, default=ENGINES[0],
                       help="what computes; openvino-bf16 can be faster on a CPU, after some seconds for each size")
    model.add_argument("--passes", type=natural, metavar="N",
                       help="registrations, each on the image aligned so far; 0 only fuses, for pairs that are aligned "
                            "(default: as the checkpoint says)")
    model.add_argument("--average", action=argparse.BooleanOptionalAction,
                       help="average both directions of pair and mirror image, and hold the global displacement back "
                            "as far as they disagree (default: as the checkpoint says)")
    model.add_argument("--no-multistart", dest="multistart", action="store_false",
                       help="of averaged estimates: do not try other starts for pairs that lie far apart")
    output = parser.add_argument_group("results")
    output.add_argument("--output", metavar="DIR", type=Path, default=Path("results"), help="default: %(default)s")
    output.add_argument("--save-flow", action="store_true", help="displacement fields, flow/NAME.npy")
    output.add_argument("--save-maps", action="store_true",
                        help="entropy, gate, reliability ...: maps/MAP/NAME.png, their values maps/values/NAME.npz")
    output.add_argument("--save-figures", action="store_true",
                        help="figures/NAME.png, all of a pair, and figures/strips/NAME.png, a row for a paper")
    output.add_argument("--resume", action="store_true", help="leave out the pairs that an earlier run has finished")
    output.add_argument("--keep-going", action="store_true",
                        help="leave out what cannot be read or is not there; exit 1")
    output.add_argument("--workers", type=positive, metavar="N", default=max(1, available_cores() // local_world()),
                        help="processes that save and score (default: one a core)")
    options = parser.parse_args(arguments)
    try:
        return Options(**vars(options))
    except InputError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> int:
    """Run ``python EDARFusion_test_val.py``; return the exit status."""
    print_anywhere()
    show_messages(PROGRAM)
    try:
        options = parse_arguments(arguments)
        # Brings torch, which the processes that score do without: they import this file again.
        from inference.run import run

        return run(options)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        log.warning("interrupted; the same command with --resume goes on")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
