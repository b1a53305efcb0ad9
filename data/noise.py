"""White noise that depends on nothing but a key: the same in any batch, in any process and on any device."""

import math

import torch
from torch import Tensor

KEYS = -(2**31), 2**31
"""Range of keys: from the first up to, but without, the second."""


def white_noise(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal numbers, for each key its own.

    A generator draws one number after the other, each process or device in its own way. Here each number is a hash of
    its key and its place (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), brought to a normal
    distribution by Box and Muller's method.

    Args:
        keys: (...), int32, drawn uniformly from `KEYS`.
        shape: of the noise of one key.

    Returns:
        (..., *shape), float32.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    places = torch.arange(2 * half, dtype=torch.int32, device=keys.device) * (0x9E3779B1 - 2**32)
    bits = _mixed(places ^ keys[..., None]).bitwise_and_(0xFFFFFF)
    # In (0, 1), as the logarithm of 0 is none.
    radius, turn = bits.float().add_(0.5).mul_(2.0**-24).split(half, dim=-1)
    radius, turn = radius.log().mul_(-2).sqrt_(), turn * (2 * math.pi)
    normal = torch.cat((turn.cos().mul_(radius), turn.sin().mul_(radius)), dim=-1)
    return normal[..., :count].reshape(*keys.shape, *shape)


def _mixed(bits: Tensor) -> Tensor:
    """Hash integers of 32 bits one to one (C. Wellons, "Prospecting for hash functions", lowbias32)."""
    bits = (bits ^ _shifted(bits, 16)).mul_(0x7FEB352D)
    bits = bits.bitwise_xor_(_shifted(bits, 15)).mul_(0x846CA68B - 2**32)
    return bits.bitwise_xor_(_shifted(bits, 16))


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros, as for integers without a sign."""
    return (bits >> places).bitwise_and_((1 << (32 - places)) - 1)
