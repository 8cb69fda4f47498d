"""Answers over time: what is sampled of the logs, and when they drift from the training data."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.api.console.tag_screens import LabelRow, label_rows
from vlserve.control.judge.drift import BLOCK, Drift, take_in
from vlserve.control.rollouts import answer_history
from vlserve.control.rollouts.answer_history import AnsweredTime, AnswerHistory, Quantiles
from vlserve.control.rollouts.drift_watch import ALPHA, MARGIN, DriftWatch
from vlserve.control.rollouts.log_reader import Cursor
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Manifest
from vlserve_worker.own_ids import probe_id

TRAINING = {"animals": 50, "cars": 30, "food": 20}
NOW = 1_800_000_000.0


def _drawn(chance: random.Random, shares: Mapping[str, float], count: int) -> list[str]:
    return chance.choices(list(shares), list(shares.values()), k=count)


def test_answers_like_the_training_data_seldom_alarm() -> None:
    """Each run is looked at after every block; the tolerated distance is used up."""
    shares = {"animals": 50 + 100 * MARGIN, "cars": 30, "food": 20 - 100 * MARGIN}
    alarms = 0
    for seed in range(60):
        labels = _drawn(random.Random(seed), shares, 2000)
        alarms += take_in(Drift(), labels, TRAINING, MARGIN).peak_e >= 1 / ALPHA
    assert alarms <= 60 * ALPHA


def test_other_answers_alarm_soon() -> None:
    labels = _drawn(random.Random(1), {"animals": 20, "cars": 20, "games": 60}, 800)
    drift = take_in(Drift(), labels, TRAINING, MARGIN)
    assert drift.peak_e > 1e6 and drift.answers == 800 and drift.counts["games"] > 400


def test_it_does_not_matter_in_which_portions_answers_come() -> None:
    labels = _drawn(random.Random(2), {"animals": 60, "food": 40}, 5 * BLOCK + 7)
    whole = take_in(Drift(), labels, TRAINING, MARGIN)
    drift = Drift()
    for start in range(0, len(labels), 13):
        drift = take_in(drift, labels[start : start + 13], TRAINING, MARGIN)
    assert drift.e_value == pytest.approx(whole.e_value)
    assert (drift.answers, drift.open_block) == (whole.answers, whole.open_block)


def _answer(number: int, at: float, **fields: Any) -> dict[str, Any]:
    line = {
        "request_id": f"r{number}",
        "model": "tagger",
        "version": 1,
        "at": datetime.fromtimestamp(at, UTC).isoformat(),
    }
    return {**line, **(fields or {"scores": {"cars": 0.9, "food": 0.1}})}


def _write(log: Path, lines: list[dict[str, Any]]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


@pytest.fixture
def history(tmp_path: Path) -> AnswerHistory:
    return AnswerHistory(tmp_path / "answers.jsonl", tmp_path / "access.jsonl")


def test_answers_of_a_time_are_counted(history: AnswerHistory, tmp_path: Path) -> None:
    old = [_answer(n, NOW - 10_000 + n, scores={"food": 0.8}) for n in range(3)]
    _write(tmp_path / "answers.jsonl.1", old)
    new = [_answer(10 + n, NOW - 100 + n) for n in range(4)]
    new += [
        _answer(20, NOW, error="text_too_long"),
        _answer(21, NOW, version=2, scores={"x": 1.0}),
        _answer(22, NOW, model="other", scores={"x": 1.0}),
        {**_answer(23, NOW), "request_id": "trial-1"},
        _answer(24, NOW, scores={}),
    ]
    _write(tmp_path / "answers.jsonl", new)
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('no line of "tagger"\n')
    everything = history.answered("tagger", 1, 0.0, None)
    assert everything == AnsweredTime(9, {"cars": 4, "food": 3}, {"text_too_long": 1})
    assert history.answered("never", 1, 0.0, None) == AnsweredTime()


def test_a_long_log_is_sampled_between_two_times(
    history: AnswerHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_history, "MOST_LINES", 200)
    labels = ["food"] * 3000 + ["cars"] * 3000
    lines = [_answer(n, NOW + n, scores={label: 0.9}) for n, label in enumerate(labels)]
    _write(tmp_path / "answers.jsonl", lines)
    second_half = history.answered("tagger", 1, NOW + 3100, None)
    assert set(second_half.labels) == {"cars"} and 150 <= second_half.answers <= 200
    first_half = history.answered("tagger", 1, NOW + 1000, NOW + 2900)
    assert set(first_half.labels) == {"food"} and 150 <= first_half.answers <= 200


def test_requests_are_counted_by_status_and_size(history: AnswerHistory, tmp_path: Path) -> None:
    at = datetime.fromtimestamp(NOW, UTC).isoformat()
    fields = {"at": at, "model": "tagger", "schema": 1}
    lines = [{**fields, "status": 200, "bytes_in": 100 * n} for n in range(1, 4)]
    lines += [{**fields, "status": 422}, {**fields, "status": 422}, {**fields, "status": 503}]
    lines += [{**fields, "model": "other", "status": 413}]
    _write(tmp_path / "access.jsonl", lines)
    traffic = history.asked("tagger", NOW - 10)
    assert (traffic.requests, traffic.refused) == (6, {422: 2})
    assert traffic.body_bytes == Quantiles(3, 200.0, pytest.approx(290.0))


def test_each_new_answer_is_read_once(
    history: AnswerHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(cursor: Cursor) -> tuple[list[str], Cursor]:
        lines, cursor = history.unread("tagger", 1, cursor)
        return [line.request_id for line in lines], cursor

    log = tmp_path / "answers.jsonl"
    assert unread(Cursor()) == ([], Cursor())
    _write(log, [_answer(n, NOW) for n in range(2)])
    ids, cursor = unread(Cursor())
    assert ids == ["r0", "r1"]
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_answer(2, NOW)))  # its end is not there yet
    assert unread(cursor) == ([], cursor)
    with log.open("a", encoding="utf-8") as file:
        file.write("\n")
    ids, cursor = unread(cursor)
    assert ids == ["r2"]
    log.rename(tmp_path / "answers.jsonl.1")
    _write(log, [_answer(3, NOW)])
    assert unread(cursor)[0] == ["r3"]
    monkeypatch.setattr(answer_history, "MOST_UNREAD", 300)
    _write(log, [_answer(n, NOW) for n in range(4, 9)])
    ids, cursor = unread(Cursor())
    assert ids == ["r7", "r8"]  # those before are passed over
    assert unread(cursor)[0] == []


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    original = verify_archive(pack_echo(tmp_path_factory.mktemp("drift"), "tagger", 1))
    return original.model_copy(update={"training": {"label_items": TRAINING}})


def test_a_version_is_watched_from_its_first_look(
    history: AnswerHistory, tmp_path: Path, manifest: Manifest
) -> None:
    watch = DriftWatch(history, tmp_path / "drift.json")
    log = tmp_path / "answers.jsonl"
    _write(log, [_answer(n, NOW, scores={"games": 1}) for n in range(400)])
    first = watch.look(manifest)
    assert first is not None and first.drift.answers == 0 and not first.alarms
    probes = [_answer(n, NOW, scores={"cars": 1}) | {"request_id": probe_id()} for n in range(9)]
    _write(log, [*probes, *(_answer(n, NOW, scores={"games": 1}) for n in range(400))])
    second = watch.look(manifest)
    assert second is not None and second.alarms and second.since == first.since
    assert second.drift.answers == 400 and second.threshold == 20
    third = watch.look(manifest)
    assert third is not None and third.drift.answers == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"training": None},
        {"training": {"label_items": "many"}},
        {"multi_label": True},
    ],
)
def test_without_labels_of_the_training_there_is_no_alarm(
    history: AnswerHistory, tmp_path: Path, manifest: Manifest, changes: dict[str, Any]
) -> None:
    watch = DriftWatch(history, tmp_path / "drift.json")
    assert watch.look(manifest.model_copy(update=changes)) is None
    assert not (tmp_path / "drift.json").exists()


def test_the_evidence_outlives_the_service(
    history: AnswerHistory, tmp_path: Path, manifest: Manifest
) -> None:
    log, file = tmp_path / "answers.jsonl", tmp_path / "drift.json"
    _write(log, [_answer(0, NOW, scores={"games": 1})])
    first = DriftWatch(history, file).look(manifest)
    assert first is not None
    _write(log, [_answer(n, NOW, scores={"games": 1}) for n in range(250)])
    second = DriftWatch(history, file).look(manifest)
    assert second is not None and second.since == first.since
    assert (second.drift.answers, len(second.drift.open_block)) == (240, 10)
    _write(log, [_answer(n, NOW, scores={"games": 1}) for n in range(150)])
    third = DriftWatch(history, file).look(manifest)  # of another control service
    assert third is not None and third.drift.answers == 400 and third.alarms
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["schema"] == 1 and list(record["versions"]) == ["tagger/1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "{",
        lambda record: json.dumps(record | {"schema": 2}),
        lambda record: json.dumps(record).replace('"purses":', '"purses": [], "before":'),
        lambda record: json.dumps(record).replace('"peak_e":', '"peak_e": "much", "before":'),
    ],
)
def test_evidence_that_cannot_be_read_is_begun_anew(
    history: AnswerHistory, tmp_path: Path, manifest: Manifest, damage: Any
) -> None:
    log, file = tmp_path / "answers.jsonl", tmp_path / "drift.json"
    _write(log, [_answer(0, NOW)])
    DriftWatch(history, file).look(manifest)
    _write(log, [_answer(n, NOW) for n in range(90)])
    DriftWatch(history, file).look(manifest)
    file.write_text(damage(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
    report = DriftWatch(history, file).look(manifest)
    assert report is not None and report.drift.answers == 0


def test_evidence_that_cannot_be_written_stays_in_memory(
    history: AnswerHistory, tmp_path: Path, manifest: Manifest
) -> None:
    log, file = tmp_path / "answers.jsonl", tmp_path / "drift.json"
    file.mkdir()
    _write(log, [_answer(0, NOW)])
    watch = DriftWatch(history, file)
    watch.look(manifest)
    _write(log, [_answer(n, NOW) for n in range(90)])
    report = watch.look(manifest)
    assert report is not None and report.drift.answers == 80


def test_labels_stand_beside_each_other() -> None:
    rows = label_rows({"a": 3, "b": 1}, AnsweredTime(2, {"b": 2}), AnsweredTime())
    assert rows == [LabelRow("b", 0.25, 1.0, None), LabelRow("a", 0.75, 0.0, None)]
