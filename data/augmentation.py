"""Variety for training pairs, all of a batch at once: pose, contrast, shading, structures of one image alone, noise.

What varies, and how much, is drawn before (`data.variation`). Here are no decisions, so that an accelerator is never
waited for. The same functions serve a CPU.
"""

import math

import torch
from torch import Tensor

from data.deformation import grid_of, smooth_flows, smoothed
from data.noise import white_noise
from data.variation import Variation
from utils.filters import resize
from utils.geometry.warp import compose, invert, resize_flow, warp

FIELDS = 9
"""Keys of noise that `augmented` takes for a pair."""


def augmented(images: Tensor, variation: Variation, keys: Tensor) -> dict[str, Tensor]:
    """Make training pairs of aligned images.

    Args:
        images: (B, 5, H, W), bytes: fixed and moving image, and the latter's colours, 0 of a grey image.
        variation: of the pairs.
        keys: (B, `FIELDS`), int32, of `data.noise.white_noise`.

    Returns:
        The fields of `data.dataset.Pair` but for ``modality`` and ``number``.
    """
    size = tuple(images.shape[2:])
    noise = white_noise(keys[:, :2].mT, (2, *grid_of(size))).flatten(0, 1)
    flows = smooth_flows(torch.cat((variation.deformation, variation.pose)), noise, size)
    deformation, pose = flows.chunk(2)

    images = _flipped(images, variation.flips).float().div_(255)
    both = _one_by_one(images[:, :2])
    both = vary_shading(both, variation.shading.flatten(), keys[:, 2:4].flatten())
    images[:, :2] = add_one_sided(both, variation.structures.flatten(0, 1)).view_as(images[:, :2])
    # The misaligned image is sampled once from the original, as a real one would be.
    pose, path = resize_flow(pose, size), resize_flow(deformation, size)
    rows = _drawn(variation.posed)
    path[rows] = compose(pose[rows], path[rows])
    moving = warp(images[:, 1:2], path)
    images[rows] = warp(images[rows], pose[rows])

    three = _one_by_one(torch.cat((images[:, :2], moving), dim=1))
    # A list of places would be copied to the device.
    contrast = torch.cat((variation.contrast, variation.contrast[:, 1:]), dim=1).flatten(0, 1)
    three = vary_contrast(three, contrast, keys[:, 4:7].flatten()).view(-1, 3, *size)
    fixed, aligned, moving = three.split(1, dim=1)
    noisy = _one_by_one(torch.cat((fixed, moving), dim=1))
    noisy = add_noise(noisy, variation.noise.flatten(0, 1), keys[:, 7:9].flatten())
    fixed, moving = noisy.view(-1, 2, *size).split(1, dim=1)

    color = images[:, 2:] * variation.colored.view(-1, 1, 1, 1)
    # Of coloured images always the fixed one.
    in_fixed = (variation.in_fixed > 0) | (color.flatten(1).amax(dim=1) > 0)
    return {
        "fixed": fixed, "moving": moving, "moving_aligned": aligned, "flow": invert(deformation),
        "inverse_flow": deformation, "color": color,
        "lesion": simulated_lesions(fixed, aligned, in_fixed, variation.lesions),
    }  # fmt: skip


def vary_shading(images: Tensor, depth: Tensor, keys: Tensor) -> Tensor:
    """Brighten and darken each image smoothly from place to place, as coils and uptake do.

    Args:
        images: (N, 1, H, W) in [0, 1].
        depth: (N,), octaves that one sigma changes it by.
        keys: (N,), of noise.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    height, width = images.shape[2:]
    rows = _drawn(depth)
    noise = white_noise(keys[rows], (1, height // 16, width // 16))
    field = resize(smoothed(noise, torch.full_like(depth[rows], width / 128)), (height, width))
    varied = images.clone()
    varied[rows] = (images[rows] * torch.exp2(_each(depth[rows]) * field)).clamp_(0, 1)
    return varied


def add_one_sided(images: Tensor, structures: Tensor) -> Tensor:
    """Blend soft-edged ellipses into the tissue: what one modality alone shows, or fails to show.

    Args:
        images: (N, 1, H, W) in [0, 1].
        structures: (N, K, 7) of `data.variation.one_sided`; in an image without tissue they lie anywhere.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    height, width = images.shape[2:]
    y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    drawn = _drawn(structures[..., 6].amax(dim=1))
    changed, structures = images[drawn], structures[drawn]
    places, _ = _places(changed[:, 0] > 0.05, structures[..., 0])
    for place, ellipse in zip(places.unbind(dim=1), structures.unbind(dim=1), strict=True):
        radii, (edge, turn, grey, opacity) = ellipse[:, 1:3], ellipse[:, 3:].unbind(dim=1)
        rows, columns = y - (place // width).view(-1, 1, 1), x - (place % width).view(-1, 1, 1)
        steep = (radii.amin(dim=1) / edge).view(-1, 1, 1)
        inside = torch.sigmoid((1 - _distance(rows, columns, radii, turn)) * steep)[:, None]
        changed = torch.lerp(changed, _each(grey), _each(opacity) * inside)
    result = images.clone()
    result[drawn] = changed
    return result


def vary_contrast(images: Tensor, contrast: Tensor, keys: Tensor) -> Tensor:
    """Give each image a gamma, a gain and faint noise.

    Args:
        images: (N, 1, H, W) in [0, 1].
        contrast: (N, 3), of `data.variation.Variation`.
        keys: (N,), of noise.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    gamma, gain, sigma = (_each(number) for number in contrast.unbind(dim=1))
    # A power by logarithms takes half of its time on a CPU. The logarithm of 0 is minus infinity, and its power is 0.
    varied = images.log().mul_(gamma).add_(gain.log()).exp_()
    rows = _drawn(contrast[:, 2])
    varied[rows] += sigma[rows] * white_noise(keys[rows], images.shape[1:])
    return varied.clamp_(0, 1)


def add_noise(images: Tensor, noise: Tensor, keys: Tensor) -> Tensor:
    """Add Gaussian noise in grains of 1, 2 or 4 px.

    Args:
        images: (N, 1, H, W) in [0, 1].
        noise: (N, 2), of `data.variation.Variation`.
        keys: (N,), of the noise.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    size = tuple(images.shape[2:])
    noisy = images.clone()
    for level in range(3):
        strength = noise[:, 0] * (noise[:, 1] == level)
        rows = _drawn(strength)
        grains = white_noise(keys[rows], (1, *(-(-side >> level) for side in size)))
        noisy[rows] += _each(strength[rows]) * resize(grains, size)
    return noisy.clamp_(0, 1)


def simulated_lesions(fixed: Tensor, aligned: Tensor, in_fixed: Tensor, lesions: Tensor) -> Tensor:
    """Make small lesions, bright or dark, that one modality alone shows.

    They lie in soft tissue, where the image they are put into has room for them: ellipses with edges of about 1.5 px,
    diameters of 3 to 15 px of 256, and a contrast of 0.1 to 0.4 of the grey range.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1].
        in_fixed: (B,), which of both they are put into.
        lesions: (B, K, 6), of `data.variation.Variation`.

    Returns:
        (B, 2, H, W), to be added to fixed and aligned image; all 0 where there is no soft tissue.
    """
    height, width = fixed.shape[2:]
    choice = _each(in_fixed)
    host, other = torch.where(choice, fixed, aligned), torch.where(choice, aligned, fixed)
    low, high = torch.where(choice, 0.1, 0.06), torch.where(choice, 0.9, 0.7)
    soft = ((host > low) & (host < high) & (other > 0.04) & (other < 0.9))[:, 0]
    places, present = _places(soft, lesions[..., 0])
    grey = host.flatten(1).gather(1, places)
    # Towards the side with more room, but not always.
    middle = (grey > 0.3) & (grey < 0.6)
    brighter = torch.where(middle, lesions[..., 5] < 0.5, grey < 0.45)
    strength = torch.where(brighter, lesions[..., 4], -lesions[..., 4]) * present
    # Each is drawn on a small square of a canvas that is wide enough for all of them.
    reach = math.ceil(7.5 * width / 256) + 3
    offsets = torch.arange(-reach, reach + 1, device=fixed.device)
    canvas = fixed.new_zeros(len(fixed), (height + 2 * reach) * (width + 2 * reach))
    square = (offsets[:, None] * (width + 2 * reach) + offsets).flatten()
    shapes = soft_ellipse(offsets[:, None], offsets, lesions[..., 1:3], lesions[..., 3]).flatten(2)
    shapes = shapes * strength[..., None]
    centres = (places // width + reach) * (width + 2 * reach) + places % width + reach
    for shape, pixels in zip(shapes.unbind(dim=1), (centres[..., None] + square).unbind(dim=1), strict=True):
        canvas.scatter_(1, pixels, torch.where(shape != 0, shape, canvas.gather(1, pixels)))
    drawn = canvas.view(-1, 1, height + 2 * reach, width + 2 * reach)[..., reach:-reach, reach:-reach]
    return torch.cat((drawn * choice, drawn * ~choice), dim=1)


def _drawn(strength: Tensor) -> Tensor | slice:
    """Find where something was drawn (N,). An accelerator works on all of them instead of waiting for the list."""
    return strength.nonzero()[:, 0] if strength.device.type == "cpu" else slice(None)


def _each(values: Tensor) -> Tensor:
    """Shape one value an image (N,) to (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _one_by_one(images: Tensor) -> Tensor:
    """Take the channels of (B, C, H, W) as images of their own, (B C, 1, H, W)."""
    return images.reshape(-1, 1, *images.shape[2:])


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Turn images (B, C, H, W) upside down and mirror them where `flips` (B, 2) is 1."""
    for axis in (0, 1):
        images = torch.where(_each(flips[:, axis] > 0), images.flip(2 + axis), images)
    return images


def _places(mask: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Choose pixels of a mask (N, H, W), each as likely as the others, by numbers (N, K) in [0, 1).

    Returns:
        Their places (N, K) in the flattened image, of an empty mask anywhere, and (N, 1), whether the mask has any.
    """
    count = mask.flatten(1).cumsum(dim=1, dtype=torch.int32)
    total = count[:, -1:]
    rank = torch.minimum((numbers * total).int(), total - 1)
    pixels = count.shape[1]
    anywhere = (numbers * pixels).long().clamp_max(pixels - 1)
    return torch.where(total > 0, torch.searchsorted(count, rank + 1), anywhere), total > 0


def soft_ellipse(rows: Tensor, columns: Tensor, radii: Tensor, turn: Tensor) -> Tensor:
    """Draw ellipses whose edge is about 1.5 px wide.

    Args:
        rows, columns: (..., H, 1) and (..., 1, W), px from the centre.
        radii: (..., 2), the semi-axes, px.
        turn: (...), of the first axis from the rows, radians.

    Returns:
        (..., H, W), 1 inside and 0 outside.
    """
    inside = 1 - _distance(rows, columns, radii, turn)
    return (inside * (radii.amin(dim=-1) / 1.5)[..., None, None] + 0.5).clamp_(0, 1)


def _distance(rows: Tensor, columns: Tensor, radii: Tensor, turn: Tensor) -> Tensor:
    """Compute the distance from the centre of an ellipse, 1 on its border; arguments as in `soft_ellipse`."""
    cosine, sine = turn.cos()[..., None, None], turn.sin()[..., None, None]
    a, b = (radius[..., None, None] for radius in radii.unbind(dim=-1))
    across = columns * (cosine / a) + rows * (sine / a)
    along = rows * (cosine / b) - columns * (sine / b)
    return across.square_().add_(along.square_()).sqrt_()
