"""An archive of the store, as an engine reads it: it has the bytes that were registered."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

from vlserve.control.domain import VersionRecord
from vlserve.control.store.disk_space import has_room
from vlserve.errors import ArchiveLost, StoreUnwritable

_CHUNK_BYTES = 1024 * 1024


class ArchiveBytes:
    """Thread-safe."""

    def __init__(self, private: Path | None = None) -> None:
        """``private``: a folder that only this service writes to. Engines read copies there, made
        as the bytes were checked, so that whoever can write to the store changes nothing in
        between; None: they read from the store."""
        self._private = private
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)  # what a crash cut short

    @contextmanager
    def checked(self, record: VersionRecord) -> Iterator[Path]:
        """Yield the file that an engine is to read, which has the bytes that were registered.

        Raises:
            ArchiveLost: the archive is gone, or has other bytes.
            StoreUnwritable: there is no room for a copy.
        """
        if self._private is None:
            with _read(record) as archive:
                sha256 = hashlib.file_digest(archive, "sha256").hexdigest()
            _refuse_other(record, sha256)
            yield record.archive
            return
        folder = self._private / uuid4().hex
        try:
            with _read(record) as archive:
                copy = _copied(archive, folder, record)
            yield copy
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _read(record: VersionRecord) -> Iterator[BufferedReader]:
    try:
        with record.archive.open("rb") as archive:
            yield archive
    except FileNotFoundError as error:
        raise ArchiveLost(f"{record.archive} is gone: {_mend(record)}") from error
    except OSError as error:
        raise ArchiveLost(
            f"{record.archive} cannot be read: {error.strerror}; {_mend(record)}"
        ) from error


def _copied(archive: BufferedReader, folder: Path, record: VersionRecord) -> Path:
    """Copy an archive, and make sure that what was written are the bytes that were registered."""
    copy, digest = folder / record.archive.name, hashlib.sha256()
    try:
        folder.mkdir(parents=True, mode=0o700)
        if not has_room(folder, os.fstat(archive.fileno()).st_size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with copy.open("xb") as target:
            while chunk := archive.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
    except OSError as error:
        raise StoreUnwritable(
            f"{record.archive} cannot be copied to {folder.parent}, where engines read it: "
            f"{error.strerror}: free some space there, or make it writable"
        ) from error
    _refuse_other(record, digest.hexdigest())
    return copy


def _refuse_other(record: VersionRecord, sha256: str) -> None:
    if sha256 != record.sha256:
        raise ArchiveLost(
            f"{record.archive} does not hold the bytes that were registered (sha256 "
            f"{record.sha256[:12]}…, these have {sha256[:12]}…): {_mend(record)}"
        )


def _mend(record: VersionRecord) -> str:
    return f"`vlserve register` of the same {record.archive.name} puts it back"
