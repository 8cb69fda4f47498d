"""Echo archives, packed once."""

import zipfile
from pathlib import Path

import pytest

from support.archive_members import Members
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import unpack_archive


@pytest.fixture(scope="session")
def echo_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_echo(tmp_path_factory.mktemp("echo"), "echo", 3)


@pytest.fixture(scope="session")
def echo_folder(echo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked; read only by agreement."""
    folder = tmp_path_factory.mktemp("unpacked") / "echo"
    unpack_archive(echo_archive, folder)
    return folder


@pytest.fixture
def members(echo_archive: Path) -> Members:
    with zipfile.ZipFile(echo_archive) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
