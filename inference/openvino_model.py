"""The trained network by OpenVINO, which computes in bfloat16 faster on a CPU than PyTorch in float32."""

import warnings

import openvino
import torch
from torch import Tensor

from models.edarfusion import AtSettings, EDARFusion, Output
from utils.arguments import ENGINES


class OpenVINOModel:
    """Stands in for a trained `EDARFusion` on the CPU.

    Each size of image has a graph of its own, which is made when the size is first met and takes some seconds.

    Args:
        model: in evaluation mode, on the CPU.
        engine: ``openvino`` computes in float32 and agrees with PyTorch to rounding; ``openvino-bf16`` computes in
            bfloat16 and moves the flow by some hundredths of a px, grey values by some levels of 255 and by more in
            single pixels on sharp edges.

    Raises:
        ValueError: an engine that is not one of the two, or bfloat16 on a processor that does not compute with it.
    """

    def __init__(self, model: EDARFusion, engine: str = "openvino") -> None:
        if engine not in ENGINES[1:]:
            raise ValueError(f"expected one of {', '.join(ENGINES[1:])}, found {engine!r}")
        self._core = openvino.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if engine == "openvino-bf16" and "BF16" not in capabilities:
            raise ValueError("openvino-bf16: expected a processor that computes in bfloat16, found one that does not")
        self.model = model
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if engine == "openvino-bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._graphs = {}

    def __call__(self, fixed: Tensor, moving: Tensor, passes: int = 1, average: bool = False) -> Output:
        """As `EDARFusion.forward`."""
        key = (*fixed.shape, passes, average)
        if key not in self._graphs:
            self._graphs[key] = self._compile(fixed, moving, passes, average)
        results = self._graphs[key]([fixed.numpy(), moving.numpy()])
        return Output(*(torch.from_numpy(results[place].copy()) for place in range(len(Output._fields))))

    def _compile(self, fixed: Tensor, moving: Tensor, passes: int, average: bool) -> openvino.CompiledModel:
        # Tensors made in inference mode cannot be exported.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the two libraries call of each other's
            pair = tuple(torch.rand(image.shape) for image in (fixed, moving))
            program = torch.export.export(AtSettings(self.model, passes, average), pair)
            graph = openvino.convert_model(program)
        return self._core.compile_model(graph, "CPU", self._settings)
