"""Trials over HTTP: they reach the engine as a client's request would, and are counted nowhere."""

from functools import partial
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl
from support.running_stack import wait_until
from vlserve.control.api import access
from vlserve.control.api.console.access import TOKEN_HEADER

TRY = "/console/models/tagger/try"


def _send(browser: httpx.Client, query: str = "version=1", **options: object) -> httpx.Response:
    browser.headers[TOKEN_HEADER] = browser.headers["X-Test-Token"]
    return browser.post(f"{TRY}?{query}", **options)  # type: ignore[arg-type]


def test_the_form_follows_the_task(two_versions: None, browser: httpx.Client) -> None:
    page = browser.get(TRY)
    assert 'data-field="image"' in page.text and 'data-field="top_k"' in page.text
    assert "img-src 'self' blob: data:" in page.headers["content-security-policy"]
    assert "vlserve predict tagger --version 1" in page.text


def test_both_versions_get_the_request_as_it_came(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    answer = _send(
        browser,
        "version=1&version=2",
        data={"text": "零基础"},
        files={"image": ("a.jpg", b"\xff\xd8", "image/jpeg")},
    )
    assert answer.status_code == 200
    calls = control_api.engine.sent
    assert [key for _, key, _ in calls] == [("tagger", 1), ("tagger", 2)]
    for _, _, request in calls:
        assert "零基础".encode() in request.body and b"\xff\xd8" in request.body
        assert request.content_type.startswith("multipart/form-data; boundary=")
        assert request.request_id.startswith("trial-")
    assert answer.text.count("<section") == 2
    assert "decode" in answer.text and "20.2 ms" in answer.text


def test_a_trial_is_counted_nowhere(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    _send(browser, data={"text": "x"})
    assert control_api.client.traffic() == []
    logs = control_api.settings.state_dir / "logs"
    assert not any((logs / name).exists() for name in ("access.jsonl", "shadow.jsonl"))


def test_what_a_version_says_is_text(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    control_api.engine.trial_answer = {
        "tags": [{"tag": hostile, "score": 0.5}],
        hostile: hostile,
        "heat_map": '"><script>',
    }
    page = _send(browser, data={"text": hostile}).text
    assert "<script" not in page
    assert page.count("<bdi>&lt;script&gt;alert(1)&lt;/script&gt;\\u202e</bdi>") == 2


def test_boxes_and_heat_maps_are_drawn(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    for answer, markup in (
        ({"regions": [{"box": [0, 0.25, 0.5, 1], "score": 0.5}]}, 'height="0.75"'),
        ({"heat_map": "iVBORw0=", "peak": {"x": 0.5, "y": 0.25}}, "base64,iVBORw0="),
        ({"overlay": "iVBORw0="}, "base64,iVBORw0="),
    ):
        control_api.engine.trial_answer = answer
        page = _send(browser, data={"text": "x"}).text
        assert markup in page and ("data-sent" in page) == ("overlay" not in answer)


@pytest.mark.parametrize(
    ("query", "status"),
    [("version=9", 200), ("version=0", 422), ("", 422), ("version=1&version=1&version=1", 422)],
)
def test_what_cannot_be_asked_is_told(
    two_versions: None, browser: httpx.Client, query: str, status: int
) -> None:
    answer = _send(browser, query, data={"text": "x"})
    assert answer.status_code == status
    if query == "version=9":
        assert "has no version 9" in answer.text


def test_a_version_that_no_instance_holds_is_told(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    control_api.client.unload("tagger", 2)
    send = partial(_send, browser, "version=2", data={"text": "x"})
    wait_until(lambda: "tagger 2 is not loaded" in send().text)
    assert "<option>2</option>" not in browser.get(TRY).text


@pytest.mark.parametrize("what", ["no token", "another origin"])
def test_pages_of_others_cannot_send(
    control_api: RunningControl, two_versions: None, browser: httpx.Client, what: str
) -> None:
    headers = {} if what == "no token" else {TOKEN_HEADER: browser.headers["X-Test-Token"]}
    headers |= {"Origin": "http://127.0.0.1:1"} if what == "another origin" else {}
    answer = browser.post(f"{TRY}?version=1", data={"text": "x"}, headers=headers)
    assert answer.status_code == 403 and control_api.engine.sent == []


def test_a_body_over_the_limit_is_refused(
    two_versions: None, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_TRIAL_BYTES", 10)
    assert _send(browser, content=b"x" * 11).status_code == 413


def test_a_model_without_a_loaded_version_has_a_page(
    control_api: RunningControl, browser: httpx.Client, archives: list[Path]
) -> None:
    control_api.client.register(archives[0])
    control_api.client.unload("tagger", 1)
    assert "No version is loaded" in browser.get(TRY).text
