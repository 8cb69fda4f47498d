"""What passes the gate, and which plan is asked next, without any archive."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlserve.errors import ExportError
from vlserve.quantize.gate import FIRST, Verdict
from vlserve.quantize.graph_inputs import Feeds
from vlserve.quantize.items import read_parts
from vlserve.quantize.search import search
from vlserve.quantize.variants import GraphVariants, Variant, distance
from vlserve.runtime.backend import open_backend
from vlserve.runtime.manifest import Graph, TensorSpec
from vlserve.runtime.types import Backend


def verdict(agreements: int, answers: int, int8: float, fp32: float = 0.5) -> Verdict:
    return Verdict(agreements, answers, "accuracy", answers, fp32, int8)


@pytest.mark.parametrize(
    ("outcome", "passes"),
    [
        (verdict(1000, 1000, 0.5), True),
        (verdict(990, 1000, 0.495), True),
        (verdict(989, 1000, 0.5), False),
        (verdict(1000, 1000, 0.494), False),
        (verdict(19, 20, 0.45), True),  # one item
        (verdict(18, 20, 0.5), False),
        (verdict(20, 20, 0.4), False),
        (verdict(20, 20, 0.9), True),  # better than fp32
    ],
)
def test_one_in_a_hundred_may_differ_and_half_a_point_be_lost_or_one_item(
    outcome: Verdict, passes: bool
) -> None:
    assert outcome.passed == passes


def test_captions_agree_when_they_are_the_same_to_their_end() -> None:
    first = FIRST["caption"]
    assert first({"caption": "a dog", "log_prob": -1.0}) == first({"caption": "a dog"})
    assert first({"caption": "a dog"}) != first({"caption": "a cat"})


def test_the_gate_asks_about_items_that_did_not_calibrate(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(
        "".join(f'{{"id": "{n}", "img": "a/{n}.jpg"}}\n' for n in range(300)), encoding="utf-8"
    )
    parts = read_parts(file)
    calibration_ids = {line["id"] for line in parts.calibrated}
    assert len(calibration_ids) == 64 and len(parts.gated) == 236 and parts.held_out
    assert calibration_ids.isdisjoint(line["id"] for line in parts.gated)
    assert max(int(item_id) for item_id in calibration_ids) > 280  # of the whole file
    assert parts.gated[0]["img"] == str(tmp_path / "a" / "1.jpg")


def test_a_short_file_serves_both(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(f'{{"id": "{n}"}}\n' for n in range(59)), encoding="utf-8")
    parts = read_parts(file)
    assert parts.calibrated == parts.gated and not parts.held_out


def test_distance_of_what_is_not_finite() -> None:
    reference = {"x": np.array([3.0, 4.0, -np.inf])}
    assert distance({"x": np.array([3.0, 4.5, -np.inf])}, reference) == pytest.approx(0.1)
    assert distance({"x": np.array([3.0, 4.0, 0.0])}, reference) == np.inf
    assert distance({"x": np.array([3.0, 4.0])}, reference) == np.inf


@pytest.fixture
def chain(tmp_path: Path) -> GraphVariants:
    """Three products with weights. Those of the second lie so far apart in each column that int8
    knows only the large ones, and what comes in never meets those."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal((16, 16)).astype(np.float32) for _ in range(3)]
    weights[1][0] = 100.0
    first = weights[0]
    first[:, 0] = 0.0
    names = ["input", "a", "b", "output"]
    nodes = [
        helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]], f"product{at}")
        for at in range(3)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weight, f"w{at}") for at, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "chain.onnx")
    graph_spec = Graph(
        file="chain.onnx",
        format="onnx",
        inputs=(TensorSpec(name="input", dtype="float32", dims=("batch", 16)),),
        outputs=(TensorSpec(name="output", dtype="float32", dims=("batch", 16)),),
    )
    batches = tuple({"input": random.standard_normal((8, 16)).astype(np.float32)} for _ in "ab")
    (tmp_path / "made").mkdir()
    return GraphVariants("model", graph_spec, tmp_path, Feeds(batches, (), 2), tmp_path / "made")


def in_order(graph: Graph, files: Sequence[Path], feeds: Feeds) -> list[float]:
    return [10.0, *(5.0 + place for place in range(len(files) - 1))]


def opened(chain: GraphVariants, file: Path) -> Backend:
    return open_backend(chain.graph.model_copy(update={"file": file.name}), file.parent, threads=1)


def test_the_guilty_node_stands_first(chain: GraphVariants) -> None:
    guilty = max(chain.guilt("dynamic"), key=lambda group: group.error)
    assert [node.name.partition("_")[0] for node in guilty.nodes] == ["product1"]


def test_the_guilty_node_is_left_in_float(chain: GraphVariants) -> None:
    dynamic = chain.without("dynamic", frozenset(), in_order)
    assert dynamic is not None
    inputs = chain.feeds.batches[0]
    expected = opened(chain, chain.source).run(inputs)

    def judge(variants: Mapping[str, Variant]) -> Verdict:
        outputs = opened(chain, variants["model"].file).run(inputs)
        return verdict(100 if distance(outputs, expected) < 0.05 else 50, 100, 0.5)

    result = search(
        {"model": chain}, {"model": 1.0}, {"model": [dynamic]}, judge, in_order, lambda line: None
    )
    assert result.verdict.passed and result.plans_asked == 2
    assert [name.partition("_")[0] for name in result.chosen["model"].excluded] == ["product1"]


def test_what_is_hardly_faster_all_together_is_not_asked(chain: GraphVariants) -> None:
    dynamic = chain.without("dynamic", frozenset(), in_order)
    assert dynamic is not None and dynamic.faster == 2.0

    def judge(variants: Mapping[str, Variant]) -> Verdict:
        raise AssertionError("it was asked")

    graphs, candidates = {"model": chain, "large": chain}, {"model": [dynamic], "large": []}
    with pytest.raises(ExportError, match=r"1\.03 times as fast .* 1\.05 .* model dynamic 2\.00x"):
        search(
            graphs, {"model": 5.0, "large": 95.0}, candidates, judge, in_order, lambda line: None
        )


def test_a_gate_that_nothing_passes_refuses_with_the_worst_nodes(chain: GraphVariants) -> None:
    plans: list[frozenset[str]] = []

    def judge(variants: Mapping[str, Variant]) -> Verdict:
        plans.append(variants["model"].excluded)
        return verdict(60 + len(plans), 100, 0.5)

    with pytest.raises(ExportError) as error:
        search(
            {"model": chain},
            {"model": 1.0},
            {"model": chain.candidates(in_order)},
            judge,
            in_order,
            lambda line: None,
        )
    message = str(error.value)
    assert f"at best {60 + len(plans)} of 100 first answers agree" in message
    header, worst = message.partition("The worst nodes:\n")[2].splitlines()[:2]
    assert header == "error alone  graph  nodes"
    assert "model  product1" in worst and worst.endswith("(MatMul)")
    assert plans[0] == frozenset() and len(set(plans)) > 2
