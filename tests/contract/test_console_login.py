"""The console by a key: who is let in by the login page, and what a key that may only look gets."""

import re
from collections.abc import Iterator

import httpx
import pytest

from support.control_api_server import RunningControl
from support.key_calls import named_keys
from vlserve.control.api.console.access import COOKIE
from vlserve.control.named_keys import Role

LOGIN = "/console/login"


@pytest.fixture
def browser(control_api: RunningControl) -> Iterator[httpx.Client]:
    headers = {"Origin": control_api.url}
    with httpx.Client(base_url=control_api.url, headers=headers, trust_env=False) as client:
        yield client


def test_the_login_page_lets_in_who_has_a_key(
    control_api: RunningControl, browser: httpx.Client
) -> None:
    asked = browser.get(LOGIN)
    assert asked.status_code == 200 and 'type="password"' in asked.text
    key = named_keys(control_api).add("anna", [Role.RELEASE])
    entered = browser.post(LOGIN, data={"key": f" {key}\n"})
    assert entered.status_code == 200
    cookie = entered.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/console"))
    assert "Secure" not in cookie and key not in entered.text + cookie
    shown = browser.get("/console/").text
    assert "Signed in by the key anna: read, release." in shown and "may look" not in shown
    named_keys(control_api).revoke("anna")
    assert browser.get("/console/").status_code == 401


def test_the_owner_s_key_lets_in_too(control_api: RunningControl, browser: httpx.Client) -> None:
    assert browser.post(LOGIN, data={"key": control_api.key}).status_code == 200
    assert "Signed in" not in browser.get("/console/").text


@pytest.mark.parametrize(
    "form", [{"key": "vlserve_wrong"}, {"key": ""}, {}, {"key": "x" * 129}, {"key": "é" * 60}]
)
def test_a_wrong_key_is_told_so_and_shown_nowhere(
    control_api: RunningControl, browser: httpx.Client, form: dict[str, str]
) -> None:
    named_keys(control_api).add("anna", [Role.READ])
    refused = browser.post(LOGIN, data=form)
    assert refused.status_code in (401, 422)
    assert COOKIE not in refused.cookies
    assert not form.get("key") or form["key"] not in refused.text
    assert browser.get("/console/").status_code == 401


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
def test_a_page_of_another_site_signs_nobody_in(
    control_api: RunningControl, origin: str | None
) -> None:
    key = named_keys(control_api).add("mallory", [Role.READ])
    headers = {"Origin": origin} if origin else {}
    url = f"{control_api.url}{LOGIN}"
    answer = httpx.post(url, data={"key": key}, headers=headers, trust_env=False)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert httpx.get(url, params={"key": key}, trust_env=False).cookies.get(COOKIE) is None


def test_who_may_only_look_is_told_why_nothing_acts(
    control_api: RunningControl, two_versions: None, browser: httpx.Client
) -> None:
    key = named_keys(control_api).add("dashboard", [Role.READ])
    entered = browser.post(LOGIN, data={"key": key})
    token = re.search(r'data-token="([^"]+)"', entered.text)
    assert token
    assert "It may look" in browser.get("/console/models/tagger").text
    refused = browser.post("/console/models/tagger/release", data={"token": token[1], "version": 2})
    assert refused.status_code == 403
    assert "needs the role release, and the key dashboard has read" in refused.text
    upload = {"X-Console-Token": token[1], "Content-Type": "application/octet-stream"}
    refused = browser.post("/console/versions", content=b"x", headers=upload)
    assert refused.status_code == 403
    assert "needs the role register" in refused.json()["error"]["message"]
    assert control_api.client.model("tagger").stable == 1
    assert "call_refused" in browser.get("/console/models/tagger/history").text


def test_sessions_of_one_key_push_out_no_other_s(
    control_api: RunningControl, browser: httpx.Client
) -> None:
    assert browser.get(control_api.client.console_link().path).status_code == 200
    waiting = control_api.client.console_link().path
    key = named_keys(control_api).add("dashboard", [Role.READ])
    with httpx.Client(base_url=control_api.url, headers=browser.headers) as other:
        for _ in range(60):
            assert other.post(LOGIN, data={"key": key}).status_code == 200
            asked = {"Authorization": f"Bearer {key}"}
            assert other.post("/console-links", json={}, headers=asked).status_code == 200
    assert browser.get("/console/").status_code == 200
    assert browser.get(waiting).status_code == 200
