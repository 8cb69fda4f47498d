"""Each test here runs for every recording, see tests/recorded/README.md."""

from pathlib import Path

import pytest

from support.recorded import RECORDINGS, unpack


@pytest.fixture(scope="session", params=RECORDINGS)
def recording(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def project(recording: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded project folder. Tests read it; those that write copy it first."""
    return unpack(recording, tmp_path_factory.mktemp("recorded"))
