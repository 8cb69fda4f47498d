"""A small drawn set and quick training options, shared by the tests of this folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vlserve
from vlserve.exporter.recipe import Recipe, load_recipe
from vlserve.training.demo_data import DemoData, write_demo_data

PROJECT = Path(vlserve.__file__).parents[2]

WriteLines = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals of a thousand take seconds a set. Also in the fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("evaluate", "metrics.confidence"):
            patch.setattr(f"vlserve.training.{module}.RESAMPLES", 20)
        yield


@pytest.fixture(scope="module", autouse=True)
def pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """A run's pictures take longer than a tiny network's training: they are drawn in modules alone
    that say LOOKS_AT_PICTURES."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "LOOKS_AT_PICTURES", False):
            patch.setattr("vlserve.training.run_log.plot_curves", lambda *_: None)
            for name in ("plot_average_precisions", "plot_confusion"):
                patch.setattr(f"vlserve.training.fit.{name}", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("resnet_gru", PROJECT / "export")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("drawn"), items=54, seed=3)


@pytest.fixture
def write_lines(tmp_path: Path, demo: DemoData) -> WriteLines:
    """Writes a JSONL file beside copies of two drawn images, a.jpg and b.jpg."""
    images = sorted((demo.train.parent / "images").glob("train-*.jpg"))
    for name, image in zip(("a.jpg", "b.jpg"), images, strict=False):
        (tmp_path / name).write_bytes(image.read_bytes())

    def write(*lines: Any, name: str = "items.jsonl") -> Path:
        file = tmp_path / name
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        file.write_bytes(b"\n".join(raw) + b"\n")
        return file

    return write
