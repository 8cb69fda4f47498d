"""The gate between a graph and its archive."""

import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

from support import counting_recipe
from vlserve.errors import ParityFailed
from vlserve.exporter.parity import Measured, compare, measure, run_eager, unseen_sizes
from vlserve.exporter.recipe import GraphPlan
from vlserve.runtime.types import Arrays

RECIPE = counting_recipe.RECIPE
SIZES = unseen_sizes(["batch", "text"], {"text": 15}, {"batch": 3, "text": 7})


class Network:
    """A Backend that runs a network as it is."""

    def __init__(self, network: nn.Module) -> None:
        self.plan = RECIPE.graphs(network, {})["model"]

    def run(self, inputs: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return run_eager(self.plan, tensors)


def plan_and_copy() -> tuple[GraphPlan, counting_recipe.Counting]:
    torch.manual_seed(0)
    network = counting_recipe.Counting(False).eval()
    copy = counting_recipe.Counting(False).eval()
    copy.load_state_dict(network.state_dict())
    return RECIPE.graphs(network, {})["model"], copy


def measured(plan: GraphPlan, copy: nn.Module) -> Measured:
    cases = ((sizes, RECIPE.example("model", {}, sizes, seed=1)) for sizes in SIZES)
    return measure(plan, Network(copy), cases, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("longest", [1, 2, 7, 15, 150])
def test_at_least_five_shapes_that_the_export_has_not_seen(longest: int) -> None:
    example_sizes = {"batch": 3, "text": 7}
    sizes = unseen_sizes(["batch", "text"], {"text": longest}, example_sizes)
    assert len(sizes) >= 5
    assert example_sizes not in sizes
    assert {1} < {case["batch"] for case in sizes}
    texts = {case["text"] for case in sizes}
    assert max(texts) == longest and min(texts) == 1


def test_an_equal_graph_passes() -> None:
    result = measured(*plan_and_copy())
    result.assert_equal("model")
    assert (result.parity.cases, result.parity.max_abs_diff) == (len(SIZES), 0.0)


def test_the_network_and_the_graph_run_at_once() -> None:
    plan, copy = plan_and_copy()
    barrier = threading.Barrier(2, timeout=20)  # it breaks where one waits for the other's end

    def wait(*_: object) -> None:
        barrier.wait()

    plan.module.register_forward_pre_hook(wait)

    class Waiting(Network):
        def run(self, inputs: Arrays) -> Arrays:
            barrier.wait()
            return super().run(inputs)

    cases = [(sizes, RECIPE.example("model", {}, sizes, seed=1)) for sizes in SIZES]
    measure(plan, Waiting(copy), cases, 1e-4, 1e-5).assert_equal("model")


def test_a_perturbed_weight_is_refused_with_every_mismatch() -> None:
    plan, copy = plan_and_copy()
    with torch.no_grad():
        copy.embedding.weight += 0.01
    result = measured(plan, copy)
    with pytest.raises(ParityFailed) as error:
        result.assert_equal("model")
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(SIZES)
    for line, sizes in zip(lines, SIZES, strict=True):
        assert f"batch {sizes['batch']}, text {sizes['text']}" in line
        assert f"largest difference {0.01 * sizes['text']:.3g}" in line
    assert result.parity.max_abs_diff == pytest.approx(0.15, rel=1e-3)


def test_a_graph_that_fails_on_a_shape_is_refused_with_its_own_words() -> None:
    plan, copy = plan_and_copy()

    class OneLength(Network):
        def run(self, inputs: Arrays) -> Arrays:
            if inputs["text_ids"].shape[1] != 15:
                raise ValueError("text must be 15 long")
            return super().run(inputs)

    cases = [(sizes, RECIPE.example("model", {}, sizes, seed=1)) for sizes in SIZES]
    result = measure(plan, OneLength(copy), cases, 1e-4, 1e-5)
    assert len(result.mismatches) == sum(sizes["text"] != 15 for sizes in SIZES) > 0
    assert "the graph failed: text must be 15 long" in str(result.mismatches[0])


@pytest.mark.parametrize(
    ("values", "expected", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0001], None),
        ([1.0, 2.0], [1.0, 2.1], r"largest difference 0\.1 at \(1,\)"),
        ([1.0, np.nan], [1.0, 2.0], "not finite"),
        ([1.0, 2.0], [1.0, np.inf], "own output is not finite"),
        ([1.0], [1.0, 2.0], r"shape \(1,\), the network has \(2,\)"),
    ],
    ids=["close", "far", "nan", "reference", "shape"],
)
def test_comparison(values: list[float], expected: list[float], message: str | None) -> None:
    arrays = np.array(values, np.float32), np.array(expected, np.float32)
    _, reason = compare(*arrays, rtol=1e-4, atol=1e-5)
    if message is None:
        assert reason is None
    else:
        assert reason is not None and re.search(message, reason)
