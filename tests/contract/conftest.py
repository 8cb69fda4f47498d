"""The control API, and archives to send to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.control_api_server import RunningControl, running_control
from vlserve.exporter.echo import pack_echo


@pytest.fixture
def control_api(tmp_path: Path) -> Iterator[RunningControl]:
    with running_control(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """tagger 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("archives")
    return [pack_echo(folder, "tagger", version) for version in (1, 2, 3)]
