"""The trained network by OpenVINO in bfloat16, which can be faster on a CPU than PyTorch in float32.

OpenVINO is optional: `pip install -r requirements-openvino.txt`. Import this module only where it is asked for.
"""

import warnings

import openvino
import torch
from torch import Tensor

from models.edarfusion import AtSettings, EDARFusion
from models.outputs import Output
from utils.files import InputError


class OpenVINOModel:
    """Stands in for a trained `EDARFusion` on the CPU.

    Each size of image has a graph of its own, which is made when the size is first met and takes some seconds.

    Args:
        model: in evaluation mode, on the CPU. bfloat16 moves its flow by some hundredths of a px, its grey values by
            some levels of 255 and by more in single pixels on sharp edges.

    Raises:
        InputError: the processor does not compute in bfloat16.
    """

    def __init__(self, model: EDARFusion) -> None:
        self._core = openvino.Core()
        if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError("openvino-bf16: expected a processor that computes in bfloat16, found one that does not")
        self.model = model
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._graphs = {}

    def __call__(
        self, fixed: Tensor, moving: Tensor, passes: int = 1, average: bool = False, room: Tensor | None = None
    ) -> Output:
        """Compute the outputs of `EDARFusion.forward` for images (B, 1, H, W); the arguments are the same."""
        inputs = [fixed, moving] if room is None else [fixed, moving, room]
        key = (*fixed.shape, passes, average, len(inputs))
        if key not in self._graphs:
            self._graphs[key] = self._compile(inputs, passes, average)
        results = self._graphs[key]([image.numpy() for image in inputs])
        return Output(*(torch.from_numpy(results[place].copy()) for place in range(len(results))))

    def _compile(self, inputs: list[Tensor], passes: int, average: bool) -> openvino.CompiledModel:
        # Tensors made in inference mode cannot be exported.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the two libraries call of each other's
            images = tuple(torch.rand(image.shape) for image in inputs)
            program = torch.export.export(AtSettings(self.model, passes, average), images)
            graph = openvino.convert_model(program)
        return self._core.compile_model(graph, "CPU", self._settings)
