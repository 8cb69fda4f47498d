"""One data file -> several, by groups that stay together, with each label's share in each.

Groups are dealt out by the rule of iterative stratification (Sechidis et al., On the Stratification
of Multi-Label Data, ECML PKDD 2011), a group at a time: to the file that still lacks most of the
group's labels. The order is random, by a seed, so that each file gets groups of all sizes; only
those that are large for the smallest file come first, while there is still room for them.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.data.data_files import (
    LeftOut,
    labels_of,
    read_objects,
    refuse_own_output,
    write_object,
    written_whole,
)
from vlserve.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
BIG = 0.5
"""Part of the smallest file's items above which a group is dealt out before the others."""


@dataclass
class Split:
    """What became of the lines: items, and items by label, of each file."""

    files: Mapping[str, Path]
    groups: int
    items: Mapping[str, int] = field(default_factory=Counter)
    labels: Mapping[str, Counter[str]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class _Groups:
    """Of each usable line its group; of each group its items and its labels as (group, label)
    counts of the pairs that occur."""

    of_line: Sequence[int]
    items: NDArray[np.int64]
    labels: Sequence[Counter[int]]
    totals: NDArray[np.int64]


def split_file(
    path: Path,
    out: Path,
    shares: Mapping[str, float],
    *,
    group: str | None,
    seed: int,
    strict: bool = False,
) -> Split:
    """Write OUT/NAME.jsonl for each share, in the input's order; images' paths stay right.

    Args:
        shares: Name -> its part of the items; together 1.
        group: The field whose value stays in one file; None: each line is a group.
        seed: Of the order of groups.
        strict: Whether any line that cannot be used is an error.

    Raises:
        DataError: The file cannot be used, or a share would be empty; nothing is written then.
    """
    files = {name: out / f"{name}.jsonl" for name in shares}
    for file in files.values():
        refuse_own_output(file, [path])
    left_out = LeftOut()
    groups = _read_groups(path, group, left_out)
    left_out.refuse(path, len(groups.of_line), strict=strict)
    file_of_group = deal(groups.items, groups.labels, groups.totals, list(shares.values()), seed)
    for place, name in enumerate(shares):
        if not (file_of_group == place).any():
            raise DataError(
                f"{path} has too few groups: {len(file_of_group)}, so {name} would be empty"
            )
    result = Split(
        files, len(file_of_group), Counter(), {name: Counter() for name in shares}, left_out
    )
    names = list(shares)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(written_whole(files[name])) for name in names}
        places = iter(groups.of_line)
        for _, _, fields in read_objects(path, LeftOut()):
            if _group_of(fields, group) is None:
                continue
            own = next(places, None)
            if own is None:
                raise DataError(f"{path} has grown while it was read: split it once it is whole")
            name = names[file_of_group[own]]
            write_object(writers[name], _moved(fields, path.parent, out))
            result.items[name] += 1  # type: ignore[index]
            result.labels[name].update(labels_of(fields))
        if next(places, None) is not None:
            raise DataError(f"{path} has shrunk while it was read: split it once it is whole")
    return result


def deal(
    items: NDArray[np.int64],
    labels: Sequence[Counter[int]],
    totals: NDArray[np.int64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Return the file of each group (groups,), as a place in ``shares``.

    Args:
        items: Of each group (groups,).
        labels: Of each group its items by label.
        totals: Items of each label (labels,).
        shares: Of each file, together 1.
        seed: Of the order of groups.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    large = np.where(items[order] > BIG * min(shares) * items.sum(), -items[order], 0)
    order = order[np.argsort(large, kind="stable")]
    shortfall = np.outer(shares, totals).astype(np.float64)
    item_shortfall = np.asarray(shares) * items.sum()
    weights = 1 / np.maximum(totals, 1)  # so that a rare label counts as a common one
    file_of_group = np.zeros(len(items), dtype=np.int64)
    for place in order:
        own = np.fromiter(labels[place], dtype=np.int64)
        counts = np.fromiter(labels[place].values(), dtype=np.float64)
        need = shortfall[:, own] @ (counts * weights[own])
        best = int(np.lexsort((-item_shortfall, -need))[0])
        file_of_group[place] = best
        shortfall[best, own] -= counts
        item_shortfall[best] -= items[place]
    return file_of_group


def _read_groups(path: Path, group: str | None, left_out: LeftOut) -> _Groups:
    of_line: list[int] = []
    numbers: dict[str, int] = {}
    label_numbers: dict[str, int] = {}
    labels: list[Counter[int]] = []
    for line, _, fields in read_objects(path, left_out):
        key = _group_of(fields, group)
        if key is None:
            left_out.add(path, line, f"it has no {group}, by which it is split")
            continue
        number = len(labels) if group is None else numbers.setdefault(key, len(labels))
        if number == len(labels):
            labels.append(Counter())
        of_line.append(number)
        labels[number].update(
            label_numbers.setdefault(label, len(label_numbers)) for label in labels_of(fields)
        )
    totals = np.zeros(len(label_numbers), dtype=np.int64)
    for counts in labels:
        for label, count in counts.items():
            totals[label] += count
    items = np.bincount(of_line, minlength=len(labels)) if of_line else np.zeros(0, np.int64)
    return _Groups(of_line, items, labels, totals)


def _group_of(fields: Mapping[str, Any], group: str | None) -> str | None:
    if group is None:
        return ""
    value = fields.get(group)
    return None if value is None or value == "" else json.dumps(value, sort_keys=True)


def _moved(fields: Mapping[str, Any], before: Path, now: Path) -> Mapping[str, Any]:
    """Return the same item in another folder, from which its image's path leads to the same
    file."""
    image = fields.get("img")
    if not isinstance(image, str) or not image or before.resolve() == now.resolve():
        return fields
    return {**fields, "img": os.path.relpath((before / image).resolve(), now.resolve())}
