"""data/dataset.py: the same pairs whatever the workers, a flow that is the truth, images that move together."""

import math
import pickle
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from data.augmentation import add_noise, add_one_sided, simulated_lesions, vary_contrast, vary_shading
from data.dataset import VAL_SEED, EndlessSampler, Pair, PairDataset, balance, letterbox
from data.noise import KEYS, white_noise
from data.table import DataError
from data.variation import NUMBERS, STRUCTURES, Variation, draw_variation, one_sided
from tests.examples import SAMPLE, aligned_sample
from utils.geometry.warp import compose, invert, resize_flow, warp
from utils.imaging.images import ImageError, read_image, write_image

MODALITIES = ("CT", "PET", "SPECT")


def sample(same: bool = False, **options) -> PairDataset:
    return PairDataset(aligned_sample(same=same), SAMPLE, **{"size": 128, **options})


def sample_in_two_deformations(**options) -> PairDataset:
    pairs = sample(augment=True, **options)
    pairs.two_deformations = True
    return pairs


def equal(a: Pair, b: Pair) -> bool:
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


def residual(pair: Pair, flow: Tensor) -> float:
    """Mean grey difference between the moving image warped with `flow` and the truth, away from the border."""
    warped = warp(pair.moving[None], resize_flow(flow[None], tuple(pair.moving.shape[1:])))[0]
    return (warped - pair.moving_aligned)[:, 12:-12, 12:-12].abs().mean().item()


def test_balance_shows_all_modalities_equally_often():
    kinds = ["CT"] * 2 + ["PET"] * 7 + ["SPECT"] * 3
    table = pd.DataFrame({"fixed": [f"{i}.png" for i in range(12)], "modality": kinds})
    balanced = balance(table, seed=1)
    assert balanced["modality"].value_counts().to_dict() == {"CT": 7, "PET": 7, "SPECT": 7}
    times = balanced.value_counts(["modality", "fixed"])
    assert all(times[kind].max() - times[kind].min() <= 1 for kind in MODALITIES) and len(times) == 12
    pd.testing.assert_frame_equal(balance(table, seed=1), balanced)
    assert not balance(table, seed=2).equals(balanced)
    pd.testing.assert_frame_equal(balance(table[2:9], seed=1), table[2:9].reset_index(drop=True))


def test_a_pair_aligned_by_an_estimate_has_the_rest_left():
    pair = next(iter(DataLoader(sample(), 3)))
    still = torch.zeros(3, 2, 128, 128)
    assert equal(pair.aligned_by(still, still), pair)

    def longest(flow: Tensor) -> float:
        return 4 * flow[..., 4:-4, 4:-4].norm(dim=1).max().item()

    true_flow, true_inverse = (resize_flow(flow, (128, 128)) for flow in (pair.flow, pair.inverse_flow))
    done = pair.aligned_by(true_flow, true_inverse)
    assert longest(done.flow) < 0.3 and longest(done.inverse_flow) < 0.3 < longest(pair.flow) / 10
    assert torch.equal(done.moving, warp(pair.moving, true_flow)) and torch.equal(done.fixed, pair.fixed)

    estimate = resize_flow(torch.tensor([0.5, -0.3]).view(1, 2, 1, 1) + 0.7 * pair.flow, (128, 128))
    inverse = invert(estimate)
    left = pair.aligned_by(estimate, inverse)
    grid = tuple(pair.flow.shape[2:])
    assert longest(compose(resize_flow(estimate, grid), left.flow) - pair.flow) < 0.3
    assert longest(compose(left.flow, left.inverse_flow)) < 0.3 < longest(left.flow) / 5


def test_another_truth_comes_with_what_it_aligns():
    pair = next(iter(DataLoader(sample(), 2)))
    flow, inverse = (resize_flow(field, (128, 128)) for field in (0.5 * pair.flow, 0.5 * pair.inverse_flow))
    other = pair.with_truth(flow, inverse)
    assert torch.equal(other.moving_aligned, warp(pair.moving, flow)) and torch.equal(other.moving, pair.moving)
    grid = tuple(pair.flow.shape[2:])
    assert other.flow.shape == pair.flow.shape and torch.equal(other.flow, resize_flow(flow, grid))
    assert torch.equal(other.inverse_flow, resize_flow(inverse, grid))
    assert (other.flow - 0.5 * pair.flow).abs().max() < 0.05 * pair.flow.abs().max()


@pytest.mark.parametrize("augment", [False, True])
def test_shapes_and_ranges(augment):
    pairs = sample(augment=augment)
    for draw in (0, 4, 40):
        pair = pairs[draw]
        for image in (pair.fixed, pair.moving, pair.moving_aligned):
            assert image.shape == (1, 128, 128) and image.dtype == torch.float32
            assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.01
        for flow in (pair.flow, pair.inverse_flow):
            assert flow.shape == (2, 32, 32) and flow.isfinite().all()
        assert pair.modality == draw % 9 // 3


def test_draws_repeat_and_differ():
    first, again, other = sample(augment=True), sample(augment=True), sample(augment=True, seed=1)
    for draw in (0, 7, 1000):
        assert equal(first[draw], again[draw])
        assert not torch.equal(first[draw].flow, other[draw].flow)
        assert not torch.equal(first[draw].flow, first[draw + 9].flow)
    # Whatever was drawn before.
    assert equal(first[7], sample(augment=True)[7])


def test_validation_pairs_are_the_same_every_time():
    pairs = sample(seed=VAL_SEED)
    once, again = [pairs[i] for i in range(9)], [sample(seed=VAL_SEED)[i] for i in range(9)]
    assert all(equal(a, b) for a, b in zip(once, again, strict=True))
    # The next epoch, too, and images that are those of the files.
    assert equal(pairs[9 + 2], once[2])
    whole = PairDataset(aligned_sample(), SAMPLE, seed=VAL_SEED)[0]
    assert np.allclose(whole.fixed[0].numpy(), read_image(SAMPLE / aligned_sample()["fixed"][0]), atol=1e-6)
    assert len({pair.flow.sum().item() for pair in once}) == 9


def test_workers_make_no_difference():
    def batches(workers: int) -> list[Pair]:
        pairs = sample(augment=True, size=64)
        sampler = BatchSampler(EndlessSampler(len(pairs), 4, seed=5), 4, drop_last=False)
        return list(islice(DataLoader(pairs, None, sampler=sampler, num_workers=workers), 4))

    alone, divided = batches(0), batches(2)
    assert isinstance(alone[0], Pair) and alone[0].fixed.shape == (4, 1, 64, 64) and alone[0].modality.shape == (4,)
    assert all(equal(a, b) for a, b in zip(alone, divided, strict=True))


@pytest.mark.parametrize("augment", [False, True])
def test_a_pair_does_not_depend_on_the_others_of_its_batch(augment):
    pairs = sample(augment=augment, size=64, wide=0.5)
    draws = [31, 4, 0, 17, 9, 40, 1000, 5]
    together = pairs[draws]
    for place, draw in enumerate(draws):
        assert equal(Pair(*(field[place] for field in together)), pairs[draw])
    halves = [pairs[draws[:3]], pairs[draws[3:]]]
    assert equal(together, Pair(*map(torch.cat, zip(*halves, strict=True))))


def test_each_pair_is_deformed_in_two_ways():
    draws = [31, 4, 0, 17]
    alone, pair = sample(augment=True)[draws], sample_in_two_deformations()[draws]
    first, second = (Pair(*(field[start::2] for field in pair)) for start in (0, 1))
    assert equal(first, Pair(*(field[::2] for field in alone)))
    same = {"fixed", "moving_aligned", "modality", "color", "lesion", "number", "exact"}
    for name, a, b in zip(Pair._fields, first, second, strict=True):
        assert torch.equal(a, b) == (name in same), name
    # The deformations are those that the other draws would have had.
    assert torch.equal(second.inverse_flow, alone.inverse_flow[1::2])
    for number in range(2):
        moved = Pair(*(field[number] for field in second))
        assert residual(moved, moved.flow) < 0.3 * residual(moved, torch.zeros_like(moved.flow))


def test_only_simulated_pairs_lie_nearly_right_though_each_is_deformed_in_two_ways(monkeypatch):
    monkeypatch.setattr("data.variation.STILL", 1.0)
    pairs = sample_in_two_deformations(size=64, wide=0.0, simulated=0.5)
    chosen = pairs.choose(list(range(20)))
    simulated = chosen.whole[:, 3] > 0
    assert torch.equal(simulated[::2], simulated[1::2]) and 0 < simulated.sum() < 20
    # Amplitudes in px: up to 2 of those that lie nearly right, 2.6 of the benchmark.
    amplitude = chosen.variation.deformation[:, 1] * 4 * 256 / 64
    assert amplitude[simulated].max() < 2.3 < amplitude[~simulated].min()


def test_only_simulated_pairs_are_exact():
    assert not sample(augment=True, size=64)[[0, 1, 2, 3]].exact.any() and not sample(size=64)[[0, 1]].exact.any()
    assert sample(augment=True, size=64, simulated=1.0)[[0, 1]].exact.all()


@pytest.mark.parametrize("augment", [False, True])
def test_flow_maps_moving_to_the_truth(augment):
    pairs = sample(augment=augment, size=256)
    before, after, wrong = [], [], []
    for draw in range(12):
        pair = pairs[draw]
        before.append(residual(pair, torch.zeros_like(pair.flow)))
        after.append(residual(pair, pair.flow))
        wrong.append(residual(pair, pair.inverse_flow))
    # What is left is the blur of sampling twice and, with augmentation, noise.
    assert np.mean(after) < (0.5 if augment else 0.35) * np.mean(before)
    assert np.mean(wrong) > np.mean(before)


def test_inverse_flow_is_what_was_applied():
    pair = sample(size=256)[0]
    applied = warp(pair.moving_aligned[None], resize_flow(pair.inverse_flow[None], (256, 256)))[0]
    assert torch.allclose(applied, pair.moving, atol=1e-6)
    assert compose(pair.inverse_flow[None], pair.flow[None])[..., 4:-4, 4:-4].abs().max() < 0.02


@pytest.fixture
def two_sided(monkeypatch):
    """Nothing in one image only."""
    monkeypatch.setattr("data.variation.ONE_SIDED", 0.0)
    monkeypatch.setattr("data.variation.NOISY", 0.0)


def test_augmentation_moves_both_images_of_the_pair_alike(two_sided):
    # The same file on both sides: whatever the pose, fixed and truly aligned image show the same, but for contrast and
    # shading.
    pairs = sample(same=True, augment=True, size=128)
    aligned = [correlation(pair.fixed, pair.moving_aligned) for pair in map(pairs.__getitem__, range(12))]
    moving = [correlation(pair.fixed, pair.moving) for pair in map(pairs.__getitem__, range(12))]
    assert min(aligned) > 0.8 and np.median(aligned) > 0.98
    assert np.mean(moving) < np.mean(aligned) - 0.02
    original = [correlation(pairs[i].fixed, sample(same=True)[i].fixed) for i in range(12)]
    assert min(original) < 0.9, "the pose must vary"


def test_few_training_pairs_are_upside_down_and_half_are_mirrored(tmp_path, two_sided):
    # The brightest quarter is that at the top left, the darkest one that at the bottom right.
    image = np.kron(np.array([[0.9, 0.5], [0.2, 0.1]], np.float32), np.ones((32, 32), np.float32))
    for role in ("fixed", "moving"):
        write_image(tmp_path / f"{role}.png", image)
    table = pd.DataFrame([{"fixed": "fixed.png", "moving": "moving.png", "modality": "CT"}])
    pairs = PairDataset(table, tmp_path, augment=True, size=64)
    drawn = torch.stack([pairs[draw].moving_aligned[0] for draw in range(80)])
    upside_down = drawn[:, 32:].mean(dim=(1, 2)) > drawn[:, :32].mean(dim=(1, 2))
    mirrored = drawn[..., 32:].mean(dim=(1, 2)) > drawn[..., :32].mean(dim=(1, 2))
    assert 0 < upside_down.float().mean() < 0.25 and 0.35 < mirrored.float().mean() < 0.65


def variation(count: int, wide: float = 0.5, simulated: bool = False, size: int = 256) -> Variation:
    numbers = torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(0))
    return draw_variation(numbers, (size, size), wide, [simulated] * count)


def test_each_variation_has_its_share_of_the_pairs():
    drawn = variation(4000)
    shares = {
        "posed": (drawn.posed, 0.4), "upside down": (drawn.flips[:, 0], 0.1), "mirrored": (drawn.flips[:, 1], 0.5),
        "shading": (drawn.shading, 0.5), "structures": (drawn.structures[..., 6].amax(dim=2), 0.3),
        "noise": (drawn.noise[..., 0], 0.3), "faint noise": (drawn.contrast[..., 2], 0.5),
        "colours": (drawn.colored, 0.6), "turned": (drawn.deformation[:, 3].abs(), 0.5),
    }  # fmt: skip
    for name, (strength, share) in shares.items():
        # Of fixed and moving images alike.
        assert ((strength > 0).float().mean(dim=0) - share).abs().max() < 0.04, name
    assert (variation(50, simulated=True).posed == 1).all()


def test_augmentation_gives_both_images_of_a_kind_one_contrast(two_sided):
    # Aligned and moving image come from one scanner: their brightest parts stay alike.
    for draw in range(6):
        pair = sample(augment=True, wide=0.0)[draw]
        assert pair.moving.mean().item() == pytest.approx(pair.moving_aligned.mean().item(), rel=0.15)


def test_one_sided_structures_belong_to_one_image_and_move_with_it(monkeypatch, two_sided):
    # The same file on both sides, in one contrast: nothing differs but what one side alone is given.
    for name in ("vary_shading", "vary_contrast"):
        monkeypatch.setattr(f"data.augmentation.{name}", lambda images, *_: images)

    def draws(share: float) -> list[Pair]:
        monkeypatch.setattr("data.variation.ONE_SIDED", share)
        return [sample(same=True, augment=True, size=256)[draw] for draw in range(12)]

    plain, pairs = draws(0.0), draws(1.0)
    alike, unlike = ([correlation(pair.fixed, pair.moving_aligned) for pair in some] for some in (plain, pairs))
    assert min(alike) > 0.999 and np.median(unlike) < 0.995
    after = [residual(pair, pair.flow) for pair in pairs]
    before = [residual(pair, torch.zeros_like(pair.flow)) for pair in pairs]
    assert np.mean(after) < 0.1 * np.mean(before)


def with_structures(image: Tensor, count: int) -> Tensor:
    """An image (1, 1, H, W) with one-sided structures, (count, 1, H, W)."""
    numbers = torch.rand(count, STRUCTURES, generator=torch.Generator().manual_seed(0))
    structures = one_sided(numbers, torch.ones(count, dtype=torch.bool), image.shape[3])
    return add_one_sided(image.expand(count, -1, -1, -1), structures)


def keys(*shape: int) -> Tensor:
    return torch.randint(*KEYS, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def test_one_sided_structures_are_local_and_in_the_tissue():
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    head = (0.6 * ((y - 128) ** 2 + (x - 128) ** 2 < 90**2)).float()[None, None]
    changes = with_structures(head, 40) - head
    changed = changes.abs() > 0.02
    share = changed.float().mean(dim=(1, 2, 3))
    assert share.max() < 0.15 and (share > 0).float().mean() > 0.9
    assert (changes > 0.2).any() and (changes < -0.3).any(), "bright ones and dark ones"
    # They stand in the tissue, so they hardly reach its frame.
    assert changed[..., :5, :].float().mean() < 0.002 and changed[..., :5].float().mean() < 0.002
    empty = with_structures(torch.zeros(1, 1, 64, 80), 1)
    assert empty.isfinite().all() and empty.min() >= 0 and empty.max() <= 1


def test_one_sided_structures_grow_with_the_image():
    def share(side: int) -> float:
        head = torch.zeros(1, 1, side, side)
        head[..., side // 8 : -side // 8, side // 8 : -side // 8] = 0.6
        return ((with_structures(head, 60) - head).abs() > 0.2).float().mean().item()

    assert share(64) == pytest.approx(share(192), rel=0.4)


def test_noise_is_bounded_and_not_in_the_truth(monkeypatch, two_sided):
    plain = sample(augment=True)[7]
    monkeypatch.setattr("data.variation.NOISY", 1.0)
    noisy = sample(augment=True)[7]
    assert torch.equal(noisy.moving_aligned, plain.moving_aligned) and torch.equal(noisy.flow, plain.flow)
    assert not torch.equal(noisy.moving, plain.moving) and not torch.equal(noisy.fixed, plain.fixed)
    grey = torch.full((6, 1, 65, 67), 0.5)
    strength = torch.tensor([(0.1, 0), (0.1, 1), (0.1, 2), (0.01, 0), (0.0, 0), (0.0, 2)])
    added = add_noise(grey, strength, keys(6)) - grey
    assert added.std(dim=(1, 2, 3))[[0, 3]].tolist() == pytest.approx([0.1, 0.01], rel=0.05)
    # Neighbours of coarse grain are alike.
    rough = added.diff(dim=3).std(dim=(1, 2, 3))
    assert rough[0] > 1.5 * rough[1] > 2 * rough[2] > 0.01 and not added[4:].any()


def test_wide_deformations_are_larger():
    def mean_length(wide: float) -> float:
        pairs = sample(augment=True, wide=wide, size=64)
        return float(np.mean([16 * pairs[i].flow.norm(dim=0).mean() for i in range(30)]))

    benchmark, wide = mean_length(0.0), mean_length(1.0)
    assert 3 < benchmark < 4.5 and wide > 1.5 * benchmark


def test_vary_contrast_keeps_order_and_range():
    ramp = torch.linspace(0, 1, 50).expand(2, 1, 40, 50)
    for gamma, gain in variation(20).contrast[:, 0, :2].tolist():
        plain, noisy = vary_contrast(ramp, torch.tensor([(gamma, gain, 0.0), (gamma, gain, 0.02)]), keys(2))
        assert torch.allclose(plain, (gain * ramp[0] ** gamma).clamp(0, 1), atol=1e-5)
        assert 0 <= noisy.min() and noisy.max() <= 1
        assert (noisy - plain)[..., 20:30].std().item() == pytest.approx(0.02, rel=0.1)


def test_contrast_has_its_ranges():
    gamma, gain, faint = variation(1000).contrast.flatten(0, 1).unbind(dim=1)
    assert 0.7 < gamma.min() < 0.72 and 1.39 < gamma.max() < 1.42
    assert 0.8 <= gain.min() < 0.81 and 1.19 < gain.max() <= 1.2 and 0.019 < faint.max() <= 0.02


def test_vary_shading_is_smooth_and_of_each_image_its_own():
    flat = torch.full((40, 1, 128, 128), 0.4)
    depth = torch.linspace(0, 0.5, 40)
    varied = vary_shading(flat, depth, keys(40))
    spread = varied.std(dim=(1, 2, 3))
    assert spread[0] == 0 < spread[1] and spread[20:].max() > 0.05 and len(spread.unique()) == 40
    assert 0 <= varied.min() and varied.max() <= 1
    assert varied.diff(dim=3).abs().max() < 0.05
    assert not vary_shading(torch.zeros(2, 1, 128, 128), torch.ones(2), keys(2)).any()


def test_noise_is_white_normal_and_of_each_key_its_own():
    noise = white_noise(keys(6, 2), (101, 99)).double()
    assert noise.shape == (6, 2, 101, 99)
    assert torch.equal(noise[4, 1], white_noise(keys(6, 2)[4, 1], (101, 99)).double())
    assert abs(noise.mean()) < 0.01 and noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1) and noise.abs().max() > 4
    fields = noise.flatten(0, 1).flatten(1)
    assert (torch.corrcoef(fields) - torch.eye(12)).abs().max() < 0.05
    for shift in (1, 2, 99, 100, 5000):
        assert abs((fields[:, shift:] * fields[:, :-shift]).mean()) < 0.015


def test_fit_scales_the_longer_side_and_centres():
    image = torch.ones(2, 100, 200)
    fitted = letterbox(image, 64)
    assert fitted.shape == (2, 64, 64)
    # 100 x 200 becomes 32 x 64: 16 rows of padding above and below.
    assert torch.allclose(fitted[:, 16:48], torch.ones(2, 32, 64)) and not fitted[:, :16].any()
    assert not fitted[:, 48:].any()
    upright = letterbox(image.transpose(1, 2), 64)
    assert torch.allclose(upright, fitted.transpose(1, 2))


def test_fit_leaves_the_right_size_alone_and_enlarges_small_images():
    image = torch.rand(1, 64, 64)
    assert torch.equal(letterbox(image, 64), image)
    assert torch.allclose(letterbox(torch.full((1, 64, 64), 0.3), 128), torch.full((1, 128, 128), 0.3))
    assert letterbox(torch.rand(1, 64, 6400), 64).shape == (1, 64, 64)
    odd = letterbox(torch.ones(1, 63, 64), 64)
    assert odd.sum() == 63 * 64


def test_non_square_pairs_become_batches(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a", (80, 120)), ("b", (128, 70))):
        write_image(tmp_path / f"f{name}.png", rng.random(size))
        write_image(tmp_path / f"m{name}.png", rng.random(size))
    table = pd.DataFrame({"fixed": ["fa.png", "fb.png"], "moving": ["ma.png", "mb.png"], "modality": ["SPECT", "CT"]})
    batch = next(iter(DataLoader(PairDataset(table, tmp_path, size=96), batch_size=2)))
    assert batch.fixed.shape == (2, 1, 96, 96) and batch.flow.shape == (2, 2, 24, 24)
    assert batch.modality.tolist() == [2, 0]


def test_empty_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one pair"):
        PairDataset(pd.DataFrame({"fixed": [], "moving": [], "modality": []}), tmp_path)


def test_bad_images_are_named(tmp_path):
    write_image(tmp_path / "f.png", np.zeros((80, 90)))
    write_image(tmp_path / "m.png", np.zeros((90, 80)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    table = pd.DataFrame({"fixed": ["f.png"] * 3, "moving": ["m.png", "broken.png", "missing.png"]})
    table["modality"] = "CT"
    pairs = PairDataset(table, tmp_path)
    for draw, words in ((0, "m.png: expected the size of"), (1, "broken.png"), (2, "missing.png.*nothing there")):
        with pytest.raises(ImageError, match=words):
            pairs[draw]


def test_draws_come_again_after_so_many_epochs():
    anew, again = sample(augment=True, size=64), sample(augment=True, size=64, repeat_after=1)
    count = len(again)
    assert torch.equal(again[0].fixed, anew[0].fixed) and again[0].number == 0
    assert equal(again[count], again[0]) and equal(again[[count + 1, 0, 1]], again[[1, count, 1]])
    assert not torch.equal(anew[count].moving, anew[0].moving) and anew[count].number == count


def test_colours_belong_to_the_moving_image_and_move_with_it(tmp_path):
    y, x = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64), indexing="ij")
    write_image(tmp_path / "f.png", np.full((64, 64), 0.5, np.float32))
    write_image(tmp_path / "m.png", np.dstack([y, x, 0.5 * y]).astype(np.float32))
    table = pd.DataFrame([{"fixed": "f.png", "moving": "m.png", "modality": "PET"}])
    pair = PairDataset(table, tmp_path, size=64)[0]
    assert torch.allclose(rgb_to_grayscale(pair.color), pair.moving_aligned, atol=0.01) and not pair.lesion.any()
    moved = Pair(*(torch.as_tensor(field)[None] for field in pair)).moving_color
    inside = (..., slice(8, -8), slice(8, -8))
    assert (rgb_to_grayscale(moved)[0] - pair.moving)[inside].abs().max() < 0.02
    drawn = [PairDataset(table, tmp_path, size=64, augment=True)[draw] for draw in range(40)]
    grey = [pair for pair in drawn if not pair.color.any()]
    assert 4 < len(grey) < 24
    assert not any(pair.lesion[1].any() for pair in drawn if pair.color.any())  # colour would have to change with it
    assert any(pair.lesion[1].any() for pair in grey)


def test_simulated_lesions_are_small_and_in_soft_tissue_of_one_image():
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    head = ((y - 128) ** 2 + (x - 128) ** 2 < 90**2).float().expand(20, 1, 256, 256)
    in_fixed = torch.arange(20) % 2 == 1
    chosen = variation(20).lesions
    lesions = simulated_lesions(0.5 * head, 0.4 * head, in_fixed, chosen)
    own, other = (lesions[torch.arange(20), (in_fixed != side).long()] for side in (True, False))
    assert own.flatten(1).any(dim=1).all() and not other.any() and own.abs().max() <= 0.4
    assert own.max() > 0.1 and own.min() < -0.1
    assert ((own != 0) & (head[:, 0] == 0)).float().mean() < 0.01
    # Two to five of 3 to 15 px.
    sizes = (own != 0).sum(dim=(1, 2))
    assert 20 < sizes.min() and sizes.max() < 5 * 1.3 * math.pi * 7.5**2
    assert not simulated_lesions(0 * head, 0 * head, in_fixed, chosen).any()


def test_a_lesion_by_hand():
    tissue = torch.zeros(1, 1, 64, 256)
    tissue[..., 20, 30] = 0.4
    lesion = torch.tensor([[[0.5, 6.0, 3.0, 0.0, 0.2, 0.9]]])
    made = simulated_lesions(tissue, tissue, torch.tensor([True]), lesion)[0, 0]
    # Its place is the only soft pixel, and side 0.9 makes it dark. Its edge is 1.5 px wide at its narrow end.
    by_hand = {(20, 30): -0.2, (20, 33): -0.2, (20, 36): -0.1, (20, 38): 0.0, (22, 30): -0.2, (23, 30): -0.1}
    assert {place: made[place].item() for place in by_hand} == pytest.approx(by_hand)


def test_images_checked_are_kept_but_do_not_travel_to_other_processes(tmp_path):
    for role in ("MRI", "CT"):
        write_image(tmp_path / role / "a001.png", np.full((64, 64), 0.5, np.float32))
    rows = [{"fixed": "MRI/a001.png", "moving": "CT/a001.png", "modality": "CT"}]
    pairs = PairDataset(pd.DataFrame(rows), tmp_path, size=64)
    pairs.check()
    copied = pickle.loads(pickle.dumps(pairs))
    (tmp_path / "MRI/a001.png").unlink()
    assert pairs.images(0).shape == (5, 64, 64) and not pairs.images(0)[2:].any()
    for dataset in (copied, PairDataset(pd.DataFrame(rows), tmp_path)):
        with pytest.raises(ImageError, match="a001.png: expected an image file, found nothing there"):
            dataset.check()


def test_images_without_tissue_are_told_before_a_run_begins(tmp_path):
    rows = []
    for modality, levels in (("CT", (0.0, 0.5)), ("PET", (0.05, 0.06))):
        for number, level in enumerate(levels):
            for role in ("MRI", modality):
                write_image(tmp_path / modality / role / f"{number}.png", np.full((64, 64), level, np.float32))
            paths = {"fixed": f"{modality}/MRI/{number}.png", "moving": f"{modality}/{modality}/{number}.png"}
            rows.append(paths | {"modality": modality})
    # One image without tissue is no matter.
    PairDataset(pd.DataFrame(rows[:2]), tmp_path, size=64).check()
    with pytest.raises(DataError, match=r"PET/1.png: expected PET images with tissue brighter than 0.08 .* found none"):
        PairDataset(pd.DataFrame(rows), tmp_path, size=64).check()


def test_tissue_is_looked_for_in_the_moving_images(tmp_path):
    for role, level in (("MRI", 0.5), ("CT", 0.05)):
        write_image(tmp_path / role / "a001.png", np.full((64, 64), level, np.float32))
    table = pd.DataFrame([{"fixed": "MRI/a001.png", "moving": "CT/a001.png", "modality": "CT"}])
    with pytest.raises(DataError, match="CT/a001.png: expected CT images with tissue"):
        PairDataset(table, tmp_path, size=64).check()


def test_sampler_shows_each_row_once_an_epoch():
    draws = list(islice(EndlessSampler(7, 3, seed=2), 28))
    epochs = [draws[i : i + 7] for i in range(0, 28, 7)]
    for number, epoch in enumerate(epochs):
        # Draws are numbered on, so that no two epochs deform a row alike.
        assert sorted(epoch) == list(range(7 * number, 7 * number + 7))
    orders = {tuple(draw % 7 for draw in epoch) for epoch in epochs}
    assert len(orders) > 1
    assert draws == list(islice(EndlessSampler(7, 3, seed=2), 28))
    assert draws != list(islice(EndlessSampler(7, 3, seed=3), 28))


@pytest.mark.parametrize("start", [1, 4, 23])
def test_sampler_goes_on_where_it_stopped(start):
    whole = list(islice(EndlessSampler(10, 4, seed=1), 4 * 40))
    assert list(islice(EndlessSampler(10, 4, seed=1, start=start), 4 * 10)) == whole[4 * start : 4 * (start + 10)]


@pytest.mark.parametrize("start", [0, 3])
def test_ranks_divide_the_batches_of_one_process(start):
    one = list(islice(EndlessSampler(11, 8, seed=6, start=start), 8 * 6))
    ranks = [list(islice(EndlessSampler(11, 4, seed=6, start=start, rank=r, world=2), 4 * 6)) for r in (0, 1)]
    for step in range(6):
        assert ranks[0][4 * step : 4 * step + 4] + ranks[1][4 * step : 4 * step + 4] == one[8 * step : 8 * step + 8]
