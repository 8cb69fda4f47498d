"""Fixtures: handlers of adopted archives, started in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.started_handlers import Start, starting


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a handler's source; what it changes of this process is undone."""
    with starting(tmp_path, monkeypatch) as starter:
        yield starter
