"""The console over HTTP: who gets in, what it shows, what acts, and what it refuses."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from support.rollout_traffic import Behaviour, Requests
from vlserve.control.api.console import live
from vlserve.control.api.console.access import COOKIE, TOKEN_HEADER
from vlserve.exporter.echo import pack_echo
from vlserve_worker.capture import keep_input

PAGES = [
    "/console/",
    "/console/register",
    "/console/load-tests",
    "/console/batch-jobs",
    "/console/models/tagger",
    "/console/models/tagger/rollout",
    "/console/models/tagger/pairs",
    "/console/models/tagger/try",
    "/console/models/tagger/tags",
    "/console/models/tagger/history",
    "/console/models/tagger/versions/1",
]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def _act(browser: httpx.Client, path: str, **fields: object) -> httpx.Response:
    form = {"token": browser.headers["X-Test-Token"], **fields}
    return browser.post(path, data=form)


def test_a_link_works_once(control_api: RunningControl) -> None:
    path = control_api.client.console_link().path
    with (
        httpx.Client(base_url=control_api.url) as first,
        httpx.Client(base_url=control_api.url) as second,
    ):
        answer = first.get(path)
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/console"))
        assert first.get("/console/").status_code == 200
        assert second.get(path).status_code == 401
        assert second.get("/console/").status_code == 401


@pytest.fixture(scope="module")
def shared_control(
    tmp_path_factory: pytest.TempPathFactory, archives: list[Path]
) -> Iterator[RunningControl]:
    """One service for who only reads: tagger 1 has all traffic, 2 is ready."""
    with running_control(tmp_path_factory.mktemp("shared")) as control:
        for archive in archives[:2]:
            control.client.register(archive)
        control.client.release("tagger", 1)
        yield control


@pytest.fixture(scope="module")
def reader(shared_control: RunningControl) -> Iterator[httpx.Client]:
    """A browser that came by the link and only reads."""
    with httpx.Client(base_url=shared_control.url) as client:
        assert client.get(shared_control.client.console_link().path).status_code == 200
        yield client


@pytest.mark.parametrize("path", [*PAGES, "/console/live/now"])
def test_without_a_session_nothing_is_shown(shared_control: RunningControl, path: str) -> None:
    for cookies in ({}, {COOKIE: "guessed"}):
        answer = httpx.get(shared_control.url + path, cookies=cookies)
        assert answer.status_code == 401
        assert "vlserve console" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_page_is_shown(reader: httpx.Client, path: str, language: str) -> None:
    answer = reader.get(path, params={"lang": language})
    assert answer.status_code == 200
    assert f'lang="{language}"' in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert "'unsafe" not in answer.headers["content-security-policy"]


def test_the_language_is_that_of_the_browser_until_it_is_switched(browser: httpx.Client) -> None:
    chinese = {"Accept-Language": "fr, zh-CN;q=0.9, en;q=0.8"}
    assert "现状" in browser.get("/console/", headers=chinese).text
    browser.get("/console/", params={"lang": "en"}, headers=chinese)
    assert "现状" not in browser.get("/console/", headers=chinese).text


def test_a_rollout_is_started_paused_aborted_and_rolled_back(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    control = control_api.client
    start = _act(browser, "/console/models/tagger/start", version=2)
    assert (start.status_code, start.headers["location"]) == (
        303,
        "/console/models/tagger/rollout",
    )
    page = browser.get("/console/models/tagger/rollout").text
    assert "0 of 400" in page and "Sample ratio" in page
    for word, status in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        assert _act(browser, f"/console/models/tagger/{word}").status_code == 303
        assert control.rollout("tagger").status == status
    assert _act(browser, "/console/models/tagger/release", version=2).status_code == 303
    assert control.model("tagger").stable == 2
    assert "Roll back to 1" in browser.get("/console/models/tagger/versions/1").text
    assert "Roll back to" not in browser.get("/console/models/tagger/versions/2").text
    assert _act(browser, "/console/models/tagger/rollback", version=1).status_code == 303
    assert control.model("tagger").stable == 1
    refusal = _act(browser, "/console/models/tagger/rollback")
    assert refusal.status_code == 409 and "stable version" in refusal.text


def test_a_rollout_has_its_own_policy(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    page = browser.get("/console/models/tagger").text
    assert 'name="weights" value="5, 25, 50, 100"' in page
    assert re.search(r'name="hold_s"[^>]* value="60"', page)
    own = {
        **{"version": 2, "weights": "20, 100", "hold_s": "1.5", "shadow_percent": "", "keep_s": 9},
        **{"candidate": 10, "stable": 11, "units": 12, "pairs": 13, "unit": "request"},
    }
    assert _act(browser, "/console/models/tagger/start", **own).status_code == 303
    rollout = control_api.client.rollout("tagger")
    assert (rollout.weights, rollout.hold_s) == ((20, 100), 1.5)
    assert "0 of 10" in browser.get("/console/models/tagger/rollout").text
    _act(browser, "/console/models/tagger/abort")
    for wrong in ({"weights": "20, x"}, {"weights": "50, 20"}, {"unit": "day"}, {"hold_s": "-1"}):
        refusal = _act(browser, "/console/models/tagger/start", **own | wrong)
        assert refusal.status_code == 422 and next(iter(wrong)) in refusal.text


def test_a_broken_policy_is_told(tmp_path: Path, archives: list[Path]) -> None:
    (tmp_path / "serving_config").mkdir()
    (tmp_path / "serving_config" / "rollout.yaml").write_text("alpha: many", encoding="utf-8")
    with running_control(tmp_path) as control, httpx.Client(base_url=control.url) as browser:
        for archive in archives[:2]:
            control.client.register(archive)
        control.client.release("tagger", 1)
        browser.get(control.client.console_link().path)
        page = browser.get("/console/models/tagger")
    assert page.status_code == 200 and "rollout.yaml: alpha" in page.text


def test_an_archive_is_registered(
    control_api: RunningControl, browser: httpx.Client, archives: list[Path]
) -> None:
    headers = {
        TOKEN_HEADER: browser.headers["X-Test-Token"],
        "Content-Type": "application/octet-stream",
    }
    answer = browser.post(
        "/console/versions?name=tagger-1.mar", content=archives[0].read_bytes(), headers=headers
    )
    assert answer.json() == {"page": "/console/models/tagger"}
    assert control_api.client.model("tagger").versions[0].state == "ready"
    refusal = browser.post("/console/versions?name=x.mar", content=b"PK", headers=headers)
    assert refusal.status_code == 422 and refusal.json()["error"]["message"]


@pytest.mark.parametrize("what", ["no token", "another token", "no origin", "another port"])
def test_pages_of_others_cannot_act(
    control_api: RunningControl, two_versions: None, browser: httpx.Client, what: str
) -> None:
    """A browser sends the cookie from any port of this host; the token it does not."""
    token = {"no token": "", "another token": "x" * 43}.get(what, browser.headers["X-Test-Token"])
    headers = {"Origin": "http://127.0.0.1:1"} if what == "another port" else {}
    if what == "no origin":
        del browser.headers["Origin"]
    for path, fields in (
        ("/console/models/tagger/release", {"version": 2}),
        ("/console/models/tagger/start", {"version": 2}),
        ("/console/models/tagger/rollback", {}),
        ("/console/models/tagger/promote", {}),
    ):
        answer = browser.post(path, data={"token": token, **fields}, headers=headers)
        assert answer.status_code == 403, path
    answer = browser.post(
        "/console/versions", content=b"PK", headers={**headers, TOKEN_HEADER: token or "none"}
    )
    assert answer.status_code == 403
    assert control_api.client.model("tagger").stable == 1


def test_the_cookie_opens_nothing_but_the_console(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    assert browser.get("/models").status_code == 401
    body = {"version": 2, "now": True}
    assert browser.post("/models/tagger/releases", json=body).status_code == 401
    assert browser.post("/console-links", json={}).status_code == 401


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test:80"])
def test_another_host_is_refused(browser: httpx.Client, host: str) -> None:
    assert browser.get("/console/", headers={"Host": host}).status_code == 403


def test_unknown_models_and_versions_are_pages(browser: httpx.Client, two_versions: None) -> None:
    for path in ("models/never", "models/never/rollout", "models/tagger/versions/9"):
        answer = browser.get(f"/console/{path}")
        assert answer.status_code == 404 and "<h1>" in answer.text
    assert browser.get("/console/models/%3Cscript%3E").status_code == 422
    assert "<script>" not in browser.get("/console/models/%3Cscript%3E").text.split("</head>")[1]


def test_live_figures_follow_what_changes(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    with browser.stream("GET", "/console/live/now") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        stream = ""
        for text in events.iter_text():
            stream += text
            if stream.count("event: part") == 1 and "\n\n" in stream:
                control_api.client.release("tagger", 2)
            if stream.count("event: part") == 2:
                break
        assert "released 2" in stream


def test_the_first_live_figures_are_as_new_as_the_page(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    """Older ones, of another viewer, would have the page loaded again and again."""
    for version in (1, 2):
        control_api.client.release("tagger", version)
        with browser.stream("GET", "/console/live/models/tagger") as events:
            first = next(events.iter_text())
        assert f'data-state=\\"{version} ' in first


def test_the_page_of_no_rollout_is_told_of_the_first(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    """What is told has another state then, by which the page is loaded again."""
    states: list[str] = []
    with browser.stream("GET", "/console/live/models/tagger/rollout") as events:
        for text in events.iter_text():
            states += re.findall(r'data-state=\\"([^"\\]*)\\"', text)
            if len(states) > 1:
                break
            control_api.client.start_rollout("tagger", 2, {"hold_s": 600})
    assert states == ["", "1 running"]


def test_more_viewers_than_are_served_get_a_page_that_says_so(
    browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_VIEWERS", 0)
    answer = browser.get("/console/live/now")
    assert answer.status_code == 503 and "0 pages follow live figures" in answer.text


def test_labels_and_titles_are_text_on_every_page(tmp_path: Path) -> None:
    """Marks of direction would turn what stands beside a label."""
    hostile = "<script>alert(1)</script>\u202e\u2067"
    with running_control(tmp_path) as control, httpx.Client(base_url=control.url) as browser:
        for version in (1, 2):
            labels = [hostile, f"{hostile} {version}"]
            control.client.register(pack_echo(tmp_path, "tagger", version, labels))
        control.client.release("tagger", 1)
        control.client.start_rollout("tagger", 2, {"shadow_percent": 100, "hold_s": 600})
        behaviours = {
            version: Behaviour(scores=lambda _, name=f"{hostile} {version}": {name: 0.9})  # type: ignore[misc]
            for version in (1, 2)
        }
        logs = tmp_path / ".vlserve" / "logs"
        requests = Requests(logs, control.gateway)
        requests.send(20, behaviours)
        answer = {"request_id": "a", "model": "tagger", "version": 1, "scores": {hostile: 0.9}}
        requests.write("answers", answer | {"at": datetime.now(UTC).isoformat()})
        deadline = time.monotonic() + 60
        while control.client.rollout("tagger").status == "running":  # the judge takes it back
            assert time.monotonic() < deadline
            time.sleep(0.02)
        control.client.start_capture("tagger", 1.0, 1, 16)
        folder = tmp_path / ".vlserve" / "capture" / "tagger"
        keep_input(folder, "r0", {"text": hostile.encode()}, 10**6)
        browser.get(control.client.console_link().path)
        paths = [*PAGES, "/console/models/tagger/versions/2"]
        pages = {path: browser.get(path).text for path in paths}
    for path, text in pages.items():
        assert "<script>alert" not in text, path
        assert not {"\u202e", "\u2067"} & set(text), path
    markup = "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\u2067"
    for page in ("pairs", "rollout", "tags", "versions/2"):
        assert markup in pages[f"/console/models/tagger/{page}"], page
