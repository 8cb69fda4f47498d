"""A recipe's graphs before export, run like exported ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from support.golden_cases import Case, assert_close
from support.training_outputs import inference_outputs
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import GraphPlan, Recipe, Served
from vlserve.runtime.text import load_tokenizer
from vlserve.runtime.types import Arrays
from vlserve.testing.eager import EagerBackend


@dataclass(frozen=True)
class Loaded:
    """A golden case's network, read as an export reads it."""

    network: nn.Module
    config: Mapping[str, Any]
    plans: Mapping[str, GraphPlan]
    served: Served
    root: Path
    """The archive's folder, of which the assets are there."""

    def run(self, graph: str, **inputs: NDArray[Any]) -> Arrays:
        return EagerBackend(self.plans[graph]).run(inputs)


def load(recipe: Recipe, case: Case, config: Mapping[str, Any], root: Path) -> Loaded:
    state = read_checkpoint(case.folder / "state_dict.safetensors")
    complete = recipe.complete_config(config, state, case.folder)
    network = load_network(recipe, state, complete)
    (root / "assets").mkdir(exist_ok=True)
    interface = recipe.serve(complete, root / "assets")
    return Loaded(network, complete, recipe.graphs(network, complete), interface, root)


def assert_inference_outputs(case: Case, outputs: Arrays) -> None:
    """All of them, but those that only training has."""
    reference = case.arrays("outputs")
    for name in inference_outputs(case):
        if reference[name].dtype.kind == "i":
            np.testing.assert_array_equal(outputs[name], reference[name], err_msg=f"{case}: {name}")
        else:
            assert_close(outputs[name], reference[name], f"{case}: {name}")


def assert_same_ids(case: Case, model: Loaded) -> None:
    """The archive's tokenizer gives the ids that the original gave for the case's captions."""
    assert model.served.text is not None
    tokenizer, inputs = load_tokenizer(model.served.text, model.root), case.arrays("inputs")
    rows = zip(case.config["captions"], inputs["input_ids"], inputs["attention_mask"], strict=True)
    for text, ids, mask in rows:
        np.testing.assert_array_equal(tokenizer.ids(text), ids[mask == 1], err_msg=text)
