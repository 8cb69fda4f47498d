"""A graph that computes only the rows that are read answers as before."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.parser import parse_model

from vlserve.exporter.row_pruning import drop_unread_rows

HEAD = """
<ir_version: 10, opset_import: ["": 20]>
graph (float[batch, rows, 4] x, int64[batch] place) => ({outputs})
<float[4] g = {{1.0, 2.0, -1.0, 0.5}}, float[4] b = {{0.1, 0.2, 0.3, 0.4}}, int64 first = {{0}},
 int64[1] one = {{1}}, int64[2] both = {{0, 1}}, int64 zero = {{0}}, int64 step = {{1}}>
{{
  w = Constant <value = float[4, 8] {{{wide}}}> ()
  v = Constant <value = float[8, 4] {{{wide}}}> ()
"""
WIDE = ", ".join(f"{np.sin(1 + place):.3f}" for place in range(32))
LAYER = """
  product = MatMul (x, w)
  act = Gelu (product)
  back = MatMul (act, v)
  biased = Add (back, b)
  summed = Add (biased, x)
  states = LayerNormalization <axis = 2> (summed, g, b)
"""
FIRST = "y = Gather <axis = 1> (states, first)"
BOTH = "y = Gather <axis = 1> (states, both)"
OWN = """
  shape = Shape <start = 0, end = 1> (x)
  count = Squeeze (shape)
  item = Range (zero, count, step)
  items = Unsqueeze (item, one)
  places = Unsqueeze (place, one)
  pairs = Concat <axis = 1> (items, places)
  y = GatherND (states, pairs)
"""
ROWS_MEET = """
  turned = Transpose <perm = [0, 2, 1]> (states)
  scores = MatMul (states, turned)
  shares = Softmax (scores)
  mixed = MatMul (shares, states)
  product2 = MatMul (mixed, w)
  act2 = Gelu (product2)
  y = Gather <axis = 1> (act2, first)
"""
Y1, Y2 = "float[batch, 4] y", "float[batch, two, 4] y"


def graph(outputs: str, *parts: str) -> onnx.ModelProto:
    text = HEAD.format(outputs=outputs, wide=WIDE) + "".join(parts) + "\n}"
    return onnx.shape_inference.infer_shapes(parse_model(text), strict_mode=True)


def answers(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    return list(session.run(None, {"x": x, "place": np.array([4, 0, 2])}))


def rows_computed(model: onnx.ModelProto) -> list[int]:
    """Of each product with weights, for three items of five rows."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    products = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in ("w", "v")
    ]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in products)
    return [array[..., 0].size for array in answers(model)]


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (graph(Y1, LAYER, FIRST), [15, 15], [3, 3]),
        (graph(Y1, LAYER, OWN), [15, 15], [3, 3]),
        (graph(Y2, LAYER, BOTH), [15, 15], [6, 6]),
        (graph("float[batch, 8] y", LAYER, ROWS_MEET), [15, 15, 15], [15, 15, 3]),
    ],
    ids=["the first row", "each item's own", "two rows", "after rows met"],
)
def test_what_is_read_is_computed(
    model: onnx.ModelProto, before: list[int], after: list[int]
) -> None:
    assert rows_computed(model) == before
    ir_model = ir.from_proto(model)
    products = drop_unread_rows(ir_model.graph)
    new_model = ir.to_proto(ir_model)
    onnx.checker.check_model(new_model, full_check=True)
    assert rows_computed(new_model) == after
    assert products == sum(a < b for a, b in zip(after, before, strict=True))
    for output, expected in zip(answers(new_model), answers(model), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_axes_without_a_name_are_not_taken_for_the_same() -> None:
    model = ir.from_proto(graph(Y1, LAYER, FIRST))
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and len(value.shape) == 3:
                value.shape = ir.Shape([None, None, value.shape[-1]])
    assert drop_unread_rows(model.graph) == 0


@pytest.mark.parametrize(
    "model",
    [
        graph(f"{Y1}, float[batch, rows, 4] states", LAYER, FIRST),
        graph(f"{Y1}, float[batch, two, 4] z", LAYER, FIRST, BOTH.replace("y =", "\n  z =")),
        graph("float[batch, rows] y", LAYER, "y = Gather <axis = 2> (states, first)"),
        graph("float[rows, 4] y", LAYER, "y = Gather <axis = 0> (states, first)"),
    ],
    ids=["all are answered", "others are read too", "a column is read", "an item is read"],
)
def test_what_else_is_read_stays(model: onnx.ModelProto) -> None:
    ir_model = ir.from_proto(model)
    assert drop_unread_rows(ir_model.graph) == 0
    assert ir.to_proto(ir_model) == ir.to_proto(ir.from_proto(model))
