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
    page = browser.get(LOGIN)
    assert page.status_code == 200 and 'type="password"' in page.text
    key = named_keys(control_api).add("anna", [Role.RELEASE])
    login = browser.post(LOGIN, data={"key": f" {key}\n"})
    assert login.status_code == 200
    cookie = login.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/console"))
    assert "Secure" not in cookie and key not in login.text + cookie
    home = browser.get("/console/").text
    assert "Signed in by the key anna: read, release." in home and "may look" not in home
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
    refusal = browser.post(LOGIN, data=form)
    assert refusal.status_code in (401, 422)
    assert COOKIE not in refusal.cookies
    assert not form.get("key") or form["key"] not in refusal.text
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
    login = browser.post(LOGIN, data={"key": key})
    token = re.search(r'data-token="([^"]+)"', login.text)
    assert token
    assert "It may look" in browser.get("/console/models/tagger").text
    refusal = browser.post("/console/models/tagger/release", data={"token": token[1], "version": 2})
    assert refusal.status_code == 403
    assert "needs the role release, and the key dashboard has read" in refusal.text
    upload = {"X-Console-Token": token[1], "Content-Type": "application/octet-stream"}
    refusal = browser.post("/console/versions", content=b"x", headers=upload)
    assert refusal.status_code == 403
    assert "needs the role register" in refusal.json()["error"]["message"]
    assert control_api.client.model("tagger").stable == 1
    assert "call_refused" in browser.get("/console/models/tagger/history").text


def test_sessions_of_one_key_push_out_no_other_s(
    control_api: RunningControl, browser: httpx.Client
) -> None:
    assert browser.get(control_api.client.console_link().path).status_code == 200
    link = control_api.client.console_link().path
    key = named_keys(control_api).add("dashboard", [Role.READ])
    with httpx.Client(base_url=control_api.url, headers=browser.headers) as other:
        for _ in range(60):
            assert other.post(LOGIN, data={"key": key}).status_code == 200
            headers = {"Authorization": f"Bearer {key}"}
            assert other.post("/console-links", json={}, headers=headers).status_code == 200
    assert browser.get("/console/").status_code == 200
    assert browser.get(link).status_code == 200
