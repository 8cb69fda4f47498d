"""Figures of the last minutes, from the gateway's log."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.gateway.model_lines import LEAST_LINES, MOST_LINES, ModelLines
from vlserve.control.gateway.recent_requests import MINUTES, ModelTraffic, RecentRequests
from vlserve_worker.own_ids import probe_id

NOW = datetime(2026, 1, 31, 9, 30, 30, tzinfo=UTC).timestamp()


def _line(ago_s: float, **fields: Any) -> str:
    at = datetime.fromtimestamp(NOW - ago_s, UTC).isoformat(timespec="milliseconds")
    line = {
        "at": at.replace("+00:00", "Z"),
        "model": "tagger",
        "version": "1",
        "step": None,
        "status": 200,
        "duration_ms": 20,
    }
    return json.dumps(line | fields) + "\n"


def _figures(log: Path) -> Mapping[str, ModelTraffic]:
    return RecentRequests(log, lambda: NOW).figures()


def test_requests_are_counted_by_minute_and_version(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(
        _line(16 * 60, duration_ms=900)  # too long ago
        + _line(60, version="1", step="3.1", duration_ms=10) * 60
        + _line(60, version="2", step="3.1", duration_ms=90, received_ms=60) * 20
        + _line(5, version="2", status=503)
        + _line(4, version="2", status=0, flags="DC")
        + _line(4, version=None, status=404)
        + _line(3, model=None, version=None, status=404)  # no model was asked
        + '{"cut',
        encoding="utf-8",
    )
    figures = _figures(log)
    assert list(figures) == ["tagger"]
    tagger = figures["tagger"]
    assert (tagger.requests, tagger.failed, tagger.estimated) == (83, 1, False)
    assert (tagger.p50_ms, tagger.p99_ms) == (10, 30)
    assert tagger.per_second == pytest.approx(80 / 60)
    assert [minute.requests for minute in tagger.minutes] == [0] * (MINUTES - 2) + [80, 3]
    assert [(each.version, each.requests, each.failed) for each in tagger.versions] == [
        (1, 60, 0),
        (2, 22, 1),
    ]
    assert tagger.steps == {"3.1": {1: 60, 2: 20}}


def test_health_checks_are_no_traffic(tmp_path: Path) -> None:
    """A client that calls its request so hides nothing: probes ask for a version by its path."""
    log, own = tmp_path / "access.jsonl", {"request_id": probe_id()}
    log.write_text(
        _line(9, path="/predictions/tagger/1", **own) * 5
        + _line(8, path="/predictions/tagger/1", request_id="a-client") * 2
        + _line(7, path="/predictions/tagger", **own) * 3
        + _line(6, path="/predictions/tagger/1/", **own),
        encoding="utf-8",
    )
    assert _figures(log)["tagger"].requests == 5


def test_a_renamed_log_is_read_too(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.with_name("access.jsonl.1").write_text(_line(100), encoding="utf-8")
    log.write_text(_line(1), encoding="utf-8")
    assert _figures(log)["tagger"].requests == 2


def test_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    assert _figures(log) == {}
    log.touch()
    assert _figures(log) == {}
    log.write_text('[]\n{}\nnothing\n{"at": 3, "model": "tagger"}\n' + _line(1), encoding="utf-8")
    assert _figures(log)["tagger"].requests == 1


def test_of_many_requests_some_are_read_and_the_counts_scaled(tmp_path: Path) -> None:
    log, every_s = tmp_path / "access.jsonl", 0.05
    count = int(30 * 60 / every_s)  # twice the time that is asked for
    with log.open("w", encoding="utf-8") as file:
        for number in reversed(range(count)):
            version = "2" if number % 4 == 0 else "1"
            file.write(_line(number * every_s, version=version, duration_ms=5 + number % 7))
    tagger = _figures(log)["tagger"]
    assert tagger.estimated
    assert tagger.requests == pytest.approx(count / 2, rel=0.02)
    assert tagger.per_second == pytest.approx(1 / every_s, rel=0.2)
    assert tagger.versions[1].requests == pytest.approx(count / 8, rel=0.15)
    assert tagger.p50_ms == pytest.approx(8, abs=1)
    assert count / 2 > MOST_LINES


def test_whoever_asks_again_at_once_gets_the_same(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(_line(1), encoding="utf-8")
    recent = RecentRequests(log, now=lambda: NOW)
    before = recent.figures()
    log.write_text(_line(1) * 2, encoding="utf-8")
    assert recent.figures() is before


def test_a_busy_model_hides_no_other_one(tmp_path: Path) -> None:
    log, rare = tmp_path / "access.jsonl", _line(500, model="rare", version="7")
    busy = [_line(ago, duration_ms=30) for ago in range(900, 0, -1) for _ in range(20)]
    few = [_line(ago, model="few", status=503) for ago in range(LEAST_LINES, 0, -1)]
    log.write_text("".join([*busy[:9000], rare, *busy[9000:], *few]), encoding="utf-8")
    figures = _figures(log)
    assert list(figures) == ["few", "rare", "tagger"]
    assert (figures["rare"].requests, figures["rare"].estimated) == (1, False)
    assert [each.version for each in figures["rare"].versions] == [7]
    assert (figures["few"].failed, figures["few"].estimated) == (LEAST_LINES, False)
    assert figures["tagger"].estimated
    assert figures["tagger"].requests == pytest.approx(len(busy), rel=0.02)


def test_what_asks_no_model_hides_no_request_before_it(tmp_path: Path) -> None:
    log, own = tmp_path / "access.jsonl", {"request_id": probe_id()}
    nothing = _line(5, model=None, version=None, status=404)
    probe = _line(5, path="/predictions/tagger/1", **own)
    log.write_text(_line(300) * 50 + nothing * 100 + probe * 20, encoding="utf-8")
    assert _figures(log)["tagger"].requests == 50


def test_lines_are_found_once_while_the_log_grows_and_is_renamed(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    lines = ModelLines(log)

    def counts() -> dict[str, int]:
        samples = lines.since(NOW - 900, lambda line: NOW)
        return {model: len(sample.lines) for model, sample in samples.items()}

    log.write_text(_line(100) + _line(99, model="other") + '{"cut', encoding="utf-8")
    assert counts() == {"tagger": 1, "other": 1}
    log.write_text(_line(100) + _line(99, model="other") + _line(98), encoding="utf-8")
    assert counts() == {"tagger": 2, "other": 1}
    log.replace(log.with_name("access.jsonl.1"))
    assert counts() == {"tagger": 2, "other": 1}
    log.write_text(_line(97), encoding="utf-8")
    assert counts() == {"tagger": 3, "other": 1}
    log.replace(log.with_name("access.jsonl.1"))
    log.write_text(_line(96), encoding="utf-8")
    assert counts() == {"tagger": 2}
