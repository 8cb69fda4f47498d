"""Lines of another gateway: which are taken, and how they are kept."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.rollouts import observations
from vlserve.control.rollouts.observations import (
    MAX_LINE_BYTES,
    MAX_LINES,
    ObservationLog,
    Taken,
    parse_observations,
    read_observation_line,
)
from vlserve.errors import (
    ObservationInvalid,
    ObservationsTooMany,
    ObservationsUnwritable,
    ObservationTooLong,
)

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
GOOD: dict[str, Any] = {"version": "candidate", "status": 200, "latency_ms": 12.5}


def body(*lines: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps(line) for line in lines).encode()


@pytest.fixture
def log(tmp_path: Path) -> ObservationLog:
    return ObservationLog(tmp_path / "logs" / "observations.jsonl", NOW.timestamp)


def kept(log: ObservationLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]


def test_lines_are_kept_with_the_time_of_their_arrival(log: ObservationLog) -> None:
    earlier = "2026-11-30T14:59:00+03:00"
    text = body(GOOD, GOOD | {"at": earlier, "caller": "c", "label": "貓", "id": "r1"}) + b"\n\r\n"
    assert log.take("tagger", text) == Taken(accepted=2, repeated=0)
    first, second = map(read_observation_line, kept(log))
    assert (first.at, first.ended_at) == (NOW.isoformat(), NOW.isoformat())
    assert (second.at, second.ended_at) == (NOW.isoformat(), "2026-11-30T11:59:00+00:00")
    assert (second.caller, second.label, second.id) == ("c", "貓", "r1")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "not JSON",
        '{"version": "candidate", "status": 200}',
        '{"version": "candidate", "status": 200, "latency_ms": NaN}',
        '{"version": "candidate", "status": 200, "latency_ms": Infinity}',
        '{"version": "candidate", "status": 200, "latency_ms": 1e999}',
        json.dumps(GOOD | {"latency_ms": -1}),
        json.dumps(GOOD | {"latency_ms": True}),
        json.dumps(GOOD | {"status": 600}),
        json.dumps(GOOD | {"status": "200 OK"}),
        json.dumps(GOOD | {"version": ""}),
        json.dumps(GOOD | {"version": "a b"}),
        json.dumps(GOOD | {"version": "x" * 64}),
        json.dumps(GOOD | {"label": "x" * 257}),
        json.dumps(GOOD | {"cohort": "new"}),
        json.dumps(GOOD | {"at": "yesterday"}),
        json.dumps(GOOD | {"at": "2026-11-30T12:00:00"}),
        json.dumps(GOOD | {"at": (NOW + timedelta(seconds=301)).isoformat()}),
        json.dumps(GOOD | {"at": (NOW - timedelta(hours=25)).isoformat()}),
        json.dumps(GOOD | {"at": "0001-01-01T00:00:00+14:00"}),
        json.dumps(GOOD | {"at": "9999-12-31T23:59:59-14:00"}),
        "[" * 2000,
    ],
)
def test_a_line_of_another_form_keeps_all_of_its_body_out(log: ObservationLog, line: str) -> None:
    with pytest.raises(ObservationInvalid, match=r"^line 2: "):
        log.take("tagger", body(GOOD) + b"\n" + line.encode() + b"\n" + body(GOOD))
    assert not log.path.exists()


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ObservationInvalid, match=r"^line 1: "):
        parse_observations(b"\x1f\x8b\x08\x00\xff", NOW.timestamp())


def test_long_lines_and_many_lines_are_refused_before_they_are_read() -> None:
    long = body(GOOD | {"label": "x" * MAX_LINE_BYTES})
    with pytest.raises(ObservationTooLong, match=f"line 2 has .* may have {MAX_LINE_BYTES}"):
        parse_observations(body(GOOD) + b"\n" + long, NOW.timestamp())
    most = body(*[GOOD] * MAX_LINES)
    assert len(parse_observations(most + b"\n", NOW.timestamp())) == MAX_LINES
    for many in (most + b"\nx", b"\n" * 1024 * 1024):
        with pytest.raises(ObservationsTooMany, match=f"may have {MAX_LINES}"):
            parse_observations(many, NOW.timestamp())


def test_a_line_that_is_sent_again_counts_once(log: ObservationLog) -> None:
    lines = [GOOD | {"id": f"r{number}"} for number in range(10)]
    assert log.take("tagger", body(*lines)) == Taken(10, 0)
    other = [GOOD | {"id": "r1", "version": "stable"}, GOOD, GOOD]
    assert log.take("tagger", body(*lines, lines[0], *other)) == Taken(3, 11)
    assert log.take("retriever", body(*lines)) == Taken(10, 0)
    second_log = ObservationLog(log.path, NOW.timestamp)  # after a restart
    assert second_log.take("tagger", body(*lines, GOOD | {"id": "new"})) == Taken(1, 10)


def test_ids_are_remembered_in_a_bounded_number(
    log: ObservationLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observations, "IDS_KEPT", 100)
    log.take("tagger", body(*[GOOD | {"id": f"r{number}"} for number in range(500)]))
    assert log._ids is not None and len(log._ids) == 100


def test_a_line_that_a_crash_cut_off_spoils_no_other(log: ObservationLog) -> None:
    log.take("tagger", body(GOOD))
    with log.path.open("ab") as file:
        file.write(b'{"at": "2026-')
    log.take("tagger", body(GOOD))
    lines = log.path.read_bytes().splitlines()
    assert (len(lines), lines[1]) == (3, b'{"at": "2026-')
    assert read_observation_line(json.loads(lines[2])).version == "candidate"


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_keeps_nothing_and_says_so(log: ObservationLog) -> None:
    log.path.parent.mkdir()
    log.path.symlink_to("/dev/full")
    with pytest.raises(ObservationsUnwritable, match="No space left"):
        log.take("tagger", body(GOOD | {"id": "r1"}))
    log.path.unlink()
    assert log.take("tagger", body(GOOD | {"id": "r1"})) == Taken(1, 0)


def test_the_log_is_rotated(log: ObservationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations.rotate, "__defaults__", (1000, 2))
    for _ in range(30):
        log.take("tagger", body(GOOD, GOOD))
    assert sorted(file.name for file in log.path.parent.iterdir()) == [
        "observations.jsonl",
        "observations.jsonl.1",
        "observations.jsonl.2",
    ]
