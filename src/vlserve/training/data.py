"""Labelled JSONL files: ``{"id", "img", "text", "label"}`` a line, other keys ignored.

``img`` is relative to the file's folder. ``label`` is a string, or a list of strings in a
multi-label file; whole numbers are taken as text there, and as ids. A line that cannot be used is
left out and reported with its number.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.training.json_lines import BadLine, as_text, numbered_lines, parse_object

INPUT_KEYS = ("img", "text")
"""Fields that hold what a tagger sees of an item."""


@dataclass(frozen=True)
class Item:
    """One labelled item; ``labels`` holds exactly one label unless the file is multi-label.
    ``image`` and ``text`` are empty where the model takes none."""

    id: str
    image: Path
    text: str
    labels: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class ItemFile:
    """The usable items of one file, in its order, and what was left out."""

    path: Path
    items: tuple[Item, ...]
    bad_lines: tuple[BadLine, ...]
    multi_label: bool

    @property
    def used(self) -> int:
        return len(self.items)

    def without(self, reasons: Mapping[int, str]) -> "ItemFile":
        """Leave out more lines: line number -> reason."""
        if not reasons:
            return self
        more = [BadLine(str(self.path), line, reason) for line, reason in reasons.items()]
        return ItemFile(
            self.path,
            tuple(item for item in self.items if item.line not in reasons),
            tuple(sorted((*self.bad_lines, *more), key=lambda bad: bad.line)),
            self.multi_label,
        )


def read_items(path: Path, keys: Collection[str] = INPUT_KEYS, *, mixed: bool = False) -> ItemFile:
    """Parse a file; the first good line says whether the file is multi-label.

    Images are not opened here.

    Args:
        keys: those of `INPUT_KEYS` that each line must have; the others are not read.
        mixed: Lines of the other kind are taken too.

    Raises:
        DataError: the file cannot be read.
    """
    items: list[Item] = []
    bad: list[BadLine] = []
    line_of_id: dict[str, int] = {}
    multi_label: bool | None = None
    for number, raw in numbered_lines(path):
        try:
            fields = _parse(raw, keys)
            label = fields["label"]
            if multi_label is None:
                multi_label = isinstance(label, list)
            if multi_label != isinstance(label, list) and not mixed:
                kind = "a list" if isinstance(label, list) else "a string"
                raise ValueError(f"label is {kind}, unlike in the lines before")
            if first := line_of_id.get(fields["id"]):
                raise ValueError(f"id {fields['id']} is on line {first} already")
        except ValueError as error:
            bad.append(BadLine(str(path), number, str(error)))
            continue
        line_of_id[fields["id"]] = number
        labels = tuple(dict.fromkeys(label)) if isinstance(label, list) else (label,)
        image = path.parent / fields["img"] if "img" in keys else Path()
        text = fields["text"] if "text" in keys else ""
        items.append(Item(fields["id"], image, text, labels, number))
    return ItemFile(path, tuple(items), tuple(bad), bool(multi_label))


def read_questions(path: Path) -> ItemFile:
    """Parse a file of questions: an answer stands alone or in a list, as for `vlserve evaluate`.
    DataError as `read_items`."""
    file = read_items(path, mixed=True)
    return file.without({item.line: "no answer" for item in file.items if not item.labels})


def leave_out_unknown(file: ItemFile, labels: Collection[str]) -> ItemFile:
    """Leave out items with a label that is not among ``labels``."""
    unknown = {
        item.line: "unknown label " + ", ".join(sorted(set(item.labels) - set(labels)))
        for item in file.items
        if not set(item.labels) <= set(labels)
    }
    return file.without(unknown)


def leave_out_trained(file: ItemFile, train: ItemFile) -> ItemFile:
    """Leave out items whose id is in the training file: they would flatter the figures."""
    train_ids = {item.id for item in train.items}
    reason = f"its id is in {train.path.name} too"
    return file.without({item.line: reason for item in file.items if item.id in train_ids})


def leave_out_other_kind(file: ItemFile, *, multi_label: bool) -> ItemFile:
    """Leave out everything if the file's labels are of the other kind than the model's."""
    if file.multi_label == multi_label:
        return file
    kinds = {True: "a list of labels", False: "one label"}
    reason = f"has {kinds[not multi_label]}, but the model answers with {kinds[multi_label]}"
    return file.without({item.line: reason for item in file.items})


def count_labels(items: Sequence[Item]) -> dict[str, int]:
    """Return how many items have each label; labels sorted."""
    counts = Counter(label for item in items for label in item.labels)
    return dict(sorted(counts.items()))


def _parse(raw: bytes, keys: Collection[str]) -> dict[str, Any]:
    fields = parse_object(raw)
    words = ("id", *(name for name in INPUT_KEYS if name in keys))
    missing_fields = [name for name in (*words, "label") if name not in fields]
    if missing_fields:
        raise ValueError(f"missing field {', '.join(missing_fields)}")
    fields["id"] = as_text(fields["id"])
    for name in words:
        if not isinstance(fields[name], str) or (name != "text" and not fields[name]):
            raise ValueError(f"{name} must be a string, and only text may be empty")
    label = fields["label"]
    label = [as_text(entry) for entry in label] if isinstance(label, list) else as_text(label)
    fields["label"] = label
    labels = label if isinstance(label, list) else [label]
    if not all(isinstance(name, str) and name for name in labels):
        raise ValueError("label must be a string, or a list of strings, none empty")
    try:
        "".join((fields["id"], *([fields["img"]] if "img" in keys else []), *labels)).encode()
    except UnicodeEncodeError as error:
        raise ValueError("id, img or label holds a lone surrogate") from error
    return fields
