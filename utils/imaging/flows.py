"""Displacement fields as files: NumPy arrays (2, H, W), float32, in pixels."""

import io
import os

import numpy as np
from numpy.typing import NDArray

from utils.files import FileError, lacking, write_bytes

GRID_STRIDE = 4  # the fields are smooth over at least 10 px, so a grid point every 4 px loses nothing


def save_flow(path: str | os.PathLike, flow: NDArray[np.float32]) -> None:
    """Write a displacement field (2, H, W), whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    buffer = io.BytesIO()
    np.save(buffer, flow)
    write_bytes(path, buffer.getvalue())


def load_flow(path: str | os.PathLike, size: tuple[int, int] | None) -> NDArray[np.float32]:
    """Read a displacement field at the resolution of its images.

    A file may hold it on a grid of (H // 4, W // 4), in pixels of that grid, as `data.deformation.random_flow` draws it
    and those of the embedded sample have it.

    Args:
        path: ``flow/NAME.npy``.
        size: height and width of the images, px. None takes the field as it is.

    Returns:
        float32 (2, H, W), px: ``aligned(p) = moving(p + flow(p))``, channel 0 is x.

    Raises:
        FileError: the file cannot be read, is no flow, or is one for images of another size.
    """
    if found := lacking(path):
        raise FileError.at(path, "a flow (NumPy array)", found)
    try:
        flow = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError.at(path, "a flow (NumPy array)", str(error)) from error
    if not isinstance(flow, np.ndarray) or flow.ndim != 3 or flow.shape[0] != 2 or flow.size == 0:
        raise FileError.at(path, "a flow of shape (2, H, W)", f"{getattr(flow, 'shape', type(flow).__name__)}")
    if flow.dtype.kind not in "fiu":
        raise FileError.at(path, "a flow of real numbers", str(flow.dtype))
    if not np.isfinite(flow).all():
        raise FileError.at(path, "a flow of finite numbers", "NaN or infinity")
    if size is None:
        return flow.astype(np.float32)
    # Processes that only save need no torch.
    import torch

    from utils.geometry.warp import resize_flow

    fitting = [(2, *size), (2, *(side // GRID_STRIDE for side in size))]
    if flow.shape not in fitting:
        raise FileError.at(path, f"a flow of shape {fitting[0]} or {fitting[1]}, as the images are", f"{flow.shape}")
    return resize_flow(torch.from_numpy(flow.astype(np.float32))[None], size)[0].numpy()
