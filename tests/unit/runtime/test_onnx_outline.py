"""The outline of an ONNX file says what the whole file says, and holds no weights."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vlserve.runtime import onnx_outline
from vlserve.runtime.errors import ArchiveTooLarge, ArchiveUnreadable
from vlserve.runtime.onnx_outline import read_outline

WEIGHTS = 2**20


def model() -> onnx.ModelProto:
    values = np.random.default_rng(0).normal(size=WEIGHTS).astype(np.float32)
    outside = helper.make_tensor("outside", TensorProto.FLOAT, [1], bytes(4), raw=True)
    onnx.external_data_helper.set_external_data(outside, "model.data", offset=8)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "inside"], ["y"], doc_string="said " * 1000)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WEIGHTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [
            onnx.numpy_helper.from_array(values, "inside"),
            helper.make_tensor("listed", TensorProto.DOUBLE, [2], [0.5, 1.5]),
            outside,
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return proto


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[start : start + size] for start in range(0, len(raw), size))


@pytest.mark.parametrize("size", [1000, 2**16, 2**30])
def test_an_outline_says_the_same_without_weights(size: int) -> None:
    whole = model()
    outline = read_outline(pieces(whole.SerializeToString(), size), "model.onnx")
    assert len(outline) < 500
    proto = onnx.load_model_from_string(outline)
    assert (proto.graph.input, proto.graph.output) == (whole.graph.input, whole.graph.output)
    for mine, theirs in zip(proto.graph.initializer, whole.graph.initializer, strict=True):
        assert (mine.name, mine.data_location) == (theirs.name, theirs.data_location)
        assert mine.external_data == theirs.external_data


def test_a_message_in_two_parts_is_read_as_one() -> None:
    first, second = model(), model()
    del first.graph.output[:]
    del second.graph.input[:]
    raw = first.SerializeToString() + second.SerializeToString()
    proto = onnx.load_model_from_string(read_outline([raw], "model.onnx"))
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["x", "y"]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff\xff\xff", "cut short"),
        (b"\x08" + b"\xff" * 11, "no end"),
        (b"\x3b", "no field begins with 0x3b"),
        (b"\x3a\x04\x5a\x7f\x00\x00", "longer than the message"),
        (b"\x3a\x7f\x00", "cut short"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ArchiveUnreadable, match=rf"model\.onnx is not an ONNX graph: .*{why}"):
        read_outline([raw], "model.onnx")


@pytest.mark.parametrize("limit", ["MAX_OUTLINE_BYTES", "MAX_OUTLINE_FIELDS"])
def test_an_outline_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(onnx_outline, limit, 10)
    with pytest.raises(ArchiveTooLarge, match="more than 10"):
        read_outline([model().SerializeToString()], "model.onnx")
