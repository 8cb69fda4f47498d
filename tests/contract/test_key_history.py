"""Whose key it was: the history tells of each act and of each refusal by the name of the key."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from support.key_calls import call, named_keys
from vlserve.control.api.act_limit import MOST_ACTS_A_MINUTE
from vlserve.control.named_keys import KEYS_FILE, Role

Keys = dict[str, str]


@pytest.fixture
def keys(control_api: RunningControl) -> Keys:
    store = named_keys(control_api)
    holders = {
        "dashboard": (Role.READ,),
        "pipeline": (Role.REGISTER,),
        "anna": (Role.RELEASE,),
    }
    return {name: store.add(name, roles) for name, roles in holders.items()}


@pytest.fixture
def http(control_api: RunningControl) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=control_api.url, trust_env=False) as client:
        yield client


def post(http: httpx.Client, key: str, path: str, body: object) -> httpx.Response:
    return http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


def register(http: httpx.Client, key: str, archive: Path, **query: str) -> httpx.Response:
    return http.post(
        "/versions",
        params=query,
        content=archive.read_bytes(),
        headers={
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/octet-stream",
        },
    )


def test_each_act_has_the_name_of_the_key(
    control_api: RunningControl, http: httpx.Client, keys: Keys, archives: list[Path]
) -> None:
    for archive in archives[:2]:
        answer = register(http, keys["pipeline"], archive, by="somebody-else")
        assert answer.status_code == 200, answer.text
    release = {"version": 1, "now": True}
    assert post(http, keys["anna"], "/models/tagger/releases", release).status_code == 200
    control_api.client.start_rollout("tagger", 2)
    for word in ("pause", "abort"):
        answer = post(http, keys["anna"], f"/models/tagger/release/{word}", {})
        assert answer.status_code == 200, answer.text
    events = control_api.client.history("tagger")
    keys_of = {(event.kind, event.version): event.detail.get("key") for event in events}
    assert keys_of["registered", 1] == keys_of["loaded", 2] == "pipeline"
    assert keys_of["released", 1] == keys_of["paused", 2] == keys_of["aborted", 1] == "anna"
    assert keys_of["release_started", 2] == "owner"
    assert {event.detail["by"] for event in events if event.kind == "registered"} == {"pipeline"}


def test_refusals_are_counted_by_key_call_and_model(
    control_api: RunningControl, http: httpx.Client, keys: Keys, two_versions: None
) -> None:
    count = len(control_api.client.history("tagger"))
    for _ in range(30):
        assert call(http, keys["dashboard"], "POST", "/models/tagger/rollback").status_code == 403
        assert call(http, keys["anna"], "POST", "/versions").status_code == 403
    refusals = control_api.client.refusals()
    assert {
        (refusal.key, refusal.call, refusal.needs, refusal.model, refusal.times)
        for refusal in refusals
    } == {
        ("dashboard", "POST /models/{model}/rollback", "release", "tagger", 30),
        ("anna", "POST /versions", "register", "", 30),
    }
    last = control_api.client.history("tagger")[-1]
    assert (last.kind, last.detail["key"], last.detail["times"]) == (
        "call_refused",
        "dashboard",
        30,
    )
    assert len(control_api.client.history("tagger")) == count + 1
    assert control_api.client.model("tagger").stable == 1


def test_keys_refusals_and_names_outlive_a_restart(tmp_path: Path) -> None:
    with running_control(tmp_path) as first:
        key = named_keys(first).add("dashboard", [Role.READ])
        with httpx.Client(base_url=first.url, trust_env=False) as http:
            assert call(http, key, "POST", "/versions").status_code == 403
            assert call(http, key, "POST", "/versions").status_code == 403
    with (
        running_control(tmp_path) as second,
        httpx.Client(base_url=second.url, trust_env=False) as http,
    ):
        assert call(http, key, "GET", "/models").status_code == 200
        assert [refusal.times for refusal in second.client.refusals()] == [2]


def test_a_revoked_key_opens_nothing_from_the_next_request_on(
    control_api: RunningControl, http: httpx.Client, keys: Keys
) -> None:
    page = call(http, keys["anna"], "POST", "/console-links").json()["path"]
    link = call(http, keys["anna"], "POST", "/console-links").json()["path"]
    assert http.get(page).status_code == 200
    assert http.get("/console/").status_code == 200
    with http.stream("GET", "/console/live/now") as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines) == "event: part"
        named_keys(control_api).revoke("anna")
        assert call(http, keys["anna"], "GET", "/models").status_code == 401
        assert call(http, keys["dashboard"], "GET", "/models").status_code == 200
        for _ in lines:  # until the stream ends
            continue
    assert http.get("/console/").status_code == 401
    assert http.get("/console/live/now").status_code == 401
    assert httpx.get(control_api.url + link, trust_env=False).status_code == 401
    new = named_keys(control_api).add("anna", [Role.READ])
    assert call(http, new, "GET", "/models").status_code == 200
    assert call(http, keys["anna"], "GET", "/models").status_code == 401
    assert http.get("/console/").status_code == 401


def test_a_key_acts_so_often_a_minute_and_the_owner_as_he_likes(
    control_api: RunningControl,
    http: httpx.Client,
    keys: Keys,
    two_versions: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control_api.client.start_rollout("tagger", 2)
    answers = [
        post(http, keys["anna"], f"/models/tagger/release/{word}", {})
        for _ in range(MOST_ACTS_A_MINUTE // 2 + 5)
        for word in ("pause", "resume")
    ]
    refusals = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refusals} == {"too_many_acts"}
    events = control_api.client.history("tagger")  # the judge's are among them
    acts = [event for event in events if event.detail.get("key") == "anna"]
    assert 0 < len(acts) <= MOST_ACTS_A_MINUTE
    assert call(http, keys["anna"], "GET", "/models").status_code == 200
    abort = post(http, keys["anna"], "/models/tagger/release/abort", {})
    assert abort.json()["status"] == "aborted"


def test_a_key_is_nowhere_in_clear_text(tmp_path: Path, archives: list[Path]) -> None:
    with running_control(tmp_path) as control:
        key = named_keys(control).add("pipeline", [Role.REGISTER])
        with httpx.Client(base_url=control.url, trust_env=False) as http:
            assert register(http, key, archives[0]).status_code == 200
            assert call(http, key, "POST", "/models/tagger/rollback").status_code == 403
            assert call(http, key, "POST", f"/console-links?key={key[:-1]}x").status_code == 200
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == KEYS_FILE for file in files)
    assert [file for file in files if key.encode() in file.read_bytes()] == []


def test_keys_of_a_damaged_file_open_nothing_and_health_says_so(
    control_api: RunningControl, http: httpx.Client, keys: Keys
) -> None:
    file = control_api.settings.model_store / KEYS_FILE
    good = file.read_text(encoding="utf-8")
    for bad in ("{", '{"schema": 2, "keys": []}', good.replace('"read"', '"root"')):
        file.write_text(bad, encoding="utf-8")
        assert call(http, keys["dashboard"], "GET", "/models").status_code == 401
        assert KEYS_FILE in control_api.client.health().status
    file.write_text(good, encoding="utf-8")
    file.chmod(0o666)
    assert call(http, keys["dashboard"], "GET", "/models").status_code == 401
    assert "chmod 600" in control_api.client.health().status
    file.chmod(0o600)
    assert call(http, keys["dashboard"], "GET", "/models").status_code == 200
    assert KEYS_FILE not in control_api.client.health().status


def test_a_wrong_key_costs_no_more_than_a_right_one_with_all_keys_there(
    control_api: RunningControl, http: httpx.Client
) -> None:
    """By what is compared, not by a clock: every key, whichever is offered."""
    store = named_keys(control_api)
    right = [store.add(f"key-{number}", [Role.READ]) for number in range(20)]
    for key in (*right, "vlserve_wrong", "x" * 100_000, "", "é"):
        holder = store.holder_of(key)
        assert (holder is not None) is (key in right)
    assert call(http, right[-1], "GET", "/models").status_code == 200
    assert call(http, right[-1] + "x", "GET", "/models").status_code == 401
    both = [("Authorization", f"Bearer {right[0]}"), ("Authorization", f"Bearer {right[1]}")]
    assert http.get("/models", headers=both).status_code == 401
    assert http.get("/models", params={"key": right[0]}).status_code == 401
