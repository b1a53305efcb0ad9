"""What the test command is asked for, checked as far as its options go together.

Nothing here imports torch: the processes that score start the faster for it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from data.table import MODALITIES
from utils.arguments import COLOR_MODES
from utils.files import InputError
from utils.imaging.volumes import holds_images, is_volume

LUMA_STEPS = {"SPECT": 24}
"""Steps that fit the luma of coloured pairs of a modality (`inference.luma_fit`). The others are not fitted. They keep
more of small lesions so."""


def default_luma_steps(modality: str) -> int:
    """Tell in how many steps the luma of coloured pairs of a modality is fitted where nothing else is asked for."""
    return LUMA_STEPS.get(modality, 0)


@dataclass(frozen=True)
class Options:
    """The options of the test command; `EDARFusion_test_val.py --help` says what each one does.

    Attributes:
        modality: one of `data.table.MODALITIES`; or all, which of folders and volumes means to guess.
        window: center and width, in the moving volume's own units.
        passes, average: None leaves them to the checkpoint.
        landmarks, segmentations: of the fixed and of the moving images.
        flow_format: one of `utils.arguments.FLOW_FORMATS`; None for npy.
        luma_steps: None leaves them to the modality.
        batch_size: number of pairs that the network takes at a time; None leaves it to the device.

    Raises:
        InputError: an option that does not go with the others.
    """

    modality: str
    fixed: str | None
    moving: str | None
    label: str | None
    csv: str | None
    root: str | None
    split: str | None
    fit: str
    landmarks: list[str] | None
    segmentations: list[str] | None
    mask: str | None
    window: tuple[float, float] | None
    resample: bool
    prealign: str | None
    frame: int | None
    checkpoint: Path
    device: str
    engine: str
    passes: int | None
    average: bool | None
    multistart: bool
    color: str
    colormap: str
    blend: float | None
    luma_steps: int | None
    output: Path
    save_flow: bool
    flow_format: str | None
    save_maps: bool
    save_figures: bool
    resume: bool
    keep_going: bool
    workers: int
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.modality not in (*MODALITIES, "all"):
            raise InputError(f"--modality: expected one of {', '.join(MODALITIES)}, all, found {self.modality!r}")
        if bool(self.fixed) != bool(self.moving):
            raise InputError(f"expected --fixed and --moving, found --{'fixed' if self.fixed else 'moving'} alone")
        for name in ("label", "landmarks", "segmentations", "mask"):
            if getattr(self, name) and not self.fixed:
                raise InputError(f"--{name}: expected --fixed and --moving with it, found neither")
        if self.flow_format and not self.save_flow:
            raise InputError(f"--flow-format {self.flow_format}: expected --save-flow with it, found none")
        if self.fixed and self.csv:
            raise InputError("expected either --fixed and --moving or --csv, found both")
        if self.engine != "torch" and self.device not in ("auto", "cpu"):
            raise InputError(f"--engine: expected torch on {self.device}, found {self.engine}")
        if self.engine != "torch" and (self.batch_size or 1) > 1:
            raise InputError(f"--batch-size: expected 1 with --engine {self.engine}, found {self.batch_size}")
        for name in ("window", "resample", "prealign", "frame"):
            if getattr(self, name) and not self.has_volumes:
                raise InputError(f"--{name}: expected volumes as --fixed and --moving, found images")
        if self.window and not (all(map(math.isfinite, self.window)) and self.window[1] > 0):
            window = " ".join(f"{number:g}" for number in self.window)
            raise InputError(f"--window: expected two finite numbers, the width above 0, found {window}")
        if (self.root or self.split) and not self.csv:
            raise InputError("--root, --split: expected --csv with them, found none")

    def luma_steps_of(self, modality: str) -> int:
        """Tell in how many steps the luma of coloured pairs is fitted; 0 with another way to show colours."""
        if self.color != COLOR_MODES[0]:
            return 0
        return default_luma_steps(modality) if self.luma_steps is None else self.luma_steps

    @property
    def has_volumes(self) -> bool:
        """Whether fixed and moving are to be read as volumes.

        A path that is neither an image nor a volume is taken for what the other side is.
        """
        if not self.fixed:
            return False
        return is_volume(self.fixed) or (is_volume(self.moving) and not holds_images(self.fixed))

    @property
    def marks(self) -> dict[str, str]:
        """Files or folders of what is marked on the images, by their role in `data.pairs.MARKS`."""
        roles = "fixed_landmarks", "moving_landmarks", "fixed_segmentation", "moving_segmentation", "mask"
        both = (None, None)
        paths = (*(self.landmarks or both), *(self.segmentations or both), self.mask)
        return {role: path for role, path in zip(roles, paths, strict=True) if path}

    @property
    def is_sample(self) -> bool:
        """Whether the embedded sample is asked for."""
        return not (self.fixed or self.csv)
