import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from kornia.image import image_to_tensor
from torch import Tensor

from evaluation.metrics import qabf, viff
from inference.luma_fit import fit_luma
from inference.pair_fuser import PairFuser
from losses.fusion import saturation_loss
from models.edarfusion import EDARFusion
from models.fusion import plain_fusion
from models.room import in_color, room_of
from tests.examples import SAMPLE
from utils.filters import gradient_magnitude, resize
from utils.imaging.images import read_image


def pair_of(size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw an MRI of blobs in the dark, a red and blue tracer in its middle, and a luma that no fit has seen."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.zeros(1, 1, *size)
    head[:, :, size[0] // 6 : -size[0] // 6, size[1] // 6 : -size[1] // 6] = 1
    fine, coarse = (resize(torch.rand(1, 1, n, n, generator=generator), size) for n in (24, 6))
    fixed = head * (0.2 + 0.7 * fine)
    aligned = head * torch.cat((coarse, 0.3 * coarse, 1 - coarse), dim=1)
    return fixed, aligned, plain_fusion(fixed, rgb_to_grayscale(aligned), room_of(aligned))


def grey(image: Tensor) -> np.ndarray:
    return np.rint(255 * image[0, 0].numpy().astype(np.float64))


def test_it_shows_more_of_both_images():
    fixed, aligned, start = pair_of((128, 128))
    fitted, room, luma = fit_luma(fixed, aligned, start, 24), room_of(aligned), rgb_to_grayscale(aligned)
    for metric in (qabf, viff):
        before, after = (metric(grey(fixed), grey(luma), grey(image)) for image in (start, fitted))
        assert after > before + 0.02
    assert saturation_loss(room, fitted) < saturation_loss(room, start)


def test_more_steps_lead_on():
    fixed, aligned, start = pair_of((128, 128))
    scores = [viff(grey(fixed), grey(rgb_to_grayscale(aligned)), grey(fit_luma(fixed, aligned, start, steps)))
              for steps in (0, 4, 24)]  # fmt: skip
    assert scores == sorted(scores) and scores[0] < scores[2]
    assert fit_luma(fixed, aligned, start, 0) is start


def test_it_stays_in_the_room_and_leaves_the_dark_alone():
    fixed, aligned, start = pair_of((96, 128))
    low, high, _ = room_of(aligned).split(1, dim=1)
    for first in (low, high, start):
        fitted = fit_luma(fixed, aligned, first, 24)
        assert (fitted >= low - 1e-6).all() and (fitted <= high + 1e-6).all()
        assert first is start or not torch.equal(fitted, first)
    dark = (fixed == 0) & (rgb_to_grayscale(aligned) == 0)
    assert dark.any() and torch.equal(fitted[dark], start[dark])
    # So a strong colour keeps its hue.
    shown = in_color(fitted, aligned)
    strong = (aligned[:, 0] - aligned[:, 2] > 0.5)[:, None]
    assert strong.any() and (shown[:, :1] > shown[:, 2:])[strong].all()


def test_even_tissue_stays_even():
    # In this pair even white matter breaks into islands where slopes that no image has are free.
    fixed = image_to_tensor(read_image(SAMPLE / "PET/fixed/simulated_096.png"), keepdim=False)
    aligned = image_to_tensor(read_image(SAMPLE / "PET/label/simulated_096.png", color=True), keepdim=False)
    start = plain_fusion(fixed, rgb_to_grayscale(aligned), room_of(aligned))
    slopes = gradient_magnitude(torch.cat((fixed, aligned), dim=1)).amax(dim=1, keepdim=True)
    even = (F.max_pool2d(slopes, 3, 1, 1) < 0.03) & (fixed > 0.1) & (rgb_to_grayscale(aligned) > 0.1)
    broken = (gradient_magnitude(fit_luma(fixed, aligned, start, 24))[even] > 0.03).float().mean()
    assert even.sum() > 1000 and broken < 0.02


def test_no_pixel_changes_by_itself():
    fixed, aligned, start = pair_of((128, 128))
    change = (fit_luma(fixed, aligned, start, 24) - start)[..., 24:-24, 24:-24]
    single = change - gaussian_blur2d(change, (5, 5), (0.7, 0.7))
    assert single.square().mean() < 0.05 * change.square().mean()


def test_pairs_of_a_batch_do_not_know_each_other():
    pairs = [pair_of((96, 96), seed) for seed in (1, 2)]
    together = fit_luma(*(torch.cat(images) for images in zip(*pairs, strict=True)), 6)
    for pair, fitted in zip(pairs, together, strict=True):
        torch.testing.assert_close(fit_luma(*pair, 6)[0], fitted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (65, 203), (64, 3000)])
def test_any_size_is_fitted(size):
    fixed, aligned, start = pair_of(size)
    fitted = fit_luma(fixed, aligned, start, 2)
    assert fitted.shape == start.shape and fitted.isfinite().all() and not torch.equal(fitted, start)


@pytest.mark.parametrize("size", [(512, 512), (500, 397)])
def test_a_large_image_is_fitted_at_the_scale_of_the_training(size):
    small = pair_of((256, 256))
    large = [resize(image, size) for image in small]
    start = large[2]
    change, expected = (fit_luma(*images, 24) - images[2] for images in (large, small))
    expected = resize(expected, size)
    assert change.shape == start.shape
    both = torch.stack((change.flatten(), expected.flatten()))
    assert torch.corrcoef(both)[0, 1] > 0.9


def test_no_gradient_comes_out_whatever_the_caller_does():
    images = pair_of((96, 96))
    expected = fit_luma(*images, 3)
    with torch.inference_mode():
        torch.testing.assert_close(fit_luma(*(image.clone() for image in images), 3), expected, rtol=0, atol=0)
    fitted = fit_luma(*(image.clone().requires_grad_() for image in images), 3)
    assert not fitted.requires_grad and not expected.requires_grad


def test_only_colours_that_are_kept_are_fitted():
    model = EDARFusion("tiny").eval()
    fixed, aligned, _ = pair_of((96, 96))
    fixed, colored = fixed[0, 0].numpy(), aligned[0].permute(1, 2, 0).numpy()
    grey = colored[..., 0]
    for moving, more, differs in (
        (colored, {}, True), (colored, {"color": "luma"}, False), (grey, {"colormap": "hot"}, True),
        (grey, {}, False), (grey, {"colormap": "gray"}, False), (np.dstack([grey] * 3), {}, False),
        (np.zeros_like(colored), {}, False),
    ):  # fmt: skip
        fuse = PairFuser(model, "cpu", **more)
        without, fitted, (also_fitted,) = (
            fuse(fixed, moving),
            fuse(fixed, moving, luma_steps=8),
            fuse.together([{"fixed": fixed, "moving": moving, "luma_steps": 8}]),
        )
        assert np.array_equal(without.aligned, fitted.aligned)
        assert (np.abs(without.fused - fitted.fused).max() > 0.02) == differs
        assert differs or np.array_equal(without.fused, fitted.fused)
        assert np.array_equal(also_fitted.fused, fitted.fused)
