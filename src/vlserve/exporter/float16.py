"""Graphs that compute in 16 bits, for GPUs; what goes in and comes out stays float32.

fp16 has 11 bits of precision and ends at 65504, bf16 has 8 and fp32's range. ONNX graphs are
converted by onnxruntime.transformers.float16, after they were proved equal in fp32; TorchScript is
traced of the network itself in 16 bits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from vlserve.errors import ExportError

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE: Mapping[str, float] = {"fp32": 0.0, "fp16": 0.02, "bf16": 0.1}
"""Absolute and relative: how far outputs may be from the fp32 network's."""


class InHalf(nn.Module):
    """A network in 16 bits behind float32 inputs and outputs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.module(*(x.to(self.dtype) if x.is_floating_point() else x for x in inputs))
        if isinstance(outputs, torch.Tensor):
            return outputs.float()
        return tuple(x.float() if x.is_floating_point() else x for x in outputs)


def check_precision(precision: str, format: str) -> None:
    """Raise ExportError for a precision that cannot be had."""
    if precision not in TOLERANCE:
        raise ExportError(f"no precision {precision}: there are {', '.join(TOLERANCE)} and int8")
    if precision == "bf16" and format == "onnx":
        raise ExportError(
            "bf16 needs --format torchscript: ONNX Runtime has no bf16 kernel for many operators, "
            "and none on a CPU to prove the graph with"
        )


def onnx_to_fp16(file: Path) -> None:
    """Convert a graph in place. Operators that have no fp16 kernel, and values beyond its range,
    stay float32."""
    model = convert_float_to_float16(onnx.load(file), keep_io_types=True)
    file.write_bytes(model.SerializeToString(deterministic=True))
