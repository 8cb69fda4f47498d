"""Splits: groups stay together, labels keep their shares, the seed decides."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlserve.data.data_files import LeftOut, read_objects
from vlserve.data.split import Split, split_file
from vlserve.errors import DataError

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def write(path: Path, items: int = 2000, channels: int = 200) -> Path:
    """Items of channels of very different sizes, each with a label of its own liking."""
    random = np.random.default_rng(0)
    sizes = 1 / np.arange(1, channels + 1)
    lines = []
    for number in range(items):
        channel = int(random.choice(channels, p=sizes / sizes.sum()))
        label = "abc"[channel % 3] if random.random() < 0.7 else "d"
        lines.append({"id": str(number), "img": "images/1.jpg", "label": label, "channel": channel})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read(split: Split) -> dict[str, list[dict[str, str]]]:
    return {
        name: [json.loads(line) for line in path.read_bytes().splitlines()]
        for name, path in split.files.items()
    }


def test_a_group_is_in_one_file_and_labels_keep_their_shares(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl")
    split = split_file(file, tmp_path / "out", SHARES, group="channel", seed=0)
    parts = read(split)
    where = defaultdict(set)
    for name, items in parts.items():
        for item in items:
            where[item["channel"]].add(name)
        assert len(items) == split.items[name]
        assert Counter(item["label"] for item in items) == split.labels[name]
        numbers = [int(item["id"]) for item in items]
        assert numbers == sorted(numbers), "the input's order"
    assert all(len(names) == 1 for names in where.values())
    assert sum(split.items.values()) == 2000
    for name, share in SHARES.items():
        assert split.items[name] / 2000 == pytest.approx(share, abs=0.02)
    total = sum(split.labels.values(), Counter[str]())
    for label, count in total.items():
        for name, share in SHARES.items():
            assert split.labels[name][label] / count == pytest.approx(share, abs=0.06)


def test_without_groups_the_shares_are_exact_and_the_seed_decides(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl")
    choices = []
    for seed in (1, 1, 2):
        split = split_file(
            file, tmp_path / "out", {"train": 0.8, "val": 0.2}, group=None, seed=seed
        )
        choices.append([item["id"] for item in read(split)["val"]])
        total = sum(split.labels.values(), Counter[str]())
        for label, count in total.items():
            assert split.labels["val"][label] == pytest.approx(count * 0.2, abs=1)
    assert choices[0] == choices[1] != choices[2]


def test_paths_of_images_lead_to_the_same_files(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl", items=20)
    parts = read(split_file(file, tmp_path / "a" / "b", SHARES, group=None, seed=0))
    assert {item["img"] for items in parts.values() for item in items} == {"../../images/1.jpg"}
    beside = read(split_file(file, tmp_path, SHARES, group=None, seed=0))
    assert {item["img"] for items in beside.values() for item in items} == {"images/1.jpg"}


def test_several_labels_count_each(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    labels = [["a", "b"], ["a"], ["b", "c"], ["c"]]
    file.write_text(
        "".join(json.dumps({"label": labels[n % 4]}) + "\n" for n in range(400)), encoding="utf-8"
    )
    split = split_file(file, tmp_path / "out", {"train": 0.75, "val": 0.25}, group=None, seed=0)
    assert {label: split.labels["val"][label] for label in "abc"} == pytest.approx(
        dict.fromkeys("abc", 50), abs=2
    )


def test_lines_without_the_group_are_told_and_too_few_groups_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl", items=50)
    with file.open("a", encoding="utf-8") as more:
        more.write('{"id": "x", "label": "a"}\nno json\n')
    split = split_file(file, tmp_path / "out", SHARES, group="channel", seed=0)
    assert split.left_out.count == 2
    assert sum(split.items.values()) == 50
    with pytest.raises(DataError, match="2 of the 52 lines"):
        split_file(file, tmp_path / "out", SHARES, group="channel", seed=0, strict=True)
    single_channel = write(tmp_path / "one.jsonl", items=50, channels=1)
    with pytest.raises(DataError, match="has too few groups: 1, so val would be empty"):
        split_file(single_channel, tmp_path / "other", SHARES, group="channel", seed=0)
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match="is an input too"):
        split_file(tmp_path / "out" / "train.jsonl", tmp_path / "out", SHARES, group=None, seed=0)


@pytest.mark.parametrize(("more", "why"), [(1, "has grown"), (-1, "has shrunk")])
def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, why: str
) -> None:
    file = write(tmp_path / "all.jsonl", items=50)
    lines, reads = file.read_bytes().splitlines(keepends=True), list[int]()

    def read_changing(path: Path, left_out: LeftOut) -> Iterator[Any]:
        if reads:
            path.write_bytes(b"".join([*lines, lines[-1]][: len(lines) + more]))
        reads.append(1)
        yield from read_objects(path, left_out)

    monkeypatch.setattr("vlserve.data.split.read_objects", read_changing)
    with pytest.raises(DataError, match=why):
        split_file(file, tmp_path / "out", SHARES, group=None, seed=0)
    assert not list((tmp_path / "out").glob("*.jsonl"))
