"""Disagreements over HTTP: from the logs of a shadow to a mark, and to a label that is exported."""

import html
import json
import re
import stat
import time
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from support.control_api_server import RunningControl
from support.rollout_traffic import Behaviour, Requests
from vlserve.cli import app, capture, feedback
from vlserve.control.rollouts.pair_log import DifferingPair
from vlserve.errors import ControlError, ModelNotFound
from vlserve_worker.capture import keep_input, name_of

PAIRS = "/console/models/tagger/pairs"
HOSTILE = "<script>alert(1)</script>\u202egnp"
JPEG = b"\xff\xd8\xff picture"


@pytest.fixture
def pairs(control_api: RunningControl, two_versions: None) -> list[DifferingPair]:
    """Version 1 says music, 2 says something hostile, of each of 20 requests."""
    shadow = {"shadow_percent": 100, "alpha": 1e-100}  # no alarm: the judge waits for more
    control_api.client.start_rollout("tagger", 2, shadow)
    logs = control_api.settings.state_dir / "logs"
    requests = Requests(logs, control_api.gateway)
    behaviours = {
        1: Behaviour(scores=lambda _: {"music": 0.75}),
        2: Behaviour(scores=lambda _: {HOSTILE: 0.5}),
    }
    requests.send(20, behaviours)
    deadline = time.monotonic() + 60
    file = logs / "pairs.jsonl"
    while not file.exists() or file.read_text(encoding="utf-8").count("\n") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [DifferingPair(**json.loads(line)) for line in _lines(file)]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _mark(browser: httpx.Client, pair: DifferingPair, **fields: object) -> httpx.Response:
    form = {
        "token": browser.headers["X-Test-Token"],
        "request_id": pair.request_id,
        "stable": pair.stable,
        "candidate": pair.candidate,
        **fields,
    }
    return browser.post(PAIRS, data=form)


def test_pairs_are_shown_as_text_and_filtered(
    pairs: list[DifferingPair], browser: httpx.Client
) -> None:
    page = browser.get(PAIRS).text
    assert "<script>alert" not in page and "\u202e" not in page
    assert page.count("<bdi>&lt;script&gt;") == 21  # a change and 20 pairs
    assert page.count('class="gate pair"') == 20 and "Another label" in page
    text = HOSTILE.replace("\u202e", "\\u202e")
    for query, count in (
        ({"label": HOSTILE}, 20),
        ({"label": text}, 20),
        ({"kind": "failed"}, 0),
        ({"label": "x"}, 0),
    ):
        assert browser.get(PAIRS, params=query).text.count('class="gate pair"') == count
    assert "影子" in browser.get(PAIRS, params={"lang": "zh"}).text


def test_marks_are_kept_and_exported(
    control_api: RunningControl,
    pairs: list[DifferingPair],
    browser: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = pairs[:3]
    assert _mark(browser, first, right="candidate").status_code == 303
    assert _mark(browser, first, right="stable").status_code == 303
    assert _mark(browser, second, right="neither", right_label="food").status_code == 303
    _mark(browser, third, right="neither")
    labels = {mark.request_id: mark.label for mark in control_api.client.marks("tagger")}
    assert labels == {first.request_id: "music", second.request_id: "food", third.request_id: ""}
    assert "Stable is right <bdi>music</bdi>" in browser.get(PAIRS).text

    _on_this_stack(control_api, monkeypatch)
    out = tmp_path / "labels.jsonl"
    result = CliRunner().invoke(app, ["feedback", "tagger", "--export", str(out)])
    assert result.exit_code == 0 and "2 labels; 1 name no label" in result.output
    assert [json.loads(line) for line in _lines(out)] == [
        {"id": first.request_id, "label": "music"},
        {"id": second.request_id, "label": "food"},
    ]


def _on_this_stack(control_api: RunningControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line ask this control service."""
    client = nullcontext(control_api.client)
    for module in (feedback, capture):
        monkeypatch.setattr(module, "control_client", lambda: client)
    monkeypatch.setattr(feedback, "stack_settings", lambda: control_api.settings)


def test_kept_inputs_are_shown_exported_and_purged(
    control_api: RunningControl,
    pairs: list[DifferingPair],
    browser: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _on_this_stack(control_api, monkeypatch)
    cli, pair = CliRunner(), pairs[0]
    start = cli.invoke(app, ["capture", "start", "tagger", "--share", "0.5", "--days", "1"])
    assert start.exit_code == 0 and "50 % of the requests" in start.output
    folder = control_api.settings.state_dir / "capture" / "tagger"
    fields = {"image": JPEG, "text": HOSTILE.encode()}
    assert keep_input(folder, pair.request_id, fields, 10_000)
    assert "1 inputs are there" in cli.invoke(app, ["capture", "status", "tagger"]).output

    page = browser.get(PAIRS).text
    (source,) = re.findall(r'<img class="kept"[^>]* src="([^"]+)"', page)
    image = browser.get(html.unescape(source))
    assert (image.content, image.headers["content-type"]) == (JPEG, "image/jpeg")
    assert "<script>alert" not in page and "\u202e" not in page
    assert page.count("<bdi>&lt;script&gt;") == 22
    for other in ("field=text", "field=nothing", "request_id=gone"):
        query = f"request_id={pair.request_id}&{other}"
        assert browser.get(f"/console/models/tagger/input?{query}").status_code == 404

    _mark(browser, pair, right="stable")
    out = tmp_path / "labels.jsonl"
    assert cli.invoke(app, ["feedback", "tagger", "--export", str(out)]).exit_code == 0
    (line,) = (json.loads(line) for line in _lines(out))
    assert (line["label"], line["text"]) == ("music", HOSTILE)
    image = tmp_path / line["img"]
    assert image.read_bytes() == JPEG and image.stem == Path(name_of(pair.request_id)).stem
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (out, image, image.parent)]
    assert modes == [0o600, 0o600, 0o700]

    purge = cli.invoke(app, ["capture", "purge", "tagger"])
    assert "0 inputs are there" in purge.output and not folder.exists()
    assert browser.get(html.unescape(source)).status_code == 404
    kinds = [event.kind for event in control_api.client.history("tagger")]
    assert kinds[-3:] == ["capture_started", "capture_stopped", "capture_purged"]


def test_what_cannot_be_kept_is_refused(control_api: RunningControl, two_versions: None) -> None:
    with pytest.raises(ControlError, match="share"):
        control_api.client.start_capture("tagger", 1.5, 1, 1)
    with pytest.raises(ModelNotFound):
        control_api.client.start_capture("never", 0.5, 1, 1)
    assert control_api.client.end_capture("tagger", "stop").share == 0


def test_what_cannot_be_marked_is_refused(
    control_api: RunningControl, pairs: list[DifferingPair], browser: httpx.Client
) -> None:
    pair = pairs[0]
    assert _mark(browser, pair, right="both").status_code == 422
    assert _mark(browser, pair, right="stable", request_id="gone").status_code == 404
    assert _mark(browser, pair, right="stable", token="x").status_code == 403
    assert control_api.client.marks("tagger") == []


def test_the_worst_pairs_are_shown_once_the_rollout_is_taken_back(
    control_api: RunningControl, pairs: list[DifferingPair], browser: httpx.Client
) -> None:
    rollout = "/console/models/tagger/rollout"
    assert "differ most" not in browser.get(rollout).text
    control_api.client.abort("tagger")
    page = browser.get(rollout).text
    assert "differ most" in page and page.count('class="gate pair"') == 10
