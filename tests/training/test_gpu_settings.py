"""What training chooses on a GPU, without one: fake tensors on "cuda" have a device and no values."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.edarfusion import EDARFusion
from models.fusion import AT_ONCE
from models.layers import as_convolutions_want
from tests.fake_device import DEVICE, fake_device, without_values
from training import loop
from training.options import Options
from training.stages import begin_stage
from utils.device import prefer_speed

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpu_network() -> Iterator[EDARFusion]:
    """A network on a GPU, in a block in which tensors have no values."""
    model = EDARFusion("tiny")
    with FakeTensorMode():
        yield without_values(model, CUDA)


@pytest.fixture
def settings_kept() -> Iterator[None]:
    """Give back the settings of the whole process afterwards."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("device", "precision", "benchmark", "repeats"), [(CUDA, "high", True, False), (CPU, "highest", False, True)]
)
def test_a_gpu_computes_fast_and_a_cpu_repeats_to_the_bit(settings_kept, device, precision, benchmark, repeats):
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    prefer_speed(device)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.are_deterministic_algorithms_enabled() is repeats


@pytest.mark.parametrize("stage", ["registration", "fusion"])
def test_a_gpu_steps_all_weights_at_once(gpu_network, stage):
    _, optimizer = begin_stage(stage, gpu_network, Options())
    assert optimizer.defaults["fused"] is True
    assert stage == "fusion" or optimizer.batched


@pytest.mark.parametrize("stage", ["registration", "fusion"])
def test_a_cpu_steps_them_one_by_one(stage):
    _, optimizer = begin_stage(stage, EDARFusion("tiny"), Options())
    assert not optimizer.defaults["fused"]
    assert stage == "fusion" or not optimizer.batched


def test_convolutions_have_their_channels_last_on_a_cpu_alone():
    assert as_convolutions_want(torch.rand(1, 8, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    with FakeTensorMode():
        assert as_convolutions_want(torch.rand(1, 8, 4, 4, device=CUDA)).is_contiguous()


def test_a_gpu_fuses_any_batch_at_once():
    batches, side = [], 256
    count = AT_ONCE // side**2 + 1
    network = EDARFusion("tiny")
    network.fusion.stem.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    with fake_device():
        images, maps = (torch.rand(count, 1, s, s, device=DEVICE) for s in (side, side // 8))
        without_values(network).fusion(images, images, maps, maps)
    assert batches == [count]


def test_a_step_is_compiled_where_a_compiler_for_the_gpu_is(monkeypatch):
    for compiler, expected in ((object(), True), (None, False)):
        monkeypatch.setattr(loop, "find_spec", lambda _, compiler=compiler: compiler)
        assert loop.compiles_by_default(CUDA) is expected
        assert not loop.compiles_by_default(CPU)
