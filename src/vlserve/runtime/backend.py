"""Graph engines: ONNX Runtime, TorchScript, and Echo, which needs no weights."""

import os
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.runtime.manifest import Graph
from vlserve.runtime.types import Arrays, Backend


def open_backend(graph: Graph, root: Path, threads: int) -> Backend:
    """Load one graph of the archive folder ``root``, computing on ``threads`` threads.

    ArchiveUnreadable when its engine cannot load it.
    """
    backends: dict[str, type[OnnxBackend] | type[TorchScriptBackend] | type[EchoBackend]] = {
        "onnx": OnnxBackend,
        "torchscript": TorchScriptBackend,
        "echo": EchoBackend,
    }
    try:
        return backends[graph.format](graph, root / graph.file, threads)
    except ModuleNotFoundError as error:
        raise ArchiveUnreadable(
            f"{graph.file} cannot be loaded: {error}; pip install 'vlserve[cpu]' brings "
            "onnxruntime (with a GPU: 'vlserve[gpu]')"
        ) from error
    except Exception as error:  # each engine has its own exceptions
        raise ArchiveUnreadable(f"{graph.file} cannot be loaded: {error}") from error


SLOWER_ON_CPUS = "SkipLayerNormFusion"
"""On a CPU the fused kernel takes several times what Add and LayerNormalization take apart
(ONNX Runtime 1.31)."""


class OnnxBackend:
    """ONNX Runtime: on the GPU where its build has one, else on the CPU."""

    def __init__(self, graph: Graph, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # errors
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        available = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(
            str(file),
            options,
            providers=[name for name in providers if name in available],
            disabled_optimizers=[] if providers[0] in available else [SLOWER_ON_CPUS],
        )
        self._outputs = [output.name for output in graph.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


class TorchScriptBackend:
    """A TorchScript module, called with the manifest's inputs in their order."""

    def __init__(self, graph: Graph, file: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with warnings.catch_warnings():
            # TorchScript is deprecated since torch 2.11; archives that hold it still must load
            warnings.simplefilter("ignore", DeprecationWarning)
            self._module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(file), map_location=self._device
            ).eval()
        self._inputs = [tensor.name for tensor in graph.inputs]
        self._outputs = [tensor.name for tensor in graph.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        import torch

        with torch.inference_mode():
            tensors = [torch.from_numpy(inputs[name]).to(self._device) for name in self._inputs]
            result = self._module(*tensors)
        values = (result,) if isinstance(result, torch.Tensor) else result
        return {
            name: value.cpu().numpy() for name, value in zip(self._outputs, values, strict=True)
        }


class EchoSettings(BaseModel):
    """What graphs/<name>.echo.json says: how the graph answers and how it misbehaves.

    Shares are of items and a property of the item: the same item is slow or fails every time.
    Ids are token ids: of the character that a test or drill puts into a text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_shift: int = 0
    """Rolls the answer along its last axis, so that two versions differ."""
    delay_ms: float = Field(default=0.0, ge=0)
    delay_share: float = Field(default=1.0, ge=0, le=1)
    fail_share: float = Field(default=0.0, ge=0, le=1)
    fail_on_id: int | None = None
    crash_on_id: int | None = None


class EchoBackend:
    """Answers with a smooth function of each item's own inputs, as fast as they can be read."""

    def __init__(self, graph: Graph, file: Path, threads: int) -> None:
        try:
            self._settings = EchoSettings.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArchiveUnreadable(f"{graph.file}: {error}") from error
        self._graph = graph

    def run(self, inputs: Arrays) -> Arrays:
        self._misbehave(inputs)
        position = np.sum([_position(array) for array in inputs.values()], axis=0)
        return {
            output.name: np.roll(
                _wave(position, _shape(output.dims, self._graph, inputs)),
                self._settings.answer_shift,
                axis=-1,
            ).astype(output.dtype)
            for output in self._graph.outputs
        }

    def _misbehave(self, inputs: Arrays) -> None:
        settings = self._settings
        ids = [array for array in inputs.values() if array.dtype == np.int64 and array.ndim == 2]
        if settings.crash_on_id is not None and any((a == settings.crash_on_id).any() for a in ids):
            os._exit(70)
        if settings.fail_on_id is not None and any((a == settings.fail_on_id).any() for a in ids):
            raise RuntimeError(f"echo fails on id {settings.fail_on_id}")
        if settings.fail_share and (_shares(inputs, 1) < settings.fail_share).any():
            raise RuntimeError(f"echo fails on a share of {settings.fail_share}")
        if settings.delay_ms and (_shares(inputs, 2) < settings.delay_share).any():
            time.sleep(settings.delay_ms / 1000)


def _position(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return a number for each item of (batch, …); zeros, so also padding with 0, add nothing."""
    items = array.reshape(len(array), -1).astype(np.float64)
    weights = 1.5 + np.cos(0.7 * np.arange(items.shape[1]))
    if array.dtype.kind == "f":
        return np.asarray(items @ weights / max(items.shape[1], 1))
    return np.asarray(np.sin(items) @ weights)


def _wave(position: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return values (batch, …) in [-3, 3] that follow from numbers (batch,)."""
    steps = np.arange(int(np.prod(shape[1:]))) * 2.4
    return np.asarray(3 * np.sin(position[:, None] + steps)).reshape(shape)


def _shape(dims: tuple[int | str, ...], graph: Graph, inputs: Arrays) -> tuple[int, ...]:
    sizes = {
        axis: size
        for tensor in graph.inputs
        if tensor.name in inputs
        for axis, size in zip(tensor.dims, inputs[tensor.name].shape, strict=True)
    }
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)


def _shares(inputs: Arrays, salt: int) -> NDArray[np.float64]:
    """Return numbers (batch,) uniform in [0, 1), the same for the same item every time."""
    batch = len(next(iter(inputs.values())))
    checks = [
        zlib.crc32(b"".join(np.ascontiguousarray(a[i]).tobytes() for a in inputs.values()), salt)
        for i in range(batch)
    ]
    return np.array(checks) / 2**32
