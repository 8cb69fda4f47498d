"""An image that many items show is decoded once, and each item holds what it held alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlserve.exporter.regions import read_numbers
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput, TextInput
from vlserve.training import image_files, pairs
from vlserve.training.data import read_items
from vlserve.training.finetune import captioner
from vlserve.training.finetune.captioner import read_features
from vlserve.training.finetune.data import read_data
from vlserve.training.pairs import Reader
from vlserve.training.samples import decode_images, to_samples

WriteLines = Callable[..., Path]
SIZE = ImageInput(height=16, width=16)
NAMES = ("a.jpg", "b.jpg", "cut.jpg", "a.jpg", "none.jpg", "b.jpg", "cut.jpg", "a.jpg")


class Counts:
    """Calls of a function, by what it was given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, Counter[Any]()

    def __call__(self, first: Any, *more: Any) -> Any:
        self.calls[first] += 1
        return self.function(first, *more)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each image was decoded."""
    counts = Counts(decode)
    for module in (image_files, pairs):
        monkeypatch.setattr(module, "decode", counts)
    return counts.calls


@pytest.fixture
def cut(write_lines: WriteLines, tmp_path: Path) -> Path:
    file = tmp_path / "cut.jpg"
    file.write_bytes((tmp_path / "a.jpg").read_bytes()[:500])
    return file


def lines_of(**more: Any) -> list[dict[str, Any]]:
    return [{"id": str(number), "img": name, **more} for number, name in enumerate(NAMES, start=1)]


def alone(folder: Path, name: str) -> np.ndarray[Any, Any]:
    return decode((folder / name).read_bytes(), SIZE)


def test_items_of_a_tagger(
    write_lines: WriteLines, cut: Path, decoded: Counter[bytes], tmp_path: Path
) -> None:
    file, images = decode_images(read_items(write_lines(*lines_of(text="t", label="x"))), SIZE)
    assert set(decoded.values()) == {1} and len(decoded) == 3
    assert [bad.line for bad in file.bad_lines] == [3, 5, 7]
    for item in file.items:
        assert images[item.line].tobytes() == alone(tmp_path, item.image.name).tobytes()
    assert images[1] is images[4] is images[8]
    with pytest.raises(ValueError, match="read-only"):
        images[1][:] = 0  # of three items
    tokenizer: Any = type("Any", (), {"ids": lambda self, text: np.array([1])})()
    samples = to_samples(file.items, images, tokenizer, ["x"])
    samples.images[0] = 0  # what is augmented is a copy of its own
    assert samples.images[2].tobytes() == alone(tmp_path, "a.jpg").tobytes()


@pytest.mark.parametrize("objective", ["answer", "reason"])
def test_items_of_a_checkpoint(
    objective: str, write_lines: WriteLines, cut: Path, decoded: Counter[bytes], tmp_path: Path
) -> None:
    """Of two images, where a sentence is about two."""
    more = {"answer": {"label": ["x"]}, "reason": {"label": True, "img2": "b.jpg"}}[objective]
    data = read_data(write_lines(*lines_of(text="t", **more)), objective, SIZE, tokenizer())
    assert set(decoded.values()) == {1} and len(decoded) == 3
    assert {bad.line: bad.reason.partition(":")[0] for bad in data.file.bad_lines} == {
        3: "cut.jpg",
        5: f"image {tmp_path / 'none.jpg'} cannot be read",
        7: "cut.jpg",
    }
    for line in data.lines:
        names = [NAMES[line - 1], *(["b.jpg"] if objective == "reason" else [])]
        expected = b"".join(alone(tmp_path, name).tobytes() for name in names)
        assert data.images[line].tobytes() == expected
    data.image([1])[:] = 0  # a batch may be changed
    assert data.image([4]).numpy().tobytes() == data.images[1].tobytes() != bytes(4)


def test_captions_with_a_line_each(
    write_lines: WriteLines, cut: Path, decoded: Counter[bytes], tmp_path: Path
) -> None:
    encoders: Any = type(
        "Encoders",
        (),
        {
            "images": lambda self, image: image.flatten(1),
            "texts": lambda self, ids, mask: ids.float(),
        },
    )()
    reader = Reader(encoders, "weights", SIZE, tokenizer(), tmp_path / "cache")
    read = reader.read(write_lines(*lines_of(text="t")))
    assert [bad.line for bad in read.bad_lines] == [3, 5, 7]
    assert read.bad_lines[0].reason == read.bad_lines[2].reason
    # once to see whether it can be used, and once for the encoder
    assert sorted(decoded.values()) == [1, 2, 2]


def test_features_with_a_line_for_each_caption(
    write_lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(read_numbers)
    monkeypatch.setattr(captioner, "read_numbers", counts)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "one.npy", rows)
    np.save(tmp_path / "two.npy", rows + 1)
    names = ("one.npy", "two.npy", "one.npy")
    lines = [{"id": str(at), "features": name, "captions": ["x"]} for at, name in enumerate(names)]
    data = read_features(write_lines(*lines), {"features": 3})
    assert counts.calls == {tmp_path / "one.npy": 1, tmp_path / "two.npy": 1}
    assert [float(data.images[line][0, 0]) for line in (1, 2, 3)] == [0, 1, 0]


def tokenizer() -> Any:
    """Of texts of one word."""

    class OneWord:
        spec = TextInput(tokenizer="characters", file="vocabulary.json", max_length=8)

        def ids(self, text: str) -> Any:
            return np.array([1])

        def encode(self, texts: list[str]) -> Any:
            ids = np.ones((len(texts), 1), dtype=np.int64)
            return type("Encoded", (), {"ids": ids, "lengths": np.ones(len(texts), np.int64)})()

    return OneWord()
