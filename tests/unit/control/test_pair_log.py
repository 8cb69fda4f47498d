"""The log of shadow pairs that differ."""

from pathlib import Path

import pytest

from support.rollout_traffic import rollout_record
from vlserve.control.rollouts import pair_log
from vlserve.control.rollouts.answer_log import LoggedAnswer
from vlserve.control.rollouts.log_evidence import AnsweredCopy
from vlserve.control.rollouts.pair_log import PairLog, kind_of

MUSIC = LoggedAnswer({"music": 0.7, "food": 0.2})
CEILING = 0.2


def _copy(candidate: LoggedAnswer | None, stable: LoggedAnswer = MUSIC) -> AnsweredCopy:
    return AnsweredCopy("r", stable, candidate)


@pytest.mark.parametrize(
    ("copy", "kind"),
    [
        (_copy(MUSIC), None),
        (_copy(LoggedAnswer({"music": 0.5})), None),
        (_copy(LoggedAnswer({"music": 0.45})), "score"),
        (_copy(LoggedAnswer({"food": 0.9})), "label"),
        (_copy(LoggedAnswer()), "label"),
        (_copy(None), "failed"),
        (_copy(LoggedAnswer(failed=True)), "failed"),
        (_copy(LoggedAnswer(digest="b"), LoggedAnswer(digest="a")), "answer"),
        (_copy(LoggedAnswer(digest="a"), LoggedAnswer(digest="a")), None),
    ],
)
def test_kinds_of_difference(copy: AnsweredCopy, kind: str | None) -> None:
    assert kind_of(copy, CEILING) == kind


def test_pairs_are_read_newest_first_and_once(tmp_path: Path) -> None:
    log = PairLog(tmp_path / "pairs.jsonl")
    rollout = rollout_record()
    for name in ("a", "b", "a"):
        answers = [AnsweredCopy(name, MUSIC, None), AnsweredCopy("same", MUSIC, MUSIC)]
        log.write(rollout, answers, CEILING)
    with (tmp_path / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"model": "tagger", "cut')
    assert [pair.request_id for pair in log.newest("tagger")] == ["a", "b"]
    assert log.newest("another") == []
    assert PairLog(tmp_path / "nothing.jsonl").newest("tagger") == []


def test_a_tick_logs_the_worst_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_log, "MOST_A_TICK", 2)
    log = PairLog(tmp_path / "pairs.jsonl")
    answers = [
        AnsweredCopy("score", MUSIC, LoggedAnswer({"music": 0.1})),
        AnsweredCopy("label", MUSIC, LoggedAnswer({"food": 0.9, "music": 0.6})),
        AnsweredCopy("failed", MUSIC, None),
    ]
    log.write(rollout_record(), answers, CEILING)
    assert [pair.request_id for pair in log.newest("tagger")] == ["label", "failed"]


def test_a_full_log_is_renamed_and_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_log, "LOG_BYTES", 1)
    log = PairLog(tmp_path / "pairs.jsonl")
    for name in ("a", "b", "c"):
        log.write(rollout_record(), [AnsweredCopy(name, MUSIC, None)], CEILING)
    assert [pair.request_id for pair in log.newest("tagger")] == ["c", "b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.jsonl", "pairs.jsonl.1"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    PairLog(tmp_path / "gone" / "pairs.jsonl").write(rollout_record(), [_copy(None)], CEILING)
