"""Which tiny models stand for the others of their kind.

`make test` exports and proves one model of each task as ONNX, and one of each recipe as
TorchScript; `make test-long` the others. tests/unit/recipes/test_every_task.py holds both lists.
"""

from collections.abc import Iterable
from typing import Any

import pytest

SERVED = frozenset(
    {
        "albef-entail",
        "albef-ground",
        "blip-answer",
        "dual-encoder-embed",
        "resnet-gru-tag",
        "s2-caption",
        "vilbert-match",
        "vilbert-reason",
    }
)
"""Exported as ONNX and served end to end: one of each task."""

TRACED = frozenset(
    {
        "albef-ground",
        "blip-answer",
        "dual-encoder-embed",
        "m2-caption",
        "modern-tag",
        "resnet-embed",
        "resnet-gru-tag",
        "s2-caption",
        "vilbert-ground",
        "visualbert-answer",
        "visualbert-coattention-answer",
    }
)
"""Exported as TorchScript: one of each recipe."""


def in_tiers(names: Iterable[str], first: frozenset[str]) -> list[Any]:
    """Return parameters of a test by model: those that are not in ``first`` are ``long``."""
    long = pytest.mark.long
    return [pytest.param(name, marks=() if name in first else long, id=name) for name in names]
