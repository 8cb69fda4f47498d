"""The archive of `vlserve serve`: which file is meant, what is refused, and that it is a copy."""

import os
import zipfile
from pathlib import Path

import pytest

from support.signers import KeyPair, key_pair
from vlserve.control.domain import State
from vlserve.errors import ArchiveError, SignatureMissing, SignatureUnknownKey
from vlserve.exporter.echo import pack_echo
from vlserve.settings_sections import TrustSettings
from vlserve.signing.archives import sign_archive
from vlserve.stack.lone_archive import archive_in, taken_over

ANYBODY = TrustSettings()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return pack_echo(tmp_path / "models", "tagger", 3)


@pytest.fixture
def signer(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path, "release")


def test_a_folder_means_the_one_archive_in_it(archive: Path) -> None:
    folder = archive.parent
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.mar")
    assert archive_in(folder) == archive == archive_in(archive)
    pack_echo(folder, "tagger", 4)
    with pytest.raises(ArchiveError, match=r"holds 2 \(tagger-3.mar, tagger-4.mar\)"):
        archive_in(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ArchiveError, match=r"holds 0 \(none\)"):
        archive_in(folder / "empty")


def test_the_copy_is_served_whatever_becomes_of_the_file(archive: Path, tmp_path: Path) -> None:
    record = taken_over(archive, tmp_path / "store", "triton", ANYBODY)
    bytes_before = archive.read_bytes()
    archive.write_bytes(b"another file")
    assert record.archive.read_bytes() == bytes_before
    assert (record.model, record.version, record.state) == ("tagger", 3, State.STABLE)
    assert record.engine == "triton"


def test_what_is_no_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr("more.txt", "not in the manifest")
    with pytest.raises(ArchiveError, match=r"tagger-3\.mar"):
        taken_over(archive, tmp_path / "store", "torchserve", ANYBODY)


def test_the_signature_beside_it_is_checked(archive: Path, signer: KeyPair, tmp_path: Path) -> None:
    enforce = TrustSettings(mode="enforce", keys=(signer.public,))
    with pytest.raises(SignatureMissing):
        taken_over(archive, tmp_path / "unsigned", "torchserve", enforce)
    sign_archive(archive, signer.key)
    record = taken_over(archive, tmp_path / "signed", "torchserve", enforce)
    assert record.signer is not None
    assert record.signer.name == "release"
    other = TrustSettings(mode="enforce", keys=(key_pair(tmp_path, "other").public,))
    with pytest.raises(SignatureUnknownKey):
        taken_over(archive, tmp_path / "others", "torchserve", other)
    warn = other.model_copy(update={"mode": "warn"})
    assert taken_over(archive, tmp_path / "warned", "torchserve", warn).signer is None
