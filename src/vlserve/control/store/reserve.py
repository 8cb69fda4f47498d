"""Disk space that is set aside, for what must be written though the disk is full."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vlserve.control.domain import Trouble
from vlserve.control.store.disk_space import free_space, has_room

RESERVE_BYTES = 2 * 1024 * 1024
"""More than a change of traffic writes into the ledger, and than all routes of a gateway."""


class Reserve:
    """A file that holds the space. To give it up is the only way to use it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def keep(self) -> None:
        """Set the space aside, unless it is, or the disk is nearly full. Every tick calls it."""
        with suppress(OSError):
            if self._is_whole():
                return
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not has_room(self._file.parent, RESERVE_BYTES):
                return
            with self._file.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def give_up(self) -> None:
        """Free the space; `keep` sets it aside again once there is room."""
        self._file.unlink(missing_ok=True)

    def troubles(self) -> Iterator[Trouble]:
        """Yield that the space is not set aside."""
        if not self._is_whole():
            folder = self._file.parent
            yield Trouble(
                "disk",
                f"{RESERVE_BYTES // 2**20} MiB in {folder} are not set aside for a rollback on a "
                f"full disk ({free_space(folder)}): free some space there",
            )

    def _is_whole(self) -> bool:
        return self._file.exists() and self._file.stat().st_size >= RESERVE_BYTES
