"""Live figures over the control service's API."""

import json
from datetime import UTC, datetime
from pathlib import Path

from support.control_api_server import RunningControl


def _log(log: Path, **fields: object) -> None:
    line = {
        "at": datetime.now(UTC).isoformat(),
        "model": "tagger",
        "version": "1",
        "step": None,
        "status": 200,
        "duration_ms": 12,
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | fields) + "\n")


def test_recent_requests_are_told(control_api: RunningControl) -> None:
    client = control_api.client
    log = control_api.settings.state_dir / "logs" / "access.jsonl"
    _log(log)
    _log(log, status=500, version="2")
    (tagger,) = client.traffic()
    assert (tagger.model, tagger.requests, tagger.failed) == ("tagger", 2, 1)
    assert [each.version for each in tagger.versions] == [1, 2]
    assert len(tagger.minutes) == 15
