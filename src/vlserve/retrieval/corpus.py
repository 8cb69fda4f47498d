"""The items of an index: JSON lines, of which each brings an image, its features, or texts.

{"id", "img"}                      an image file, relative to the file's folder
{"id", "features", "boxes"}        .npy files of its regions; boxes where the model takes them
{"id", "text"}                     a text
{"id", "captions": [text, …]}      several texts, which become items <id>#0, <id>#1, …
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlserve.training.json_lines import (
    BadLine,
    as_text,
    numbered_lines,
    parse_object,
    refuse_mostly_bad,
)

Kind = Literal["image", "text"]
FILES = {"img": "image", "features": "features", "boxes": "boxes"}
"""Field of a line -> field of a request, of the files that an image may be given by."""


@dataclass(frozen=True)
class CorpusItem:
    """``fields``: a request's, as `vlserve.batch.offline` takes them: ``image_path``, …"""

    id: str
    fields: Mapping[str, str]
    line: int


@dataclass(frozen=True)
class Corpus:
    """The usable items of one file, in its order, and what was left out."""

    path: Path
    kind: Kind
    items: tuple[CorpusItem, ...]
    bad_lines: tuple[BadLine, ...]


def read_corpus(path: Path, kind: Kind | None = None) -> Corpus:
    """Parse a file; no other file is opened. ``kind`` is by default that of the first line that
    has an image or a text, images before texts. DataError where no line can be used, or more than
    half cannot."""
    items: dict[str, CorpusItem] = {}
    bad: list[BadLine] = []
    for number, raw in numbered_lines(path):
        try:
            line = parse_object(raw)
            kind = kind or _kind_of(line)
            new = _items_of(line, kind, path.parent, number)
            duplicate = next((item.id for item in new if item.id in items), None)
            if duplicate is not None:
                raise ValueError(f"id {duplicate} is on line {items[duplicate].line} already")
        except ValueError as error:
            bad.append(BadLine(str(path), number, str(error)))
            continue
        items |= {item.id: item for item in new}
    refuse_mostly_bad(path, len({item.line for item in items.values()}), bad)
    assert kind is not None  # an item has one
    return Corpus(path, kind, tuple(items.values()), tuple(bad))


def _kind_of(line: Mapping[str, Any]) -> Kind:
    if "img" in line or "features" in line:
        return "image"
    if "text" in line or "captions" in line:
        return "text"
    raise ValueError("needs img, features, text or captions")


def _items_of(line: Mapping[str, Any], kind: Kind, folder: Path, number: int) -> list[CorpusItem]:
    name = _string({"id": as_text(line.get("id"))}, "id")
    if kind == "image":
        files = {field: _string(line, key) for key, field in FILES.items() if key in line}
        if ("image" in files) == ("features" in files):
            raise ValueError("needs img or features, one of them")
        paths = {f"{field}_path": str((folder / file).resolve()) for field, file in files.items()}
        return [CorpusItem(name, paths, number)]
    if "captions" not in line:
        return [CorpusItem(name, {"text": _string(line, "text", empty=True)}, number)]
    captions = line["captions"]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError("captions must be a list of strings")
    return [
        CorpusItem(f"{name}#{place}", {"text": text}, number) for place, text in enumerate(captions)
    ]


def _string(line: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = line.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{key} must be a string{'' if empty else ', not empty'}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} holds a lone surrogate") from error
    return value
