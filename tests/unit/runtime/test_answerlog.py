"""What is written of each answer, and what is not."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vlserve.exporter.echo import pack_echo
from vlserve.runtime.answer_log import SCORES_KEPT, AnswerLog, digest, read_answer_line
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import BatchResult, ItemError, Request


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("echo")
    labels = tuple("abcdefgh")
    unpack_archive(pack_echo(folder, "tagger", 3, labels=labels), folder / "unpacked")
    return open_folder(folder / "unpacked", threads=1)


def written(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_one_line_an_answer_without_what_was_sent(pipeline: Pipeline, tmp_path: Path) -> None:
    (probe, *_) = pipeline.manifest.probes
    result = pipeline.run([Request({**probe.fields, "top_k": 7}, "a"), Request({}, "b")])
    log = tmp_path / "logs" / "answers.jsonl"
    with closing(AnswerLog(log)) as answers:
        answers.write(pipeline.manifest, pipeline.task, ["a", "b"], result)
    good, bad = written(log)
    about = {"schema", "at", "request_id", "model", "version", "stage_ms"}
    assert (set(good), set(bad)) == (about | {"digest", "scores"}, about | {"error"})
    assert good["schema"] == 1
    assert [read_answer_line(line).error for line in (good, bad)] == [None, "field_invalid"]
    assert (good["request_id"], good["model"], good["version"]) == ("a", "tagger", 3)
    answer = result.answers[0]
    assert isinstance(answer, dict)
    best = [tag["tag"] for tag in answer["tags"]][:SCORES_KEPT]
    assert list(good["scores"]) == best
    assert set(good["stage_ms"]) == {"decode", "tokenise", "infer", "postprocess", "serialise"}
    assert (bad["request_id"], bad["error"]) == ("b", "field_invalid")
    assert probe.fields["text"] not in log.read_text(encoding="utf-8")


def test_a_renamed_log_is_followed_by_a_new_one(pipeline: Pipeline, tmp_path: Path) -> None:
    log = tmp_path / "answers.jsonl"
    result = BatchResult([ItemError(ErrorCode.FIELD_INVALID, "no text")])
    with closing(AnswerLog(log)) as answers:
        for name in ("a", "b"):
            answers.write(pipeline.manifest, pipeline.task, [name], result)
        log.rename(tmp_path / "answers.jsonl.1")
        answers.write(pipeline.manifest, pipeline.task, ["c"], result)
    assert [line["request_id"] for line in written(log)] == ["c"]
    assert len(written(tmp_path / "answers.jsonl.1")) == 2


def test_a_log_that_cannot_be_is_no_reason_not_to_answer(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = BatchResult([ItemError(ErrorCode.FIELD_INVALID, "no text")])
    for path in (None, tmp_path / "file" / "answers.jsonl"):
        AnswerLog(path).write(pipeline.manifest, pipeline.task, ["a"], result)


def test_a_log_that_goes_away_is_no_reason_not_to_answer(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "logs" / "answers.jsonl"
    result = BatchResult([ItemError(ErrorCode.FIELD_INVALID, "no text")])
    with closing(AnswerLog(log)) as answers:
        shutil.rmtree(log.parent)
        for name in ("a", "b"):
            answers.write(pipeline.manifest, pipeline.task, [name], result)
        assert len(caplog.records) == 1  # told once
        log.parent.mkdir()
        answers.write(pipeline.manifest, pipeline.task, ["c"], result)
    assert [line["request_id"] for line in written(log)] == ["c"]


def test_a_digest_says_whether_two_answers_are_the_same() -> None:
    answer = {"caption": "a dog", "log_prob": -1.23441, "boxes": [[0.1, 0.5]]}
    assert digest(answer) == digest(dict(reversed(answer.items())))
    assert digest(answer) != digest({**answer, "log_prob": -1.3})
    assert digest(answer) != digest({**answer, "caption": "a cat"})
