"""Pictures of images and flows, as arrays: overlays, checkerboards, colours of displacements."""

import numpy as np

from utils.imaging.images import luma


def check_image(image: np.ndarray, name: str) -> np.ndarray:
    """Return an image (H, W) or (H, W, 3) as an array.

    Raises:
        ValueError: it has another shape; the message begins with `name`.
    """
    image = np.asarray(image)
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3):
        return image
    raise ValueError(f"{name}: expected an image of shape (H, W) or (H, W, 3), found {image.shape}")


def check_flow(flow: np.ndarray) -> np.ndarray:
    """Return a displacement field (2, H, W) as an array.

    Raises:
        ValueError: it has another shape.
    """
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow: expected shape (2, H, W), found {flow.shape}")
    return flow


def check_same_size(**images: np.ndarray) -> None:
    """Check that arrays (H, W, ...) have one height and width.

    Raises:
        ValueError: they differ; the message names them.
    """
    sizes = {name: image.shape[:2] for name, image in images.items()}
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise ValueError(f"expected images of one height and width, found {shapes}")


def _grey(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma of an RGB image, or a grey image as it is."""
    image = np.asarray(image, dtype=np.float32)
    return luma(image) if image.ndim == 3 else image


def checkerboard(a: np.ndarray, b: np.ndarray, tiles: int = 8) -> np.ndarray:
    """Show squares of `a` and `b` in turn; edges that run on across the squares are aligned.

    Args:
        a: image in [0, 1], (H, W) or (H, W, 3); it has the top left square.
        b: image of the same height and width.
        tiles: number of squares along the shorter side, 1 or more.

    Returns:
        Image in [0, 1], float32; (H, W, 3) if either input has colour, else (H, W).

    Raises:
        ValueError: wrong shapes, different sizes, or `tiles` < 1.
    """
    a, b = check_image(a, "a"), check_image(b, "b")
    check_same_size(a=a, b=b)
    if tiles < 1:
        raise ValueError(f"tiles: expected at least 1, found {tiles}")
    height, width = a.shape[:2]
    side = max(1, round(min(height, width) / tiles))
    from_b = (np.arange(height)[:, None] // side + np.arange(width)[None, :] // side) % 2 == 1
    if a.ndim == 3 or b.ndim == 3:
        a, b = (image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in (a, b))
        from_b = from_b[..., None]
    return np.where(from_b, b, a).astype(np.float32)


def red_green_overlay(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Show the fixed image in red and the moving one in green: yellow where both are bright, fringes where they differ.

    Args:
        fixed, moving: images in [0, 1], (H, W) or (H, W, 3) (then their BT.601 luma is used), one size.

    Returns:
        RGB image in [0, 1], float32, (H, W, 3).

    Raises:
        ValueError: wrong shapes or different sizes.
    """
    fixed, moving = check_image(fixed, "fixed"), check_image(moving, "moving")
    check_same_size(fixed=fixed, moving=moving)
    red, green = _grey(fixed), _grey(moving)
    return np.clip(np.stack([red, green, np.zeros_like(red)], axis=2), 0.0, 1.0)


def blend_towards(fixed: np.ndarray, fused: np.ndarray, aligned: np.ndarray, share: float) -> np.ndarray:
    """Move the fused image towards one of its sources.

    Args:
        fixed, fused, aligned: images in [0, 1], (H, W) or (H, W, 3), one size.
        share: -1 is the fixed image, 0 the fused one, 1 the aligned one.

    Returns:
        Image in [0, 1], float32; (H, W, 3) if an input that takes part has colour, else (H, W).

    Raises:
        ValueError: wrong shapes, different sizes, or a share beyond [-1, 1].
    """
    images = {"fixed": fixed, "fused": fused, "aligned": aligned}
    images = {name: check_image(image, name) for name, image in images.items()}
    check_same_size(**images)
    if not -1 <= share <= 1:
        raise ValueError(f"share: expected -1 to 1, found {share}")
    fused, source = images["fused"], images["fixed" if share < 0 else "aligned"]
    if fused.ndim != source.ndim:
        fused, source = (x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=2) for x in (fused, source))
    return ((1 - abs(share)) * fused + abs(share) * source).astype(np.float32)


def _colour_wheel() -> np.ndarray:
    """Return the 55 hues of Baker et al. (2011), RGB in [0, 1], (55, 3): red, yellow, green, cyan, blue, magenta."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=np.float64)
    steps = (15, 6, 4, 11, 13, 6)
    segments = [
        start + (stop - start) * np.arange(count)[:, None] / count
        for start, stop, count in zip(corners, np.roll(corners, -1, axis=0), steps, strict=True)
    ]
    return np.concatenate(segments)


def flow_to_color(flow: np.ndarray, max_magnitude: float | None = None) -> np.ndarray:
    """Draw a flow as colours: hue is the direction, saturation the magnitude; zero flow is white.

    The colour wheel and coding of Baker et al., "A Database and Evaluation Methodology for Optical Flow",
    IJCV 2011 (Middlebury): a flow to the right is red, down is yellow, left is cyan, up is violet.

    Args:
        flow: (2, H, W), pixels, channel 0 = x. Non-finite vectors are painted black.
        max_magnitude: magnitude in pixels of full saturation; the largest finite one when None. Longer
            vectors are drawn darker by a quarter.

    Returns:
        RGB image in [0, 1], float32, (H, W, 3).

    Raises:
        ValueError: the flow has another shape, or `max_magnitude` is not positive.
    """
    flow = check_flow(flow).astype(np.float64)
    if max_magnitude is not None and not max_magnitude > 0:
        raise ValueError(f"max_magnitude: expected a positive number of pixels, found {max_magnitude}")
    finite = np.isfinite(flow).all(axis=0)
    x, y = np.where(finite, flow, 0.0)
    magnitude = np.hypot(x, y)
    # The reference implementation adds epsilon for the same reason: a flow that is zero everywhere is white.
    radius = magnitude / (max_magnitude or magnitude.max(initial=0.0) or 1.0)

    wheel = _colour_wheel()
    position = (np.arctan2(-y, -x) / np.pi + 1.0) / 2.0 * (len(wheel) - 1)
    lower = np.floor(position).astype(int)
    fraction = (position - lower)[..., None]
    hue = (1.0 - fraction) * wheel[lower] + fraction * wheel[(lower + 1) % len(wheel)]
    inside = 1.0 - radius[..., None] * (1.0 - hue)
    color = np.where(radius[..., None] <= 1.0 + 1e-9, inside, 0.75 * hue)
    return np.where(finite[..., None], np.clip(color, 0.0, 1.0), 0.0).astype(np.float32)


def deformation_grid(flow: np.ndarray, spacing: int = 12) -> list[np.ndarray]:
    """Draw a regular grid of the fixed image as p -> p + flow(p) carries it to the moving image.

    Args:
        flow: (2, H, W), pixels, channel 0 = x.
        spacing: distance of the grid lines in pixels, 1 or more. The last row and column always have a line.

    Returns:
        Polylines in pixel coordinates of the moving image, each (N, 2) with columns x, y: first the rows from
        top to bottom, then the columns from left to right.

    Raises:
        ValueError: the flow has another shape, or `spacing` < 1.
    """
    flow = check_flow(flow)
    if spacing < 1:
        raise ValueError(f"spacing: expected at least 1 pixel, found {spacing}")
    height, width = flow.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    points = np.stack([columns + flow[0], rows + flow[1]], axis=-1)
    at_rows = np.unique(np.append(np.arange(0, height, spacing), height - 1))
    at_columns = np.unique(np.append(np.arange(0, width, spacing), width - 1))
    return [points[row] for row in at_rows] + [points[:, column] for column in at_columns]
