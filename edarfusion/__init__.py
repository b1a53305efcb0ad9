"""What others build on, under one name: the same in a clone (from its folder) and installed (from anywhere).

    from edarfusion import DEFAULT_CHECKPOINT, PairFuser, load_checkpoint, read_image
"""

from inference.fused_pair import FusedPair
from inference.pair_fuser import PairFuser
from models.checkpoint import load_checkpoint
from utils.arguments import DEFAULT_CHECKPOINT, SAMPLE_ROOT
from utils.arguments import VERSION as __version__
from utils.geometry.warp import apply_flow, warp
from utils.imaging.flows import load_flow, save_flow
from utils.imaging.images import read_image, write_image

__all__ = [
    "DEFAULT_CHECKPOINT", "FusedPair", "PairFuser", "SAMPLE_ROOT", "__version__", "apply_flow", "load_checkpoint",
    "load_flow", "read_image", "save_flow", "warp", "write_image",
]  # fmt: skip
