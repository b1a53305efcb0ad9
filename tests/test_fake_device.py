"""What a GPU would be asked to do in training and inference, without one: no mixed devices, no waiting, few kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch

from data.dataset import Chosen, Pair, PairDataset
from data.variation import Variation
from inference.luma_fit import fit_luma
from losses import fusion as fusion_losses
from models.edarfusion import EDARFusion
from tests.examples import SAMPLE, aligned_sample
from tests.fake_device import DEVICE, Watch, fake_device, without_values
from training.options import Options
from training.stages import StageTrainer

BATCH, SIDE = 8, 256


@pytest.fixture
def networks(monkeypatch) -> Iterator[list[EDARFusion]]:
    """Two networks in a block in which tensors have no values."""
    models = [EDARFusion("small") for _ in range(2)]
    # What is kept for each size is made once, with a look at the values.
    monkeypatch.setattr(fusion_losses, "_blurring", lambda length, size, sigma, step, device: torch.empty(
        length, -(-length // step), device=device))
    monkeypatch.setattr(fusion_losses, "_sensitivity", lambda size, device: torch.empty(
        size[0], size[1] // 2 + 1, device=device))
    with fake_device():
        yield [without_values(model) for model in models]


def batch() -> Pair:
    images = (torch.rand(BATCH, 1, SIDE, SIDE, device=DEVICE) for _ in range(3))
    flows = (torch.rand(BATCH, 2, SIDE // 4, SIDE // 4, device=DEVICE) for _ in range(2))
    numbers = torch.zeros(BATCH, dtype=torch.long, device=DEVICE)
    color, lesion = (torch.rand(BATCH, channels, SIDE, SIDE, device=DEVICE) for channels in (3, 2))
    return Pair(*images, *flows, numbers, color, lesion, numbers, numbers > 0)


def watched(run: Callable[[], object]) -> Watch:
    """What `run` asks of the device the second time; the first time may make what is kept."""
    run()
    with Watch() as watch:
        run()
    return watch


@pytest.mark.parametrize(
    ("stage", "second_pass", "taught", "own_offset", "kernels"),
    [("registration", False, False, 0.0, 1500), ("registration", True, True, 0.0, 2600),
     ("registration", False, False, 0.7, 1600), ("fusion", False, False, 0.0, 2700),
     ("fusion", False, True, 0.0, 1200)],
)  # fmt: skip
def test_a_step_of_training_never_waits_and_launches_few_kernels(
    networks, stage, second_pass, taught, own_offset, kernels
):
    model, averaged = networks
    teacher = averaged.eval() if taught else None
    trainer = StageTrainer(stage, model.train(), averaged, Options(own_offset=own_offset), teacher)
    pair = batch()
    watch = watched(lambda: trainer.step(pair, 1e-3, 5, second_pass))
    assert not watch.waits
    assert watch.kernels < kernels


def test_inference_waits_for_nothing(networks):
    model = networks[0].eval()
    pair = batch()
    with torch.no_grad():
        watch = watched(lambda: model(pair.fixed[:1], pair.moving[:1], 2, True))
    assert not watch.waits
    assert watch.kernels < 1550


def test_the_luma_is_fitted_without_waiting(networks):
    fixed, aligned = (torch.rand(1, channels, 256, 256, device=DEVICE) for channels in (1, 3))
    few, some = (watched(lambda steps=steps: fit_luma(fixed, aligned, fixed, steps)) for steps in (1, 5))
    assert not some.waits
    assert some.kernels - few.kernels < 4 * 800


@pytest.mark.parametrize("held", [True, False])
def test_pairs_are_made_on_the_device_from_a_few_numbers(monkeypatch, held):
    if not held:
        monkeypatch.setattr("data.dataset.HELD", 0)
    pairs = PairDataset(aligned_sample(), SAMPLE, augment=True)
    pairs.make_on(DEVICE)
    chosen = pairs.choose(list(range(BATCH)))
    with fake_device() as mode:
        if held:
            pairs._held = mode.from_tensor(pairs._held)
        images = None if held else mode.from_tensor(chosen.images)
        chosen = Chosen(mode.from_tensor(chosen.whole), Variation(*map(mode.from_tensor, chosen.variation)), images)
        watch = watched(lambda: pairs.make(chosen))
        made = pairs.make(chosen)
    assert {field.device for field in made} == {DEVICE} and made.fixed.shape == (BATCH, 1, SIDE, SIDE)
    # Whole numbers, the others, and, where the device does not keep them, the images.
    assert sum(watch.waits.values()) == 2 + (not held), watch.waits
    assert watch.kernels < 650
