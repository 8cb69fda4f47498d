"""Named keys at the control service: what each role may do, on every route of the app."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from support.control_fakes import FakeEngine, FakeGateway
from support.key_calls import call, named_keys
from vlserve.control.api.app import create_app
from vlserve.control.api.console.access import COOKIE
from vlserve.control.api.roles import NEEDS
from vlserve.control.assembly import assemble
from vlserve.control.named_keys import Role
from vlserve.settings import Settings

KEYS = {
    "reader": (Role.READ,),
    "releaser": (Role.RELEASE,),
    "registrar": (Role.REGISTER,),
    "both": (Role.RELEASE, Role.REGISTER),
}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControl]:
    """One service for what never gets past its door."""
    with running_control(tmp_path_factory.mktemp("roles")) as control:
        yield control


@pytest.fixture(scope="module")
def http(door: RunningControl) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def keys(door: RunningControl) -> dict[str, str]:
    return {name: named_keys(door).add(name, roles) for name, roles in KEYS.items()}


def _leaves(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from _leaves(inner.routes) if inner else (route,)


def routes_of_the_app(folder: Path) -> set[str]:
    settings = Settings(project_dir=folder)
    control = assemble(settings, FakeEngine(), FakeGateway())
    try:
        app = create_app(control, settings, "key")
        routes = [route for route in _leaves(app.routes) if hasattr(route, "dependant")]
        return {f"{method} {route.path}" for route in routes for method in route.methods}
    finally:
        control.ledger.close()


def test_each_route_of_the_app_has_its_roles_and_nothing_else_is_in_the_table(
    tmp_path: Path,
) -> None:
    routes = routes_of_the_app(tmp_path)
    assert len(routes) > 60
    assert routes == set(NEEDS)


def _filled(path: str) -> str:
    """Return the path of a route. The word is none, so that nothing is done where it is let in."""
    values = {"model": "nothing", "name": "nothing", "version": "1", "word": "nothing"}
    return re.sub(r"\{(\w+)(:path)?\}", lambda match: values.get(match[1], "nothing"), path)


API = [route for route in sorted(NEEDS) if " /console/" not in route and NEEDS[route]]
CONSOLE = [route for route in sorted(NEEDS) if " /console/" in route and NEEDS[route]]


@pytest.mark.parametrize("route", API)
def test_a_key_is_refused_where_it_lacks_a_role_and_nowhere_else(
    http: httpx.Client, keys: dict[str, str], route: str
) -> None:
    method, path = route.split(" ")
    for name, roles in KEYS.items():
        answer = call(http, keys[name], method, _filled(path))
        lacks = not NEEDS[route] <= {Role.READ, *roles}
        assert (answer.status_code == 403) is lacks, (name, answer.text)
        if lacks and not path.startswith("/torchserve"):
            assert answer.json()["error"]["code"] == "role_missing"


@pytest.mark.parametrize("route", CONSOLE)
def test_a_session_may_do_what_its_key_may(
    http: httpx.Client, keys: dict[str, str], route: str
) -> None:
    method, path = route.split(" ")
    if "/live/" in path:
        path = "/console/live/models/Nothing"  # no name of a model: the stream does not begin
    for name, roles in KEYS.items():
        headers = enter(http, call(http, keys[name], "POST", "/console-links").json()["path"])
        answer = http.request(method, _filled(path), data={}, headers=headers)
        lacks = not NEEDS[route] <= {Role.READ, *roles}
        refused = answer.status_code == 403 and f"the key {name} has" in answer.text
        assert refused is lacks, (name, answer.text)


def enter(browser: httpx.Client, path: str) -> dict[str, str]:
    """Have a browser follow a link; return the headers of what the console's own pages send."""
    page = browser.get(path)
    token = re.search(r'data-token="([^"]+)"', page.text)
    assert token and browser.cookies.get(COOKIE)
    return {"Origin": str(browser.base_url).rstrip("/"), "X-Console-Token": token[1]}


def test_methods_that_a_route_has_not_open_no_way_around(
    http: httpx.Client, keys: dict[str, str]
) -> None:
    for path in ("/models/nothing/rollback", "/versions", "/models/nothing/releases"):
        for method in ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"):
            answer = call(http, keys["reader"], method, path)
            assert answer.status_code in (404, 405), (method, path)
    for path in ("/versions/", "//versions", "/models/nothing/../nothing/rollback", "/VERSIONS"):
        answer = call(http, keys["reader"], "POST", path)
        assert answer.status_code in (307, 403, 404, 415), path
        assert answer.status_code != 307 or answer.headers["location"] == http.base_url.join(
            "/versions"
        )
