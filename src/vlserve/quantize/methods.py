"""Ways to quantise one ONNX graph, by onnxruntime.quantization.

    static    convolutions, what lies between them, and products with weights: QDQ, with ranges of
              activations from calibration
    dynamic   products with weights; ranges of activations are found at every run
    mixed     convolutions as in static, products as in dynamic

Weights are int8 per channel, activations uint8: what AVX512-VNNI and AVX-VNNI multiply. GRUs have
no INT8 kernel in ONNX Runtime and stay as they are.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from vlserve.exporter.convert import strip_provenance
from vlserve.runtime.types import Arrays

Method = Literal["static", "dynamic", "mixed"]
METHODS: tuple[Method, ...] = ("static", "dynamic", "mixed")

CONVOLUTIONS = ("Conv", "ConvTranspose")
BETWEEN = ("Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Quantised where they follow convolutions, so that activations stay in int8 between them."""
PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Node:
    """One that has weights: what can be quantised, or left in float."""

    name: str
    op: str


@dataclass(frozen=True)
class Prepared:
    """A graph as ``quant_pre_process`` leaves it: shapes inferred, batch norms folded in."""

    file: Path
    nodes: tuple[Node, ...]
    """In the graph's order."""
    batches: tuple[Arrays, ...]

    @property
    def ranges(self) -> Path:
        """Where the calibrated ranges are kept between runs."""
        return self.file.with_suffix(".ranges.json")

    def methods(self) -> list[Method]:
        """Return the methods that differ."""
        kinds = {node.op for node in self.nodes}
        convolutions, products = kinds & set(CONVOLUTIONS), kinds & set(PRODUCTS)
        if convolutions and products:
            return list(METHODS)
        return ["static"] if convolutions else ["static", "dynamic"] if products else []

    def quantised_by(self, method: Method) -> list[Node]:
        if method == "dynamic":
            return [node for node in self.nodes if node.op in PRODUCTS]
        return list(self.nodes)


def prepare(source: Path, folder: Path, batches: Sequence[Arrays]) -> Prepared:
    """Write the prepared graph into the empty ``folder``."""
    file = folder / "prepared.onnx"
    with _quiet():
        quant_pre_process(str(source), str(file), skip_symbolic_shape=True)
    model = onnx.load(file)
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.name or node.op_type}_{place}"  # methods tell nodes apart by name
    onnx.save(model, file)
    return Prepared(file, tuple(_with_weights(model)), tuple(batches))


def quantise(
    graph: Prepared, method: Method, output: Path, exclusions: Collection[str] = ()
) -> None:
    """Write the graph with every node that ``method`` quantises, but the ``exclusions``."""
    model = onnx.load(graph.file)
    nodes = [node for node in graph.nodes if node.name not in exclusions]
    convolutions = {node.name for node in nodes if node.op in CONVOLUTIONS}
    products = {node.name for node in nodes if node.op in PRODUCTS}
    still = convolutions | _between(model, convolutions) if method != "dynamic" else set()
    if method == "static":
        still |= products
    with _quiet():
        if still:
            model = _static(graph, sorted(still), output)
        if method != "static" and products:
            model = _dynamic(model, sorted(products), output)
    strip_provenance(model)
    model.producer_name, model.producer_version = "", ""
    output.write_bytes(model.SerializeToString(deterministic=True))


def _static(graph: Prepared, nodes: list[str], output: Path) -> onnx.ModelProto:
    quantize_static(
        str(graph.file),
        str(output),
        _Batches(graph.batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*CONVOLUTIONS, *BETWEEN, *PRODUCTS],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
        calibration_cache_path=graph.ranges,
    )
    return onnx.load(output)


def _dynamic(model: onnx.ModelProto, nodes: list[str], output: Path) -> onnx.ModelProto:
    """Make of each Gemm a MatMul of the transposed weights, whose old shapes must not be on
    record."""
    model.graph.ClearField("value_info")
    onnx.save(model, output)
    quantize_dynamic(
        str(output),
        str(output),
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
        extra_options={"MatMulConstBOnly": True},
    )
    return onnx.load(output)


def _with_weights(model: onnx.ModelProto) -> Iterator[Node]:
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (*CONVOLUTIONS, *PRODUCTS) and node.input[1] in weights:
            yield Node(node.name, node.op_type)


def _between(model: onnx.ModelProto, convolutions: Collection[str]) -> set[str]:
    """Return what follows those convolutions alone, and no other."""
    follows: dict[str, bool] = {}
    names: set[str] = set()
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            quantised = node.name in convolutions
        else:
            before = [follows[name] for name in node.input if name in follows]
            if node.op_type not in BETWEEN or not before:
                continue
            if quantised := all(before):
                names.add(node.name)
        follows |= dict.fromkeys(node.output, quantised)
    return names


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> Any:
        return next(self._rest, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library, which says on the root logger what it has done."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
