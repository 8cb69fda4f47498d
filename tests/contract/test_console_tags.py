"""Tags over time over HTTP: samples of the logs, and the watch against the training data."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl
from vlserve.control.rollouts import drift_watch
from vlserve_worker.capture import keep_input

TAGS = "/console/models/tagger/tags"
HOSTILE = "<script>alert(1)</script>\u202e"


def _answers(log: Path, label: str, ago: timedelta, count: int) -> None:
    with log.open("a", encoding="utf-8") as file:
        for number in range(count):
            at = (datetime.now(UTC) - ago).isoformat()
            line = {"request_id": f"{label}{number}", "model": "tagger", "version": 1, "at": at}
            file.write(json.dumps({**line, "scores": {label: 0.9}}) + "\n")


def test_labels_of_the_day_stand_beside_those_before(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    logs = control_api.settings.state_dir / "logs"
    _answers(logs / "answers.jsonl.1", "food", timedelta(days=2), 10)
    _answers(logs / "answers.jsonl", HOSTILE, timedelta(minutes=2), 5)
    control_api.client.start_capture("tagger", 1.0, 7, 16)
    folder = control_api.settings.state_dir / "capture" / "tagger"
    keep_input(folder, "r", {"text": b"twelve chars", "image": b"x" * 2048}, 10**6)
    page = browser.get(TAGS).text
    assert "<script>alert" not in page and "\u202e" not in page
    assert "<bdi>&lt;script&gt;" in page
    assert "24 hours 5 answers were read, of the 7 days before 10" in page
    assert "p50 12, p95 12 (1)" in page and "p50 2, p95 2 (1)" in page
    assert "does not say which labels" in page


def test_an_alarm_tells_its_guarantee(
    control_api: RunningControl,
    two_versions: None,
    browser: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = control_api.settings.state_dir / "logs"
    monkeypatch.setattr(drift_watch, "training_labels", lambda _: {"cars": 90, "food": 10})
    browser.get(TAGS)  # the watch begins
    _answers(logs / "answers.jsonl", "food", timedelta(minutes=2), 400)
    page = browser.get(TAGS).text
    assert 'class="verdict alarm"' in page and "400 answers since" in page
    assert "ever reaches 20 with a probability of at most 5 %" in page
    assert "最多为 5 %" in browser.get(TAGS, params={"lang": "zh"}).text
