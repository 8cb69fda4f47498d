"""Whether an archive in the store still has the bytes that were registered."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vlserve.control.domain import VersionRecord
from vlserve.errors import ArchiveLost

_SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again without a trace: times of
files are no finer than the system's clock."""
_MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from any other, and from itself once it was written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Of its inode, which nobody but the system can set."""

    @classmethod
    def of(cls, known: os.stat_result) -> "FileIdentity":
        return cls(known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)


class ArchiveBytes:
    """Remembers the sha256 of files that did not change. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[FileIdentity, str] = {}

    def check(self, record: VersionRecord) -> FileIdentity:
        """Return which file has the bytes that were registered. ArchiveLost where none has."""
        mend = _mend(record)
        try:
            identity, sha256 = self._sha256(record.archive)
        except FileNotFoundError as error:
            raise ArchiveLost(f"{record.archive} is gone: {mend}") from error
        except OSError as error:
            raise ArchiveLost(
                f"{record.archive} cannot be read: {error.strerror}; {mend}"
            ) from error
        if sha256 != record.sha256:
            raise ArchiveLost(
                f"{record.archive} does not hold the bytes that were registered (sha256 "
                f"{record.sha256[:12]}…, these have {sha256[:12]}…): {mend}"
            )
        return identity

    def _sha256(self, archive: Path) -> tuple[FileIdentity, str]:
        with archive.open("rb") as file:
            identity = FileIdentity.of(os.fstat(file.fileno()))
            known = self._known.get(identity)
            if known is not None:
                return identity, known
            began_ns = time.time_ns()
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = FileIdentity.of(os.fstat(file.fileno())) == identity
        if unchanged and began_ns - identity.changed_ns > _SETTLED_NS:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[identity] = sha256
        return identity, sha256


def refuse_replaced(record: VersionRecord, checked: FileIdentity) -> None:
    """Make sure that the file which an engine read is the one that was checked before.

    Raises:
        ArchiveLost: it was replaced, or written to, while the engine read it.
    """
    try:
        now = FileIdentity.of(record.archive.stat())
    except OSError:
        now = None
    if now != checked:
        raise ArchiveLost(
            f"{record.archive} was changed while it was loaded, so the version is out of the "
            f"engine: {_mend(record)}"
        )


def _mend(record: VersionRecord) -> str:
    return f"`vlserve register` of the same {record.archive.name} puts it back"
