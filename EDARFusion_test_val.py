"""Align and fuse pairs of an MRI slice and a CT, PET or SPECT slice with a trained model, and score the results.

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

# The processes that score import this file again, so what needs torch is imported where the work begins.
import argparse
import hashlib
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data.pairs import folder_pairs, read_pair, sample_pairs, table_pairs
from data.table import FILES, MODALITIES, SPLITS, modality_name, split_name
from evaluation.metrics.displacement import DOUBTFUL
from evaluation.report.columns import METRICS
from inference.checks import check_pairs
from inference.result_folder import ResultFolder
from inference.scoring_pool import Job, evaluate, scoring_pool
from inference.volume_checks import has_volumes, open_volumes
from inference.volume_pair import VolumePair
from utils.arguments import DEFAULT_CHECKPOINT, ENGINES, OneLineParser, natural, positive, print_anywhere
from utils.files import FileError, InputError, check_inputs_stay
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image
from utils.imaging.volumes import check_no_volumes
from utils.messages import PROGRAM, counted, listed, say
from utils.processes import available_cores, join, local_world, part, rank, wait_for_others, world
from utils.signals import INTERRUPTED, stop_on_signal

if TYPE_CHECKING:
    from inference.mirror_check import MirrorCheck
    from inference.network import Network
    from inference.pair_fuser import PairFuser

SUMMARY = ("rmse", "ssim", "ncc", "epe", "disagreement", "qabf", "qvif", "qcv", "folding", "seconds")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as they go together."""
    parser = OneLineParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("pairs (default: the embedded sample)")
    data.add_argument("--modality", type=modality_name, default="all", metavar="CT|PET|SPECT|all",
                      help="of the moving images (default: %(default)s)")
    data.add_argument("--fixed", metavar="DIR", help="fixed images (MRI); or a volume: NIfTI, DICOM")
    data.add_argument("--moving", metavar="DIR", help="moving images, grey or colour; files pair by stem")
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
    if options.modality not in (*MODALITIES, "all"):
        parser.error(f"--modality: expected one of {', '.join(MODALITIES)}, all, found {options.modality!r}")
    if bool(options.fixed) != bool(options.moving):
        parser.error("expected --fixed and --moving, found one of them")
    if options.label and not options.fixed:
        parser.error("--label: expected --fixed and --moving with it, found neither")
    if options.fixed and options.csv:
        parser.error("expected either --fixed and --moving or --csv, found both")
    if options.fixed and options.modality == "all":
        parser.error(f"--modality: expected one of {', '.join(MODALITIES)} with --fixed and --moving, found all")
    if options.engine != "torch" and options.device not in ("auto", "cpu"):
        parser.error(f"--engine: expected torch on {options.device}, found {options.engine}")
    for name in ("window", "resample"):
        if getattr(options, name) and not has_volumes(options):
            parser.error(f"--{name}: expected volumes as --fixed and --moving, found images")
    if options.window and not (np.isfinite(options.window).all() and options.window[1] > 0):
        found = " ".join(f"{number:g}" for number in options.window)
        parser.error(f"--window: expected two finite numbers, the width above 0, found {found}")
    if (options.root or options.split) and not options.csv:
        parser.error("--root, --split: expected --csv with them, found none")
    return options


def find_pairs(options: argparse.Namespace, left_out: list[str]) -> dict[str, list[dict]]:
    """The pairs that the options name, by modality; with --keep-going what is lacking goes to `left_out` instead."""
    skipped = left_out if options.keep_going else None
    if options.fixed:
        folders = options.fixed, options.moving, options.label
        check_no_volumes(filter(None, folders))
        return folder_pairs(options.modality, *folders, skipped)
    if options.csv:
        root = options.root or Path(options.csv).parent
        chosen = table_pairs(options.csv, root, options.modality, options.split, skipped)
        rows = [pair for pairs in chosen.values() for pair in pairs]
        check_no_volumes(pair[role] for pair in rows for role in ("fixed", "moving", "label") if pair[role])
        return chosen
    return sample_pairs(options.modality)


def say_what_is_older(folder: ResultFolder, pairs: list[dict], volumes: bool) -> None:
    """Name what lies beside the results of these pairs; `volumes`: where they are slices of volumes."""
    if strangers := folder.strangers(pairs, volumes=volumes):
        what = counted(len(strangers), "result")
        say(f"{folder.path}: holds {what} of an earlier run as well: {listed(strangers)}")


def print_summary(tables: dict[str, pd.DataFrame], folders: dict[str, ResultFolder]) -> None:
    """Means by modality, before → after where both are known, and where the pictures are."""
    means = {modality: table.mean(numeric_only=True) for modality, table in tables.items()}
    summary = Table("mean", *(f"{name}, {counted(len(table), 'pair')}" for name, table in tables.items()))
    for column in SUMMARY:
        cells = []
        for mean in means.values():
            values = [mean.get(f"{column}_before"), mean.get(column)]
            cells.append(" → ".join(f"{value:.{METRICS[column].digits}f}" for value in values if pd.notna(value)))
        if any(cells):
            summary.add_row(f"{METRICS[column].text} {METRICS[column].arrow}", *cells)
    Console().print(summary)
    for modality in tables:
        print(f"{modality}: pictures in {folders[modality].report_path}, metrics in {folders[modality].table_path}")
    for modality, table in tables.items():
        doubtful = table.reindex(columns=["name", "disagreement"]).query("disagreement > @DOUBTFUL")["name"]
        if len(doubtful):
            print(
                f"{modality}: look closely at {', '.join(doubtful)}: disagreement above {DOUBTFUL:g} px of 256; "
                "do the images belong together and lie alike?"
            )


def what_results_depend_on(options: argparse.Namespace, network: "Network") -> dict:
    """Beside the pairs: --resume takes over no results that were made otherwise."""
    return {
        "checkpoint": Path(options.checkpoint).name,
        "sha256": hashlib.sha256(Path(options.checkpoint).read_bytes()).hexdigest(),
        **network.settings,
        "engine": options.engine,
        "window": options.window,
        "resample": options.resample,
    }


def report_notes(options: argparse.Namespace, network: "Network", volumes: VolumePair | None) -> dict:
    """What the report says of how its images were made."""
    import torch

    settings = network.settings
    notes = {
        "checkpoint": f"{Path(options.checkpoint).name}, trained for {network.trained_for}",
        "passes": settings["passes"],
        "estimates averaged": 4 if settings["average"] else 1,
        "multi-start": "where pairs lie far apart" if settings["multistart"] else "no",
        "device": network.device,
        "engine": options.engine,
        "PyTorch": torch.__version__,
    }
    if volumes:
        notes["window"] = volumes.window_text()
    if not (options.fixed or options.csv):
        notes["pairs"] = "the embedded sample: simulated, says nothing about patients' images"
    return notes


def prepare_folder(folder: ResultFolder, finished: Collection[dict]) -> None:
    """Make a folder that gets results, with the rows that are finished in its table and in the first process's part.

    Raises:
        FileError: it cannot be made, or nothing can be written in it.
    """
    folder.prepare()
    if finished:
        folder.write_rows(finished)  # what was finished may lie in the parts alone
    folder.remove_parts()
    if finished and world() > 1:
        folder.write_rows(finished, part())


def align_and_fuse(
    pairs: list[dict], folder: ResultFolder, fuse: "PairFuser", mirror: "MirrorCheck", stop: threading.Event
) -> Iterator[Job]:
    """Jobs of saving and scoring, one for each pair, until `stop` is set; `mirror` looks at some of the pairs."""
    from inference.mirror_check import LOOKED_AT
    from inference.pair_fuser import endpoint_scores

    # Neither first nor last: the ends of a volume show little of a head.
    looked_at = set(np.linspace(0, len(pairs) - 1, LOOKED_AT + 2)[1:-1].round())
    for place, pair in enumerate(pairs):
        if stop.is_set():
            return
        images = read_pair(pair, folder.modality)
        view = {"aspect": pair.get("aspect", 1.0), "longest": pair["longest"]}
        result = fuse(images.fixed, images.moving, **view)
        if rank() == 0 and place in looked_at and result.disagreement:
            mirror.look(images.fixed, images.moving, result.disagreement, **view)
        scores = {}
        if pair["flow"]:
            true_flow = load_flow(pair["flow"], images.fixed.shape)
            scores = endpoint_scores(result.flow, true_flow, read_image(pair["label"]))
        # Seven maps of a pair are more than all else that waits with it.
        yield Job(folder, pair, result if folder.maps or folder.figures else result._replace(maps={}), scores)


def finish_folder(
    folder: ResultFolder, pairs: list[dict], known: dict[str, dict], volumes: VolumePair | None, notes: dict
) -> pd.DataFrame:
    """Write what follows from all pairs of a modality, and return their table.

    Args:
        known: rows by name.
        volumes: where the pairs are slices of volumes, these.
        notes: of `report_notes`.

    Raises:
        FileError: the row of a pair is missing, as another process wrote it elsewhere; or a file cannot be written.
    """
    if missing := [pair["name"] for pair in pairs if pair["name"] not in known]:
        expected = "a folder that all processes see, with the rows of all pairs (then --resume goes on)"
        found = f"none of {counted(len(missing), 'pair')}, such as {missing[0]}"
        raise FileError.at(folder.path, expected, found)
    ordered = [known[pair["name"]] for pair in pairs]
    folder.write_rows(ordered)
    folder.remove_parts()
    if volumes:
        volumes.write_results(folder, pairs)
    folder.write_report(pairs, notes)
    return pd.DataFrame(ordered)


def fuse_and_score(
    options: argparse.Namespace, chosen: dict[str, list[dict]], left_out: list[str], volumes: VolumePair | None = None
) -> int:
    """Check all input, then align, fuse and score the pairs; returns the exit status.

    Args:
        chosen: modality -> pairs.
        left_out: what --keep-going has left out already, and why.
        volumes: where the pairs are slices of volumes, these.
    """
    for modality, pairs in chosen.items():
        chosen[modality], unreadable = check_pairs(pairs, modality, options.keep_going)
        left_out = left_out + unreadable

    from inference.mirror_check import MirrorCheck
    from inference.network import load_network
    from inference.pair_fuser import PairFuser

    # What the pairs are, whatever was asked for: a table may hold one modality only.
    network = load_network(options, [modality for modality, pairs in chosen.items() if pairs])
    fuse = PairFuser(network.model, network.device, **network.settings)
    fuse_as_it_lies = PairFuser(network.model, network.device, **network.settings | {"multistart": False})
    mirror_checks = {modality: MirrorCheck(fuse_as_it_lies) for modality in chosen}
    extras = {"flow": options.save_flow, "maps": options.save_maps, "figures": options.save_figures}
    made_with = what_results_depend_on(options, network)
    folders = {kind: ResultFolder(options.output / kind, kind, made_with, **extras) for kind in chosen}
    inputs = [pair[role] for pairs in chosen.values() for pair in pairs for role in FILES]
    inputs += [options.checkpoint, options.csv, options.fixed, options.moving, options.label]
    outputs = [path for kind, folder in folders.items() for path in folder.all_files(chosen[kind])]
    check_inputs_stay(filter(None, inputs), outputs)

    rows = {kind: folders[kind].rows_to_keep(chosen[kind], options.resume, bool(volumes)) for kind in chosen}
    join()
    for modality, pairs in chosen.items() if rank() == 0 else ():
        if pairs:
            prepare_folder(folders[modality], rows[modality].values())
    wait_for_others()
    notes = report_notes(options, network, volumes)
    tables = {}
    workers = max(1, min(options.workers, max(map(len, chosen.values()))))
    with stop_on_signal(second_breaks_in=world() == 1) as stop, scoring_pool(workers) as pool:
        for modality, pairs in chosen.items():
            folder, order = folders[modality], {pair["name"]: place for place, pair in enumerate(pairs)}
            todo = [pair for pair in pairs if pair["name"] not in rows[modality]][rank()::world()]
            known = rows[modality] if rank() == 0 else {}
            jobs = align_and_fuse(todo, folder, fuse, mirror_checks[modality], stop)
            with tqdm(total=len(todo), desc=modality, unit="pair", disable=rank() > 0) as progress:
                for row in evaluate(jobs, pool, 2 * workers):
                    known[row["name"]] = row
                    folder.write_rows(sorted(known.values(), key=lambda row: order[row["name"]]), part())
                    progress.update()
            if not all(pair["name"] in known for pair in todo):
                if world() == 1:
                    say_what_is_older(folder, [pair for pair in pairs if pair["name"] in known], volumes is not None)
                message = f"interrupted at {modality} after {len(known)} of {len(pairs)} pairs"
                print(f"{PROGRAM}: {message}; the same command with --resume goes on", file=sys.stderr)
                return INTERRUPTED
            wait_for_others()
            if rank() == 0 and pairs:
                known = folder.read_rows() if world() > 1 else known
                tables[modality] = finish_folder(folder, pairs, known, volumes, notes)
    if rank() == 0:
        if tables:
            print_summary(tables, folders)
        for modality, folder in folders.items():
            if (check := mirror_checks[modality]).seems_mirrored():
                found = f"{sum(check.found)} of {len(check.found)} pairs looked at"
                say(f"{modality}: the moving images fit better mirrored left to right in {found}; is one side flipped?")
            say_what_is_older(folder, chosen[modality], volumes is not None)
        for reason in left_out:
            say(f"left out: {reason}")
    # Where one process ends with an error, torchrun ends those that are still writing.
    wait_for_others()
    return 1 if left_out else 0


def run(options: argparse.Namespace) -> int:
    """Align, fuse and score what the options name; returns the exit status."""
    left_out: list[str] = []
    if not has_volumes(options):
        return fuse_and_score(options, find_pairs(options, left_out), left_out)
    volumes = open_volumes(options)
    # The aligned volume is made from the moving one's own values with the flow.
    options.save_flow = True
    with tempfile.TemporaryDirectory() as slices:
        return fuse_and_score(options, {options.modality: volumes.write_slices(slices)}, left_out, volumes)


def main(arguments: list[str] | None = None) -> int:
    """``python EDARFusion_test_val.py``; returns the exit status."""
    print_anywhere()
    try:
        return run(parse_arguments(arguments))
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
