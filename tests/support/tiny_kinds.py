"""Which tiny models stand for the others of their kind.

`make test` proves one model of each recipe and serves one of each task, most of them as
TorchScript, since ONNX takes four times as long to convert; `make test-long` proves and serves the
others. tests/unit/recipes/test_every_task.py holds both lists.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from vlserve.exporter.convert import Format

SERVED: frozenset[tuple[str, Format]] = frozenset(
    {
        ("albef-entail", "torchscript"),
        ("albef-ground", "torchscript"),
        ("blip-answer", "torchscript"),
        ("dual-encoder-embed", "torchscript"),
        ("resnet-gru-tag", "onnx"),
        ("s2-caption", "torchscript"),
        ("vilbert-match", "onnx"),
        ("vilbert-reason", "torchscript"),
    }
)
"""Served end to end: one of each task."""

PROVED: Mapping[Format, frozenset[str]] = {
    "onnx": frozenset({"resnet-gru-tag", "vilbert-match"}),
    "torchscript": frozenset(
        {
            "albef-entail",
            "albef-ground",
            "blip-answer",
            "dual-encoder-embed",
            "m2-caption",
            "modern-tag",
            "resnet-embed",
            "resnet-gru-tag",
            "s2-caption",
            "vilbert-reason",
            "visualbert-answer",
            "visualbert-coattention-answer",
        }
    ),
}
"""Held against the network: what is served, and one TorchScript of each recipe."""


def in_tiers(pairs: Iterable[tuple[str, Format]]) -> list[Any]:
    """Return parameters of a test by model and format: ``long`` where they are not in PROVED."""
    return [
        pytest.param(name, format, marks=tier_of(name, format), id=f"{name}-{format}")
        for name, format in pairs
    ]


def tier_of(name: str, format: Format) -> Any:
    """Return the marks of a test that needs this archive."""
    return () if name in PROVED[format] else pytest.mark.long
