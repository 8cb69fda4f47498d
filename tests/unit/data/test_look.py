"""A look at data files: what is counted, what looks alike, and the page."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlserve import extras
from vlserve.data.look import near_duplicates
from vlserve.data.look.lengths import characters, word_pieces
from vlserve.data.look.near_duplicates import DISTANCE, find_groups
from vlserve.data.look.page import render_page
from vlserve.data.look.report import Look, look_at, quantile
from vlserve.errors import DataError, ExtraMissing


def write(path: Path, rows: list[Mapping[str, Any]], more: str = "") -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines + more, encoding="utf-8")
    return path


def picture(seed: int) -> Image.Image:
    """A picture unlike those of other seeds."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 90), tuple(int(value) for value in random.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, width, height = (int(value) for value in random.integers(0, 80, 4))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        draw.ellipse((x, y, x + width + 5, y + height + 5), fill=colour)
    return image


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """train.jsonl with cover0.jpg to cover9.jpg, and val.jsonl, one of whose images is a copy."""
    rows: list[Mapping[str, Any]] = []
    for number in range(10):
        picture(number).save(tmp_path / f"cover{number}.jpg", quality=95)
        rows.append(
            {
                "id": number,
                "img": f"cover{number}.jpg",
                "text": "x" * number,
                "label": "ab"[number % 2],
            }
        )
    rows.append({"id": 3, "img": "absent.jpg", "text": 7, "label": ""})
    picture(4).resize((80, 60)).save(tmp_path / "copy.jpg", quality=50)
    picture(99).save(tmp_path / "other.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    val = [
        {"id": "4", "img": "copy.jpg", "text": "<b>", "label": ["a", "c"]},
        {"id": "o", "img": "other.png", "text": "猫", "label": "a"},
        {"id": "p", "img": "broken.jpg", "text": "", "label": "a"},
        {"id": "q", "text": "no image", "label": "a"},
    ]
    return [
        write(tmp_path / "train.jsonl", rows, "no json\n"),
        write(tmp_path / "val.jsonl", val),
    ]


def look(files: list[Path], out: Path, predictions: Path | None = None) -> Look:
    return look_at(
        files, out,
        lengths=characters, unit="characters", max_length=5, predictions=predictions, workers=2,
    )  # fmt: skip


def test_everything_is_counted_once(files: list[Path], tmp_path: Path) -> None:
    report = look(files, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "look.json").read_bytes())
    train, val = (facts["files"][str(path)] for path in files)
    assert train == {
        "lines": 11,
        "left_out": 1,
        "repeated_ids": 1,
        "unlabelled": 1,
        "without_text": 1,
        "without_image": 0,
        "labels": {"a": 5, "b": 5},
    }
    assert (val["lines"], val["labels"], val["without_image"]) == (4, {"a": 4, "c": 1}, 1)
    assert facts["shared_ids"] == 1
    text = facts["text"]
    assert (text["texts"], text["empty"], text["max"], text["p50"]) == (14, 2, 9, 3)
    assert text["cut_share"] == 5 / 14
    images = facts["images"]
    assert (images["readable"], images["unreadable"]) == (12, 2)
    assert images["formats"] == {"JPEG": 11, "PNG": 1}
    assert images["sizes"] == [[120, 90, 11], [80, 60, 1]]
    unreadable = (tmp_path / "out" / "unreadable.jsonl").read_bytes().splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["line"]) for line in unreadable] == [
        ("3", 11),
        ("p", 3),
    ]
    assert report.facts["label_issues"] is None


def test_a_smaller_copy_in_another_file_is_found(files: list[Path], tmp_path: Path) -> None:
    report = look(files, tmp_path / "out")
    assert report.facts["near_duplicates"] == {
        "distance": DISTANCE,
        "groups": 1,
        "images": 2,
        "groups_across_files": 1,
        "images_across_files": 2,
        "groups_with_different_labels": 1,
        "complete": True,
    }
    (line,) = (tmp_path / "out" / "near-duplicates.jsonl").read_bytes().splitlines()
    group = [(image["file"], image["line"], image["id"]) for image in json.loads(line)["images"]]
    assert group == [("train.jsonl", 5, "4"), ("val.jsonl", 1, "4")]


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(
    files: list[Path], tmp_path: Path
) -> None:
    page = render_page(look(files, tmp_path / "out"))
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    sources = re.findall(r'src="(.{20})', page)
    assert len(sources) > 10
    assert all(source.startswith("data:image/") for source in sources)
    assert "1 groups of 2 images" in page
    empty = write(tmp_path / "text.jsonl", [{"id": "1"}])
    assert "0 texts" in render_page(look([empty], tmp_path / "empty"))


def test_a_file_of_other_things_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3 of the 3 lines of .*bad.jsonl"):
        look([bad], tmp_path / "out")


def brute_force(hashes: list[int], colours: list[tuple[int, int, int]]) -> set[frozenset[int]]:
    groups = [{place} for place in range(len(hashes))]
    for index in range(len(hashes)):
        for other in range(index):
            near = (hashes[index] ^ hashes[other]).bit_count() <= DISTANCE
            alike = (
                max(abs(a - b) for a, b in zip(colours[index], colours[other], strict=True)) <= 24
            )
            first = next(group for group in groups if index in group)
            second = next(group for group in groups if other in group)
            if near and alike and first is not second:
                first |= second
                groups.remove(second)
    return {frozenset(group) for group in groups if len(group) > 1}


@pytest.mark.parametrize("most_pairs", [2_000_000, 5])
def test_groups_are_those_of_all_pairs(most_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_MOST_PAIRS", most_pairs)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 7)
    random = np.random.default_rng(0)
    seeds = [int(value) for value in random.integers(0, 2**63, 20)]
    hashes, colours = [], []
    for _ in range(250):
        value = seeds[random.integers(20)]
        for bit in random.choice(64, random.integers(0, 7), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
        red, green, blue = (int(channel) for channel in random.choice([10, 30, 90], 3))
        colours.append((red, green, blue))
    groups = find_groups(np.array(hashes, np.uint64), np.array(colours, np.uint8))
    assert groups.complete
    assert {frozenset(group) for group in groups.members} == brute_force(hashes, colours)


def test_very_many_alike_are_bounded_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_IN_BAND", 50)
    monkeypatch.setattr(near_duplicates, "COMPARED", 5)
    colours = np.repeat(np.arange(200, dtype=np.uint8), 2).reshape(-1, 1).repeat(3, axis=1)
    colours[1::2, 0] += 1  # so that no two are the same
    groups = find_groups(np.zeros(400, np.uint64), colours)
    assert not groups.complete
    assert [len(group) for group in groups.members] == [400]
    nothing = find_groups(np.zeros(0, np.uint64), np.zeros((0, 3), np.uint8))
    assert nothing.members == ()


def test_quantiles_are_of_what_was_counted() -> None:
    counts = Counter({1: 50, 5: 49, 100: 1})
    assert [quantile(counts, share) for share in (0.5, 0.51, 0.99, 1.0)] == [1, 5, 5, 100]
    assert quantile(Counter(), 0.5) is None


def test_tokens_of_a_vocabulary_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text(
        "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "a")),
        encoding="utf-8",
    )
    assert word_pieces(file)(["a cats", "", "zz"]) == [5, 2, 3]


def test_labels_that_a_model_doubts_are_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows, answers = [], []
    for number in range(300):
        true = "ab"[number % 2]
        label = "ab"[1 - number % 2] if number in (10, 21, 100) else true
        rows.append({"id": str(number), "text": "t", "label": label})
        score = float(random.uniform(0.85, 0.99))
        scores = {true: score, "ab"[1 - number % 2]: 1 - score, "never": 0.0}
        tags = [{"tag": tag, "score": value} for tag, value in scores.items()]
        answers.append({"id": str(number), "tags": tags})
    data = write(tmp_path / "data.jsonl", rows)
    predictions = write(tmp_path / "answers.jsonl", answers, '{"id": "x", "error_code": "e"}\n')
    report = look([data], tmp_path / "out", predictions)
    assert report.facts["label_issues"]["compared"] == 300
    lines = (tmp_path / "out" / "label-issues.jsonl").read_bytes().splitlines()
    issues = [json.loads(line) for line in lines]
    assert len(issues) == report.facts["label_issues"]["issues"] >= 2  # it leaves out some of 1 %
    assert {issue["id"] for issue in issues} <= {"10", "21", "100"}
    assert issues[0]["label"] != issues[0]["better"]
    assert "rather" in render_page(report)
    strangers = write(tmp_path / "strangers.jsonl", [{"id": "z", "tags": []}])
    with pytest.raises(DataError, match="0 items in common"):
        look([data], tmp_path / "out", strangers)


def test_without_cleanlab_predictions_name_the_extra(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'vlserve\[labels\]'"):
        look(files, tmp_path / "out", files[0])
