"""A local page to try the alignment and fusion on: two images or volumes in, pictures, maps and a download out.

    pip install -r requirements-app.txt
    python app.py                                        # opens at http://127.0.0.1:7860

The page runs the functions of the test command (EDARFusion_test_val.py) and shows what they write. It needs no network
and sends nothing anywhere. It listens on this machine alone unless --host says otherwise. Uploads and results lie in a
temporary folder: those of a visitor are removed when the page is closed, all of them when the program ends.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads both then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
ROOT = tempfile.TemporaryDirectory(prefix="edarfusion-")
os.environ["GRADIO_TEMP_DIR"] = ROOT.name

import gradio as gr  # noqa: E402

from data.pairs import read_pair  # noqa: E402
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
from inference.uploads import Fused, UploadFuser, Visitors  # noqa: E402
from utils.arguments import (  # noqa: E402
    COLOR_MODES,
    DEFAULT_CHECKPOINT,
    SAMPLE_ROOT,
    OneLineParser,
    positive,
    print_anywhere,
)
from utils.files import InputError  # noqa: E402
from utils.imaging.images import read_image  # noqa: E402
from utils.messages import counted, show_messages  # noqa: E402

EXAMPLES = {"CT": "simulated_090", "PET": "simulated_096", "SPECT": "simulated_084"}
"""Pairs of the embedded sample that the page offers."""

MOST_WAITING = 8
"""Visitors that may wait for their turn; further ones are asked to come back."""

GUESSED = ("as the image looks", "all")
"""Choice of the modality that leaves it to the image, as the test command does without --modality."""

SCALES = ("hot", "pet", "spect", "inferno", "viridis", "gray")
"""Colour scales for grey images of PET and SPECT."""

INTRODUCTION = """# EDARFusion
Align and fuse an MRI with a CT, PET or SPECT image of the same head: two images, two NIfTI volumes, or the files of a
DICOM series each. **Research software, not for clinical use.**"""


def _status(text: str) -> str:
    """Format a line that a screen reader speaks when it changes."""
    return f'<p role="status">{text}</p>'


READY = _status("Drop two images or two volumes, or choose an example.")

CSS = """
.gradio-container { max-width: 1280px !important; }
.ef-row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 1rem; }
.ef-row figure { margin: 0; }
.ef-row img, .ef-slider img { width: 100%; height: auto; display: block; }
.ef-row figcaption { font-size: .85rem; padding-top: .25rem; }
.ef-slider { --at: 50%; position: relative; max-width: 560px; margin: auto; }
.ef-slider .before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.ef-slider .line { position: absolute; inset: 0 auto 0 var(--at); width: 2px; background: #fff; pointer-events: none; }
.ef-slider + input { width: 100%; max-width: 560px; display: block; margin: .5rem auto; }
.ef-table { border-collapse: collapse; border: 0 !important; font-variant-numeric: tabular-nums; width: 100%; }
.ef-table th, .ef-table td { text-align: left; padding: .25rem .5rem; }
.ef-table :is(tr, th, td) { border: 0 !important; border-bottom: 1px solid #8884 !important; }
.ef-sure { padding: .5rem .75rem; border-left: 4px solid #2e7d32; }
.ef-sure.doubtful { border-left-color: #c62828; }
"""


class Page:
    """The page, with the network that serves all visitors one after the other.

    Args:
        checkpoint: the weights.
        device: of the network, as for the test command.
        most_slices: of a volume.
        root: folder for all files.
    """

    def __init__(self, checkpoint: str | Path, device: str, most_slices: int, root: Path) -> None:
        saved = ["--save-flow", "--save-maps"]
        arguments = ["--checkpoint", str(checkpoint), "--device", device, "--workers", "1", *saved]
        self.visitors = Visitors(root)
        self.fuser = UploadFuser(parse_arguments(arguments), most_slices, self.visitors)

    def fuse(
        self,
        fixed: Sequence[str] | None,
        moving: Sequence[str] | None,
        modality: str,
        resample: bool,
        color: str,
        colormap: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Align and fuse what a visitor has given; return updates of the results' components.

        Raises:
            gr.Error: something that the visitor can mend.
        """
        progress(0.0, desc="Reading")
        try:
            for role, files in (("fixed image (MRI)", fixed), ("moving image (CT, PET or SPECT)", moving)):
                if not files:
                    raise DataError(f"expected a {role}, found none: drop a file or choose an example")
            fused = self.fuser.fuse(
                request.session_hash,
                fixed,
                moving,
                modality=modality,
                resample=resample,
                color=color,
                colormap=colormap,
                progress=lambda *done: progress(done, desc="Aligning and fusing", unit="slices"),
            )
        except InputError as error:
            message = self.visitors.plain(str(error))
            raise gr.Error(message, duration=None, print_exception=False) from error
        archive = shutil.make_archive(str(fused.folder.path.parent.parent / "edarfusion"), "zip", fused.folder.path)
        last = len(fused.pairs) - 1
        middle = last // 2
        notes = "\n".join(f"- {note}" for note in fused.notes)
        return (
            _status(f"Aligned and fused: {fused.folder.modality}, {counted(len(fused.pairs), 'slice')}."),
            fused,
            gr.update(visible=True),
            gr.update(value=f"**Please note**\n\n{notes}" if notes else "", visible=bool(notes)),
            gr.update(maximum=max(last, 1), value=middle, visible=last > 0),
            gr.update(value=archive),
            *self.show(fused, middle),
            self.show_fused(fused, middle, 0.0, COLORMAPS[0], 0.0, 1.0),
        )

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

    def show_fused(self, fused: Fused | None, number: int, blend: float, colormap: str, low: float, high: float) -> str:
        """Show the fused image as a visitor wants it."""
        if fused is None:
            return ""
        pair = fused.pairs[int(number)]
        files = fused.folder.files(pair.name)
        images = read_pair(pair, fused.folder.modality)
        pictures = [read_image(files[kind], color=None) for kind in ("fused", "aligned")]
        return fused_view(images.fixed, *pictures, blend=blend, colormap=colormap, low=low, high=high)

    def blocks(self) -> gr.Blocks:
        """Lay out the page and connect its parts to their actions."""
        # Files that were uploaded and never used go within the hour.
        with gr.Blocks(title="EDARFusion", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown(INTRODUCTION)
            inputs = _add_inputs()
            run = gr.Button("Align and fuse", variant="primary", elem_id="run")
            with gr.Row():
                examples = {name: gr.Button(f"Example: {name}", size="sm") for name in EXAMPLES}
            status = gr.HTML(READY, min_height=90)
            state = gr.State(None)
            outputs = [status, state, *self._add_results(state)]
            # One at a time: the network and what it says are shared. The results are not shown yet, so that they
            # cannot show the progress.
            turns = {"concurrency_limit": 1, "concurrency_id": "network", "show_progress_on": status}
            # Results of earlier input go first: their files are removed.
            cleared = [READY, None, gr.update(visible=False)]
            run.click(lambda: cleared, None, outputs[:3], show_progress="hidden").then(
                self.fuse, inputs, outputs, **turns
            )
            for name, button in examples.items():
                pair = [[str(SAMPLE_ROOT / name / role / f"{EXAMPLES[name]}.png")] for role in ("fixed", "moving")]
                values = [*cleared, *pair, name, False]
                button.click(
                    lambda values=values: values, None, [*outputs[:3], *inputs[:4]], show_progress="hidden"
                ).then(self.fuse, inputs, outputs, **turns)
            for files in inputs[:2]:
                files.change(self._note, files, None, show_progress="hidden")
            blocks.unload(self._close)
            blocks.queue(max_size=MOST_WAITING)
        return blocks

    def _add_results(self, state: gr.State) -> list[gr.blocks.Block]:
        """Lay out the results, connect their controls, and return the parts that `fuse` updates, in its order."""
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
                shade = gr.Dropdown(COLORMAPS, value=COLORMAPS[0], label="Show a grey picture in")
                low = gr.Slider(0, 1, 0, step=0.01, label="Window: black at")
                high = gr.Slider(0, 1, 1, step=0.01, label="Window: white at")
            gr.Markdown("## Maps")
            maps = gr.HTML()
            gr.Markdown("## Measures that need no truth")
            metrics = gr.HTML()
            download = gr.DownloadButton("Download all: images, flow, maps, table, report (zip)")
        views = [overlay, sureness, maps, metrics]
        number.change(self.show, [state, number], views, show_progress="hidden")
        controls = [number, blend, shade, low, high]
        for control in controls:
            control.change(
                self.show_fused, [state, *controls], picture, show_progress="hidden", trigger_mode="always_last"
            )
        return [results, notes, number, download, *views, picture]

    def _note(self, files: Sequence[str] | None, request: gr.Request) -> None:
        self.visitors.note(request.session_hash, files)

    def _close(self, request: gr.Request) -> None:
        self.visitors.close(request.session_hash)


def _add_inputs() -> list[gr.blocks.Block]:
    """Lay out what a visitor gives, and return the parts in the order of the arguments of `Page.fuse`."""
    with gr.Row():
        kind = {"file_count": "multiple", "type": "filepath", "height": 140, "min_width": 300}
        fixed = gr.File(label="Fixed image: MRI", **kind)
        moving = gr.File(label="Moving image: CT, PET or SPECT", **kind)
    modality = gr.Radio([GUESSED, *MODALITIES], value=GUESSED[1], label="Modality of the moving image (--modality)")
    with gr.Row():
        color = gr.Radio(
            COLOR_MODES,
            value=COLOR_MODES[0],
            label="Colours of PET and SPECT: keep, or pale where the MRI is bright (--colour)",
            min_width=300,
        )
        colormap = gr.Dropdown(
            SCALES, value=SCALES[0], label="Colour scale of grey PET and SPECT images (--colormap)", min_width=300
        )
    resample = gr.Checkbox(
        label="Volumes: bring the moving one onto the grid of the fixed one, as the headers say (--resample)"
    )
    return [fixed, moving, modality, resample, color, colormap]


def main(arguments: list[str] | None = None) -> int:
    """Run ``python app.py``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("app", description=__doc__)
    parser.add_argument("--checkpoint", metavar="FILE", default=DEFAULT_CHECKPOINT, help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=positive, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--most-mb", type=positive, default=200, metavar="N", help="largest file, megabytes (default: %(default)s)"
    )
    parser.add_argument(
        "--most-slices", type=positive, default=200, metavar="N", help="largest volume, slices (default: %(default)s)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    options = parser.parse_args(arguments)
    show_messages(parser.prog)
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"app: listens on {options.host}: without encryption or password, for whoever can reach it", file=sys.stderr
        )
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
