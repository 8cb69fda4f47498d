"""Exports of tiny networks, each held against the network on shapes that it never saw."""

import inspect
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.kept_exports import KeptExports, code_of, key_of, state_of
from vlserve.exporter.convert import (
    SUFFIXES,
    Format,
    dynamic_axes,
    example_sizes,
    graph_entry,
    to_onnx,
    to_torchscript,
)
from vlserve.exporter.parity import measure, unseen_sizes
from vlserve.exporter.recipe import GraphPlan, Recipe
from vlserve.runtime.backend import open_backend
from vlserve.runtime.graphs import check_onnx
from vlserve.runtime.types import Backend

LONGEST = {"text": 12, "memory": 12, "past": 9, "tokens": 5, "beams": 4, "answers": 5}
SMALLEST = {"past": 0}


@dataclass(frozen=True)
class Tiny:
    """A network with random weights, large enough that every part shows in the answers."""

    recipe: Recipe
    config: Mapping[str, Any]
    network: nn.Module

    @cached_property
    def plans(self) -> dict[str, GraphPlan]:
        return self.recipe.graphs(self.network, self.config)

    def export(self, graph: str, format: Format) -> Backend:
        """Convert one graph, in this process, where it is not kept; check what the file says."""
        entry = graph_entry(self.plans[graph], f"{graph}{SUFFIXES[format]}", format)
        key = self._key(graph, format)
        folder = KeptExports().get_or_make(
            key, lambda target: self._convert(graph, format, target / entry.file)
        )
        if format == "onnx":
            check_onnx(entry, [(folder / entry.file).read_bytes()], ())
        return open_backend(entry, folder, threads=1)

    def _key(self, graph: str, format: Format) -> str:
        recipe = {"recipe": Path(inspect.getfile(type(self.recipe))).read_bytes()}
        options = {
            "config": json.dumps(self.config, sort_keys=True).encode(),
            "graph": graph.encode(),
            "format": format.encode(),
            "by": Path(__file__).read_bytes(),
        }
        return key_of(code_of(), recipe, state_of(self.network), options)

    def _convert(self, graph: str, format: Format, file: Path) -> None:
        plan = self.plans[graph]
        sizes = example_sizes(plan.inputs)
        example = self.recipe.example(graph, self.config, sizes, seed=0)
        arguments = tuple(example[tensor.name] for tensor in plan.inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of torch's exporters
            (to_onnx if format == "onnx" else to_torchscript)(plan, arguments, file)

    def assert_equal(self, graph: str, backend: Backend) -> None:
        """On at least five shapes with padding, batches of one, and an empty cache."""
        plan, spec = self.plans[graph], self.recipe.spec
        axes = dynamic_axes(plan.inputs)
        shapes = unseen_sizes(axes, LONGEST, example_sizes(plan.inputs))
        shapes.append({axis: SMALLEST.get(axis, 2) for axis in axes})
        cases = [
            (sizes, self.recipe.example(graph, self.config, sizes, seed))
            for seed, sizes in enumerate(shapes, start=1)
        ]
        measurement = measure(plan, backend, cases, spec.rtol, spec.atol)
        assert measurement.parity.cases >= 5
        measurement.assert_equal(graph)


@dataclass(frozen=True)
class Exports:
    """Graphs of each task's network, each exported once."""

    models: Mapping[str, Tiny]
    done: dict[tuple[str, str, Format], Backend] = field(default_factory=dict)

    def graph(self, task: str, graph: str, format: Format) -> Backend:
        key = (task, graph, format)
        if key not in self.done:
            self.done[key] = self.models[task].export(graph, format)
        return self.done[key]


def tiny(recipe: Recipe, config: Mapping[str, Any]) -> Tiny:
    torch.manual_seed(0)
    network = recipe.build(config)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return Tiny(recipe, config, network.eval().requires_grad_(False))


def graph_cases(graphs: Mapping[str, Iterable[str]], onnx_of: Collection[str] = ()) -> Any:
    """Parametrizes a test by task, graph and format. ONNX takes seconds a graph, and is ``long``:
    ``onnx_of`` names those whose network no archive of support/tiny_models.py has, which
    test_every_task proves."""
    return pytest.mark.parametrize(
        ("task", "graph", "format"),
        [
            pytest.param(
                task,
                graph,
                format,
                id=f"{task}-{graph}-{format}",
                marks=pytest.mark.long if format == "onnx" else (),
            )
            for task, names in graphs.items()
            for graph in names
            for format in SUFFIXES
            if format == "torchscript" or task in onnx_of
        ],
    )
