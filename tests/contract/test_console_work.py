"""The pages of load tests and of offline jobs over HTTP."""

import json
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from support.batch_rows import RECORD
from support.control_api_server import RunningControl
from vlserve.batch.job import JobFolder
from vlserve.cli import batch
from vlserve.control.client import ControlClient
from vlserve.errors import ControlError, StackDown

HOSTILE = "<script>alert(1)</script>\u202e"


def test_load_tests_are_compared(control_api: RunningControl, browser: httpx.Client) -> None:
    folder = control_api.settings.state_dir / "stress" / HOSTILE.replace("/", "")
    folder.mkdir(parents=True)
    figures = {"requests": 9, "error_rate": 0, "rps": 12.5, "p50_ms": 3.25, "p99_ms": None}
    result = {
        **{"model": HOSTILE, "load": HOSTILE, "duration_s": 30, "passed": False},
        **{"verdict": HOSTILE, "figures": figures},
        "stages": {"all": {"stage_ms": {HOSTILE: 5.0, "infer": 15.0}}},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = browser.get("/console/load-tests").text
    assert "12.5" in page and "3.25" in page and 'width="75.0"' in page
    assert "<script>alert" not in page and "\u202e" not in page
    assert "12.5" not in browser.get("/console/load-tests", params={"model": "tagger"}).text


def test_an_offline_job_is_shown(
    control_api: RunningControl, browser: httpx.Client, tmp_path: Path
) -> None:
    out = tmp_path / "<b>out"
    job = JobFolder(out)
    with job.locked():
        job.begin(RECORD)
        control_api.client.announce_batch_job(out)
        page = browser.get("/console/batch-jobs").text
        assert "running" in page and "&lt;b&gt;out" in page
    assert "the same command goes on" in browser.get("/console/batch-jobs").text
    with pytest.raises(ControlError):
        control_api.client._call("POST", "/batch-jobs", json={"out": "relative"})


def test_a_job_announces_its_output_and_needs_no_stack(
    control_api: RunningControl,
    browser: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down() -> ControlClient:
        raise StackDown("the control service does not answer")

    monkeypatch.setattr(batch, "control_client", down)
    batch._announce(tmp_path / "alone")
    monkeypatch.setattr(batch, "control_client", lambda: nullcontext(control_api.client))
    batch._announce(tmp_path / "seen")
    page = browser.get("/console/batch-jobs").text
    assert f"{tmp_path}/seen" in page and f"{tmp_path}/alone" not in page
