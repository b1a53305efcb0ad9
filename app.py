"""A local page to try the alignment and fusion on: two images or volumes in, pictures, maps and a download out.

    pip install -r requirements-app.txt
    python app.py                                        # opens at http://127.0.0.1:7860

The page runs the functions of the test command (EDARFusion_test_val.py) and shows what they write. It needs no network
and sends nothing anywhere. It listens on this machine alone unless --host says otherwise. Uploads and results lie in a
temporary folder: those of a visitor are removed when the page is closed, all of them when the program ends.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

# Before gradio is imported, which reads both then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
ROOT = tempfile.TemporaryDirectory(prefix="edarfusion-")
os.environ["GRADIO_TEMP_DIR"] = ROOT.name

import gradio as gr  # noqa: E402
import pandas as pd  # noqa: E402

from data.pairs import PairFiles, read_pair  # noqa: E402
from data.table import MODALITIES, DataError  # noqa: E402
from EDARFusion_test_val import parse_arguments  # noqa: E402
from evaluation.report.pair_page import (  # noqa: E402
    COLORMAPS,
    fused_view,
    maps_view,
    metrics_view,
    overlay_view,
    sureness_view,
)
from inference.checks import check_pairs  # noqa: E402
from inference.network import load_network  # noqa: E402
from inference.pair_fuser import PairFuser  # noqa: E402
from inference.result_folder import ResultFolder  # noqa: E402
from inference.run import (  # noqa: E402
    align_and_fuse,
    find_pairs,
    finish_folder,
    make_batches,
    prepare_folders,
    report_notes,
    say_what_to_look_at,
)
from inference.scoring_pool import save_and_score  # noqa: E402
from inference.volume_checks import open_volumes  # noqa: E402
from inference.volume_registration import register_volume  # noqa: E402
from utils.arguments import DEFAULT_CHECKPOINT, SAMPLE_ROOT, OneLineParser, positive, print_anywhere  # noqa: E402
from utils.files import InputError  # noqa: E402
from utils.imaging.images import read_image  # noqa: E402
from utils.messages import counted, log, show_messages  # noqa: E402

EXAMPLES = {"CT": "simulated_090", "PET": "simulated_096", "SPECT": "simulated_084"}
"""Pairs of the embedded sample that the page offers."""

MOST_WAITING = 8
"""Visitors that may wait for their turn; further ones are asked to come back."""

MOST_PIXELS = 2048 * 2048
"""Of an image or a slice: a larger one would take all others' time."""

INTRODUCTION = """# EDARFusion
Align and fuse an MRI with a CT, PET or SPECT image of the same head. **Research software, not for clinical use.**"""

CSS = """
.gradio-container { max-width: 1280px !important; }
.ef-row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 1rem; }
.ef-row figure { margin: 0; }
.ef-row img, .ef-slider img { width: 100%; height: auto; display: block; }
.ef-row figcaption { font-size: .85rem; padding-top: .25rem; }
.ef-slider { --at: 50%; position: relative; max-width: 560px; margin: auto; }
.ef-slider .before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.ef-slider .line { position: absolute; inset: 0 auto 0 var(--at); width: 2px; background: #fff; pointer-events: none; }
.ef-slider + input { width: 100%; max-width: 560px; display: block; margin: .5rem auto; }
.ef-table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
.ef-table th, .ef-table td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #8884; }
.ef-sure { padding: .5rem .75rem; border-left: 4px solid #2e7d32; }
.ef-sure.doubtful { border-left-color: #c62828; }
"""


class Fused(NamedTuple):
    """What a visitor has had made.

    Attributes:
        folder: the result folder of the modality.
        pairs: as `inference.checks.check_pairs` returns them.
        table: a row a pair, by name.
        notes: what should be known of the input, a line each.
    """

    folder: ResultFolder
    pairs: list[PairFiles]
    table: pd.DataFrame
    notes: list[str]


class _Notes(logging.Handler):
    """Collects what the test command would say on the terminal; one visitor is served at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep all messages while this lasts."""
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)


class Visitors:
    """The files of each visitor, by the number that gradio gives the open page.

    Args:
        root: the folder that gradio keeps uploads in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._uploads: dict[str, set[Path]] = {}
        self._stops: dict[str, threading.Event] = {}

    def note(self, visitor: str, files: Sequence[str] | None) -> None:
        """Remember what a visitor has uploaded."""
        self._uploads.setdefault(visitor, set()).update(Path(file) for file in files or ())

    def begin(self, visitor: str) -> tuple[Path, threading.Event]:
        """Make an empty folder for new results, and the event that ends their making when the page is closed."""
        folder = self.root / "visitors" / visitor
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._stops[visitor] = threading.Event()
        return folder, self._stops[visitor]

    def close(self, visitor: str) -> None:
        """Remove all that a visitor has uploaded and had made."""
        if visitor in self._stops:
            self._stops.pop(visitor).set()
        shutil.rmtree(self.root / "visitors" / visitor, ignore_errors=True)
        # Two visitors who upload the same file share it.
        mine, others = self._uploads.pop(visitor, set()), set().union(*self._uploads.values())
        for file in mine - others:
            if file.is_relative_to(self.root):
                shutil.rmtree(file.parent, ignore_errors=True)


class Page:
    """The page, with the network that serves all visitors one after the other.

    Args:
        checkpoint: the weights.
        device: of the network, as for the test command.
        most_slices: of a volume.
        root: folder for all files.
    """

    def __init__(self, checkpoint: str | Path, device: str, most_slices: int, root: Path) -> None:
        self.checkpoint, self.most_slices = str(checkpoint), most_slices
        given = ["--checkpoint", self.checkpoint, "--device", device, "--workers", "1", "--save-flow", "--save-maps"]
        self.options = parse_arguments(given)
        self.visitors = Visitors(root)
        self.network = load_network(self.options, [])
        settings = self.network.settings
        self.fuser = PairFuser(self.network.model, self.network.device, **settings)
        self.fuser_as_it_lies = PairFuser(self.network.model, self.network.device, **settings | {"multistart": False})

    def fuse(
        self,
        fixed: Sequence[str] | None,
        moving: Sequence[str] | None,
        modality: str,
        resample: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Align and fuse what a visitor has given; returns updates of the results' components."""
        try:
            fused = self._fuse(fixed, moving, modality, resample, request.session_hash, progress)
        except InputError as error:
            raise gr.Error(self._plain(str(error)), duration=None, print_exception=False) from error
        archive = shutil.make_archive(str(fused.folder.path.parent.parent / "edarfusion"), "zip", fused.folder.path)
        last = len(fused.pairs) - 1
        middle = last // 2
        notes = "\n".join(f"- {note}" for note in fused.notes)
        return (
            fused,
            gr.update(visible=True),
            gr.update(value=f"**Please note**\n\n{notes}" if notes else "", visible=bool(notes)),
            gr.update(maximum=max(last, 1), value=middle, visible=last > 0),
            gr.update(value=archive),
            *self.show(fused, middle),
            self.show_fused(fused, middle, 0.0, COLORMAPS[0], 0.0, 1.0),
        )

    def _fuse(
        self,
        fixed: Sequence[str] | None,
        moving: Sequence[str] | None,
        modality: str,
        resample: bool,
        visitor: str,
        progress: gr.Progress,
    ) -> Fused:
        for role, files in (("fixed image (MRI)", fixed), (f"moving image ({modality})", moving)):
            if not files:
                raise DataError(f"expected a {role}, found none: drop a file or choose an example")
        place, stop = self.visitors.begin(visitor)
        paths = [_one_path(files, place / role) for role, files in (("fixed", fixed), ("moving", moving))]
        progress(0.0, desc="Reading")
        given = {"fixed": str(paths[0]), "moving": str(paths[1]), "output": place / "results"}
        options = replace(self.options, modality=modality, **given)
        volumes, notes = None, _Notes()
        with notes.collected():
            if options.has_volumes:
                options = replace(options, resample=resample)
                volumes = open_volumes(options)
                count = len(volumes.levels["fixed"])
                if count > self.most_slices:
                    raise DataError.at(paths[0], f"at most {counted(self.most_slices, 'slice')}", str(count))
                pairs = volumes.write_slices(place / "slices")
            else:
                pairs = find_pairs(options, [])[modality]
            pairs, _ = check_pairs(pairs, modality, keep_going=False)
            size = read_image(pairs[0].fixed).size
            if size > MOST_PIXELS:
                raise DataError.at(paths[0], f"at most {MOST_PIXELS:,} pixels on this page", f"{size:,}")
            (batch,) = batches = make_batches(options, {modality: pairs}, self.network, volumes)
            prepare_folders(batches)
            if volumes:
                batch.field = register_volume(volumes, pairs, self.fuser_as_it_lies, stop)
            for job in align_and_fuse(batch, pairs, self.fuser, stop):
                batch.rows[job.pair.name] = save_and_score(job)
                progress((len(batch.rows), len(pairs)), desc="Aligning and fusing", unit="slices")
            if stop.is_set():
                raise DataError("expected the page to stay open, found it closed")
            table = finish_folder(batch, volumes, report_notes(options, self.network, volumes))
            say_what_to_look_at(batches, [])
        lines = dict.fromkeys(self._plain(line) for line in notes.lines)
        return Fused(batch.folder, pairs, table.set_index("name"), list(lines))

    def _plain(self, text: str) -> str:
        """Name files in a message as a visitor knows them."""
        root = re.escape(str(self.visitors.root))
        return re.sub(rf"{root}/(?:visitors/)?[^/\s]+/", "", text)

    def show(self, fused: Fused | None, number: int) -> tuple[str, str, str, str]:
        """Make the views of one pair that depend on nothing else: overlay, sureness, maps, metrics."""
        if fused is None:
            return "", "", "", ""
        pair = fused.pairs[int(number)]
        images, known = read_pair(pair, fused.folder.modality), fused.folder.files(pair.name)
        files = {kind: path for kind, path in known.items() if path.is_file()}  # not every pair has every map
        aligned = read_image(files["aligned"], color=images.moving.ndim == 3)
        row = fused.table.loc[pair.name]
        return (
            overlay_view(images.fixed, images.moving, aligned),
            sureness_view(row, files),
            maps_view(files),
            metrics_view(fused.table.loc[[pair.name]].reset_index()),
        )

    def show_fused(
        self, fused: Fused | None, number: int, blend: float, colormap: str, low: float, high: float
    ) -> str:
        """Show the fused image as a visitor wants it."""
        if fused is None:
            return ""
        pair = fused.pairs[int(number)]
        files = fused.folder.files(pair.name)
        images = read_pair(pair, fused.folder.modality)
        pictures = [read_image(files[kind], color=images.moving.ndim == 3) for kind in ("fused", "aligned")]
        return fused_view(images.fixed, *pictures, blend=blend, colormap=colormap, low=low, high=high)

    def blocks(self) -> gr.Blocks:
        """Lay out the page and connect its parts to their actions."""
        # Files that were uploaded and never used go within the hour.
        with gr.Blocks(title="EDARFusion", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                kind = {"file_count": "multiple", "type": "filepath", "height": 140, "min_width": 300}
                fixed = gr.File(label="Fixed image: MRI (image, NIfTI, or the files of one DICOM series)", **kind)
                moving = gr.File(label="Moving image: CT, PET or SPECT of the same head", **kind)
            modality = gr.Radio(MODALITIES, value=MODALITIES[0], label="Modality of the moving image")
            resample = gr.Checkbox(
                label="Volumes: bring the moving one onto the grid of the fixed one, as the headers say (--resample)"
            )
            run = gr.Button("Align and fuse", variant="primary", elem_id="run")
            with gr.Row():
                examples = {name: gr.Button(f"Example: {name}", size="sm") for name in EXAMPLES}
            state = gr.State(None)
            with gr.Column(visible=False, elem_id="results") as results:
                notes = gr.Markdown(visible=False)
                number = gr.Slider(0, 1, step=1, label="Slice, from the feet up", visible=False)
                with gr.Row():
                    with gr.Column(scale=3, min_width=300):
                        gr.Markdown("## Before and after\nMRI red, the other green: yellow where both are bright.")
                        overlay = gr.HTML()
                    with gr.Column(scale=2, min_width=300):
                        gr.Markdown("## How sure, and where")
                        sureness = gr.HTML()
                gr.Markdown("## Fused")
                picture = gr.HTML()
                with gr.Row():
                    blend = gr.Slider(-1, 1, 0, step=0.05, label="Blend: MRI (-1), fused (0), aligned image (1)")
                    colormap = gr.Dropdown(COLORMAPS, value=COLORMAPS[0], label="Colour map of grey pictures")
                    low = gr.Slider(0, 1, 0, step=0.01, label="Window: black at")
                    high = gr.Slider(0, 1, 1, step=0.01, label="Window: white at")
                gr.Markdown("## Maps")
                maps = gr.HTML()
                gr.Markdown("## Measures that need no truth")
                metrics = gr.HTML()
                download = gr.DownloadButton("Download all: images, flow, maps, table, report (zip)")
            wishes = [state, number, blend, colormap, low, high]
            views = [overlay, sureness, maps, metrics]
            shown = [state, results, notes, number, download, *views, picture]
            inputs = [fixed, moving, modality, resample]
            # One at a time: the network and what it says are shared.
            how = {"concurrency_limit": 1, "concurrency_id": "network"}
            run.click(self.fuse, inputs, shown, **how)
            for name, button in examples.items():
                pair = [[str(SAMPLE_ROOT / name / role / f"{EXAMPLES[name]}.png")] for role in ("fixed", "moving")]
                values = (*pair, name, False)
                button.click(lambda values=values: values, None, inputs).then(self.fuse, inputs, shown, **how)
            number.change(self.show, [state, number], views, show_progress="hidden")
            for control in (number, blend, colormap, low, high):
                control.change(self.show_fused, wishes, picture, show_progress="hidden", trigger_mode="always_last")
            for files in (fixed, moving):
                files.change(self._note, files, None, show_progress="hidden")
            blocks.unload(self._close)
            blocks.queue(max_size=MOST_WAITING)
        return blocks

    def _note(self, files: Sequence[str] | None, request: gr.Request) -> None:
        self.visitors.note(request.session_hash, files)

    def _close(self, request: gr.Request) -> None:
        self.visitors.close(request.session_hash)


def _one_path(files: Sequence[str], folder: Path) -> Path:
    """Return the one file, or a folder of several, such as those of a DICOM series."""
    if len(files) == 1:
        return Path(files[0])
    folder.mkdir()
    for number, file in enumerate(files):
        # Several folders of one upload may hold files of one name.
        os.link(file, folder / f"{number:05}-{Path(file).name}")
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Run ``python app.py``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("app", description=__doc__)
    parser.add_argument("--checkpoint", metavar="FILE", default=DEFAULT_CHECKPOINT, help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=positive, default=7860, help="default: %(default)s")
    parser.add_argument("--most-mb", type=positive, default=200, metavar="N",
                        help="largest file, megabytes (default: %(default)s)")
    parser.add_argument("--most-slices", type=positive, default=200, metavar="N",
                        help="largest volume, slices (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    options = parser.parse_args(arguments)
    show_messages(parser.prog)
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"app: listens on {options.host}: without encryption or password, for whoever can reach it",
              file=sys.stderr)
    try:
        # Without an answer to SIGTERM the temporary folder would stay.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        blocks = Page(options.checkpoint, options.device, options.most_slices, Path(ROOT.name)).blocks()
        _, address, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            inbrowser=not options.no_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=f"{options.most_mb}mb",
            allowed_paths=[str(SAMPLE_ROOT)],
            # Fonts of the system: the theme's own would come from the network.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
            footer_links=[],
            run_history=False,
        )
        print(f"app: open {address} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    except (InputError, OSError) as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    finally:
        ROOT.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
