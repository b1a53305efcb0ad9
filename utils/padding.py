"""The one padder: any image size in, a multiple of the network's stride inside, the same size out."""

import torch.nn.functional as F
from torch import Tensor


class Padder:
    """Pads (B, C, H, W) at the right and bottom to multiples of `stride` by repeating the border, and undoes it.

    Args:
        size: height and width of the images.
        stride: what both become multiples of.
    """

    def __init__(self, size: tuple[int, int], stride: int) -> None:
        self.size = size
        self.bottom, self.right = -size[0] % stride, -size[1] % stride

    def pad(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W') with H' and W' multiples of the stride."""
        return F.pad(image, (0, self.right, 0, self.bottom), mode="replicate")

    def unpad(self, image: Tensor) -> Tensor:
        """(B, C, H', W') -> (B, C, H, W). Displacements in px stay valid."""
        return image[..., : self.size[0], : self.size[1]]
