"""Processes that fill one folder of features at the same time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlserve.training import encoded_features
from vlserve.training.encoded_features import Encoder, Graph, encode
from vlserve.training.pairs import Reader
from vlserve.training.samples import Samples

ITEMS = 3


class Doubled(nn.Module):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"seen": image * 2}


class DoubledSession:
    """Answers as the module's graph."""

    def run(self, names: list[str], feed: Any) -> list[Any]:
        return [feed["image"] * 2]


@pytest.fixture(autouse=True)
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_graphs(*_: Any) -> list[Graph]:
        return [Graph(DoubledSession(), ("image",), ("seen",))]

    monkeypatch.setattr(encoded_features, "_open_graphs", open_graphs)


def some_samples() -> Samples:
    tokenizer: Any = SimpleNamespace(
        pad=lambda rows: SimpleNamespace(ids=np.stack(rows), lengths=np.ones(ITEMS, np.int64))
    )
    return Samples(
        items=[SimpleNamespace()] * ITEMS,  # type: ignore[list-item]
        images=np.arange(ITEMS * 3, dtype=np.float32).reshape(ITEMS, 3, 1, 1),
        text_ids=[np.array([place]) for place in range(ITEMS)],
        targets=np.ones((ITEMS, 1), dtype=np.int64),
        tokenizer=tokenizer,
    )


def test_another_process_that_is_first_has_made_the_same_features(tmp_path: Path) -> None:
    """In another container, say, where it has the same number."""
    samples, firsts = some_samples(), list[np.ndarray[Any, Any]]()

    def another_process(done: int, total: int) -> None:
        firsts.append(encode(Encoder(Doubled()), samples, tmp_path).features["seen"])

    encoded = encode(Encoder(Doubled()), samples, tmp_path, another_process)
    (folder,) = tmp_path.iterdir()
    assert folder.is_dir() and len(firsts) == 1
    np.testing.assert_array_equal(encoded.features["seen"], firsts[0])
    np.testing.assert_array_equal(encoded.features["seen"], samples.images * 2)


def test_a_folder_that_cannot_appear_is_an_error(tmp_path: Path) -> None:
    samples = some_samples()
    encode(Encoder(Doubled()), samples, tmp_path / "other")
    (folder,) = (tmp_path / "other").iterdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / folder.name).write_text("a file is in its place", encoding="utf-8")
    with pytest.raises(NotADirectoryError):
        encode(Encoder(Doubled()), samples, cache)
    assert [file.name for file in cache.iterdir()] == [folder.name]


def test_of_pairs_too_another_process_that_is_first_has_made_the_same(tmp_path: Path) -> None:
    anything: Any = SimpleNamespace(spec="characters")
    reader = Reader(anything, "weights", anything, anything, tmp_path)
    firsts = list[np.ndarray[Any, Any]]()

    def lengths(raw: Any) -> Tensor:
        return torch.tensor([[float(len(content))] for content in raw])

    def after_another_process(raw: Any) -> Tensor:
        firsts.append(reader._kept("texts", raw, lengths))
        return lengths(raw)

    texts = [b"a", b"door"]
    kept = reader._kept("texts", texts, after_another_process)
    assert kept.tolist() == firsts[0].tolist() == [[1.0], [4.0]]
    assert len(list(tmp_path.iterdir())) == 1


def test_pairs_whose_encoding_breaks_off_leave_nothing_behind(tmp_path: Path) -> None:
    anything: Any = SimpleNamespace(spec="characters")

    def stop(raw: Any) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reader(anything, "weights", anything, anything, tmp_path)._kept("texts", [b"a"], stop)
    assert list(tmp_path.iterdir()) == []
