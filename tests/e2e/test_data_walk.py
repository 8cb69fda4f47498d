"""The walk of docs/data.md, by its own commands: 200 clips and a CSV in MELD's columns, to tags."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.documents import PROJECT, SHELL, fences
from support.drawn_videos import card, plain, write_video

CLIPS, DIALOGUE = 200, 5
"""Clips, and how many each dialogue has."""
BROKEN = "dia3_utt1"
COLOURS = {"negative": "blue", "positive": "orange", "neutral": "grey"}
WORDS = {"negative": "no, never", "positive": "yes, “great”", "neutral": "well"}
COLUMNS = (
    *("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"),
    *("Season", "Episode", "StartTime", "EndTime"),
)


def clip_name(number: int) -> str:
    return f"dia{number // DIALOGUE}_utt{number % DIALOGUE}"


def sentiment(number: int) -> str:
    return ("negative", "positive", "negative", "positive", "neutral")[number * 7 % 10 // 2]


def draw(folder: Path) -> None:
    """Write clips/, each black at first, and utterances.csv."""
    (folder / "clips").mkdir()
    with (folder / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number in range(CLIPS):
            kind, clip = sentiment(number), folder / "clips" / clip_name(number)
            text = f"{WORDS[kind]}, said {number}"
            frames = [plain("black")] * 2 + [card(COLOURS[kind], text=f"clip {number}")] * 2
            write_video(clip.with_suffix(".mp4"), frames)
            clip.with_suffix(".txt").write_text(text, encoding="utf-8")
            place = [number // DIALOGUE, number % DIALOGUE, 4, 7]
            table.writerow(
                [number + 1, text, "Joey", "joy", kind, *place, "00:20:57,256", "00:21:00,049"]
            )
    (folder / "clips" / f"{BROKEN}.mp4").write_bytes(b"no video")


def walk() -> list[str]:
    """The commands of the fence that trains. The archive is of TorchScript: ONNX takes 15 s of
    processor time, and the README's export of this family is to ONNX (test_docs.py)."""
    (text,) = (
        body
        for language, body in fences(PROJECT / "docs" / "data.md")
        if language == SHELL and "vlserve train" in body
    )
    text = text.replace("\\\n", " ").replace(
        "vlserve export", "vlserve export --format torchscript"
    )
    return text.splitlines()


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.export
def test_clips_and_a_table_become_tags(tmp_path: Path) -> None:
    draw(tmp_path)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    for command in walk():
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            encoding="utf-8",
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"

    frames = rows_of(tmp_path / "frames" / "frames.jsonl")
    assert len(frames) == CLIPS
    assert [row["id"] for row in frames if "error_code" in row] == [BROKEN]
    assert all(row["clear"] and row["second"] == 0.2 for row in frames if "img" in row)

    kinds = Counter(sentiment(number) for number in range(CLIPS))
    items = rows_of(tmp_path / "all.jsonl")
    assert Counter(item["label"] for item in items) == {
        "0": kinds["negative"],
        "1": kinds["positive"],
    }
    facts = json.loads((tmp_path / "look" / "look.json").read_bytes())
    assert (facts["images"]["unreadable"], facts["text"]["texts"]) == (1, len(items))

    train, val = (rows_of(tmp_path / "split" / f"{name}.jsonl") for name in ("train", "val"))
    assert len(train) + len(val) == len(items)
    assert not {row["Dialogue_ID"] for row in train} & {row["Dialogue_ID"] for row in val}

    answers = rows_of(tmp_path / "answers.jsonl")
    assert sorted(row["id"] for row in answers) == sorted(map(clip_name, range(CLIPS)))
    errors = [row for row in answers if "error_code" in row]
    assert [(row["id"], row["error_code"]) for row in errors] == [(BROKEN, "video_unreadable")]
    assert {tag["tag"] for row in answers if "tags" in row for tag in row["tags"]} == {"0", "1"}
