"""What an ONNX file says of itself, held against the manifest."""

from collections.abc import Container, Iterable
from pathlib import PurePosixPath
from typing import Any

from vlserve.runtime.errors import ArchiveError, ArchiveUnreadable, ManifestInvalid
from vlserve.runtime.manifest import Graph, TensorSpec
from vlserve.runtime.onnx_outline import read_outline


def check_onnx(graph: Graph, chunks: Iterable[bytes], members: Container[str]) -> None:
    """Hold an ONNX file, in ``chunks``, against the manifest: names, types and axes must be those
    of ``graph``, every named axis dynamic, and weights outside the file among ``members``.

    Raises ArchiveUnreadable, ArchiveTooLarge or ManifestInvalid, listing everything that is wrong.
    """
    import onnx  # protobuf alone: neither onnxruntime nor torch

    try:
        model = onnx.load_model_from_string(read_outline(chunks, graph.file))
    except ArchiveError:
        raise
    except Exception as error:  # protobuf's exception classes differ by implementation
        raise ArchiveUnreadable(f"{graph.file} is not an ONNX graph: {error}") from error
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    wrong = [
        *_differences("input", graph.inputs, inputs),
        *_differences("output", graph.outputs, model.graph.output),
        *_weights_elsewhere(graph, model.graph.initializer, members),
    ]
    if wrong:
        raise ManifestInvalid(f"{graph.file}: {'; '.join(wrong)}")


def _differences(kind: str, expected: Iterable[TensorSpec], values: Iterable[Any]) -> list[str]:
    import onnx

    types = {value.name: value.type.tensor_type for value in values}
    tensors = {tensor.name: tensor for tensor in expected}
    wrong = [f"{kind} {name} is not in the manifest" for name in types.keys() - tensors.keys()]
    for name, tensor in tensors.items():
        if name not in types:
            wrong.append(f"{kind} {name} is not in the graph")
            continue
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name].elem_type).name
        except KeyError:
            dtype = "undefined"
        if dtype != tensor.dtype:
            wrong.append(f"{kind} {name} is {dtype}, the manifest says {tensor.dtype}")
        dims = types[name].shape.dim
        if len(dims) != len(tensor.dims):
            wrong.append(f"{kind} {name} has {len(dims)} axes, the manifest says {tensor.dims}")
            continue
        for axis, (dim, size) in enumerate(zip(dims, tensor.dims, strict=True)):
            static_size = dim.dim_value if dim.HasField("dim_value") else None
            if isinstance(size, str) and static_size is not None:
                wrong.append(f"{kind} {name} axis {axis} ({size}) is static at {static_size}")
            elif (
                isinstance(size, int)
                and static_size != size
                and (kind == "input" or static_size is not None)
            ):
                # an output's size may be left to the graph's own arithmetic
                wrong.append(f"{kind} {name} axis {axis} is {static_size}, not {size}")
    return wrong


def _weights_elsewhere(
    graph: Graph, initializers: Iterable[Any], members: Container[str]
) -> list[str]:
    import onnx

    wrong = []
    for weight in initializers:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            places = [entry.value for entry in weight.external_data if entry.key == "location"]
            for place in places or [""]:
                if str(PurePosixPath(graph.file).parent / place) not in members:
                    wrong.append(f"weight {weight.name} lies in {place!r}, which is no member")
    return wrong
