"""The control API, and archives to send to it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from vlserve.exporter.echo import pack_echo


@pytest.fixture
def control_api(tmp_path: Path) -> Iterator[RunningControl]:
    with running_control(tmp_path) as control:
        yield control


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """tagger 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("archives")
    return [pack_echo(folder, "tagger", version) for version in (1, 2, 3)]


@pytest.fixture
def browser(control_api: RunningControl) -> Iterator[httpx.Client]:
    """A browser that came by the link; ``browser.headers`` are those of a form of its own page."""
    with httpx.Client(base_url=control_api.url) as client:
        page = client.get(control_api.client.console_link().path)
        assert page.status_code == 200
        token = re.search(r'data-token="([^"]+)"', page.text)
        assert token
        client.headers["Origin"] = control_api.url
        client.headers["X-Test-Token"] = token[1]
        yield client


@pytest.fixture
def two_versions(control_api: RunningControl, archives: list[Path]) -> None:
    for archive in archives[:2]:
        control_api.client.register(archive)
    control_api.client.release("tagger", 1)
