"""Which tiny models stand for the others of their kind.

What depends on the kind alone is proved for one model of each kind in `make test`, and for the
others in `make test-long`. A test in
tests/unit/recipes/test_every_task.py holds both lists: every kind has a model in them.
"""

from collections.abc import Iterable
from typing import Any

import pytest

from vlserve.exporter.recipe import GraphPlan

SERVED = frozenset(
    {
        "albef-entail",
        "albef-ground",
        "albef-match",
        "blip-answer",
        "blip-answer-written",
        "blip-caption",
        "dual-encoder-embed",
        "modern-answer",
        "resnet-embed",
        "resnet-gru-tag",
        "s2-caption",
        "vilbert-ground",
        "vilbert-match",
        "vilbert-reason",
        "visualbert-coattention-answer",
        "visualbert-tag",
    }
)
"""Exported as ONNX and served end to end: of each task and set of graph names."""

TRACED = frozenset(
    {
        "albef-answer",
        "albef-ground",
        "albef-ground-by-cosine",
        "albef-match",
        "albef-reason",
        "blip-answer",
        "blip-caption",
        "blip-match",
        "dual-encoder-embed",
        "m2-caption",
        "modern-tag",
        "modern-tag-linear",
        "resnet-embed",
        "resnet-gru-tag",
        "s2-caption",
        "vilbert-answer",
        "vilbert-entail",
        "vilbert-ground",
        "vilbert-match",
        "visualbert-answer",
        "visualbert-coattention-answer",
    }
)
"""Exported as TorchScript: of each kind of graph."""

GraphKind = tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]
"""The classes of all parts of a graph's network, its inputs' names and its outputs' names."""


def graph_kind(plan: GraphPlan) -> GraphKind:
    """Return the kind of a graph: what TorchScript traces."""
    network = plan.module if plan.traced is None else plan.traced
    classes = frozenset(f"{type(x).__module__}.{type(x).__qualname__}" for x in network.modules())
    inputs = tuple(tensor.name for tensor in plan.inputs)
    return classes, inputs, tuple(tensor.name for tensor in plan.outputs)


def in_tiers(names: Iterable[str], first: frozenset[str]) -> list[Any]:
    """Return parameters of a test by model: those that are not in ``first`` are ``long``."""
    long = pytest.mark.long
    return [pytest.param(name, marks=() if name in first else long, id=name) for name in names]
