"""Every graph engine runs the same named arrays; Echo misbehaves exactly as it is told."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vlserve.runtime.backend import open_backend
from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.runtime.manifest import Graph
from vlserve.runtime.types import Arrays, Backend

PLAIN = {
    "inputs": [{"name": "x", "dtype": "float32", "dims": ["batch", 3]}],
    "outputs": [
        {"name": "twice", "dtype": "float32", "dims": ["batch", 3]},
        {"name": "total", "dtype": "float32", "dims": ["batch"]},
    ],
}


def graph(file: str, kind: str, tensors: dict[str, Any] = PLAIN) -> Graph:
    return Graph.model_validate({"file": file, "format": kind, **tensors})


def save_onnx(file: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    model = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch"]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(model, opset_imports=opsets, ir_version=10), str(file))


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + x, x.sum(1)


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    root = tmp_path_factory.mktemp("graphs")
    if request.param == "onnx":
        save_onnx(root / "plain")
    else:
        with pytest.warns(DeprecationWarning):
            module = torch.jit.trace(Plain(), torch.zeros(2, 3))  # type: ignore[no-untyped-call]
            torch.jit.save(module, str(root / "plain"))
    return open_backend(graph("plain", request.param), root, threads=1)


def test_named_arrays_in_and_out(backend: Backend) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    outputs = backend.run({"x": x})
    assert list(outputs) == ["twice", "total"]
    np.testing.assert_array_equal(outputs["twice"], 2 * x)
    np.testing.assert_array_equal(outputs["total"], x.sum(1))


def test_errors_of_the_engine_carry_through(backend: Backend) -> None:
    with pytest.raises(Exception, match=r"(?i)rank|dimension"):
        backend.run({"x": np.zeros(3, np.float32)})


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "echo"])
@pytest.mark.parametrize("content", [None, b"", b"no graph", b"[]"])
def test_graphs_that_cannot_be_loaded(tmp_path: Path, kind: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "broken").write_bytes(content)
    with pytest.raises(ArchiveUnreadable, match="broken"):
        open_backend(graph("broken", kind), tmp_path, threads=1)


ECHO = {
    "inputs": [
        {"name": "image", "dtype": "float32", "dims": ["batch", 3, 4, 4]},
        {"name": "text_ids", "dtype": "int64", "dims": ["batch", "text"]},
    ],
    "outputs": [{"name": "logits", "dtype": "float32", "dims": ["batch", 5]}],
}


def echo(folder: Path, **settings: Any) -> Backend:
    (folder / "model.echo.json").write_text(json.dumps(settings), encoding="utf-8")
    return open_backend(graph("model.echo.json", "echo", ECHO), folder, threads=1)


def batch(size: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "image": random.normal(size=(size, 3, 4, 4)).astype(np.float32),
        "text_ids": random.integers(1, 50, (size, 6)),
    }


def test_echo_answers_each_item_from_its_own_inputs(tmp_path: Path) -> None:
    backend, inputs = echo(tmp_path), batch(8)
    together = backend.run(inputs)["logits"]
    assert together.shape == (8, 5)
    assert together.dtype == np.float32
    for item in range(8):
        alone = backend.run({name: array[item : item + 1] for name, array in inputs.items()})
        np.testing.assert_allclose(alone["logits"][0], together[item], atol=1e-5)
    assert len({tuple(row) for row in together.round(3).tolist()}) == 8


def test_echo_does_not_see_padding(tmp_path: Path) -> None:
    backend, inputs = echo(tmp_path), batch(2)
    padded = inputs | {"text_ids": np.pad(inputs["text_ids"], ((0, 0), (0, 9)))}
    plain = backend.run(inputs)["logits"]
    np.testing.assert_allclose(backend.run(padded)["logits"], plain, atol=1e-5)


def test_echo_versions_differ_by_their_shift(tmp_path: Path) -> None:
    plain = echo(tmp_path).run(batch(3))["logits"]
    other = echo(tmp_path, answer_shift=2).run(batch(3))["logits"]
    np.testing.assert_array_equal(other, np.roll(plain, 2, axis=1))


def test_echo_fails_on_its_id_alone(tmp_path: Path) -> None:
    backend, inputs = echo(tmp_path, fail_on_id=99), batch(3)
    backend.run(inputs)
    inputs["text_ids"][1, 5] = 99
    with pytest.raises(RuntimeError, match="99"):
        backend.run(inputs)


def failures(backend: Backend, inputs: Arrays) -> list[bool]:
    outcomes = []
    for item in range(len(inputs["image"])):
        try:
            backend.run({name: array[item : item + 1] for name, array in inputs.items()})
            outcomes.append(False)
        except RuntimeError:
            outcomes.append(True)
    return outcomes


def test_echo_fails_for_a_share_of_items_and_the_same_ones_again(tmp_path: Path) -> None:
    backend, inputs = echo(tmp_path, fail_share=0.25), batch(400)
    outcomes = failures(backend, inputs)
    assert 60 < sum(outcomes) < 140
    assert failures(backend, inputs) == outcomes
    assert not any(failures(echo(tmp_path, fail_share=0.0), inputs))
    assert all(failures(echo(tmp_path, fail_share=1.0), inputs))


def test_echo_delays(tmp_path: Path) -> None:
    backend = echo(tmp_path, delay_ms=30)
    start = time.perf_counter()
    backend.run(batch(2))
    assert time.perf_counter() - start >= 0.03


@pytest.mark.parametrize("settings", [{"delay_ms": -1}, {"fail_share": 2}, {"speed": 1}])
def test_echo_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ArchiveUnreadable, match=next(iter(settings))):
        echo(tmp_path, **settings)
