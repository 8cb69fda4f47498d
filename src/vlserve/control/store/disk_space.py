"""Room and rights in the folders that the stack writes to, as health tells them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlserve.control.domain import Trouble

LOW_BYTES = 16 * 1024 * 1024
"""A disk with less free space than this counts as full; on a small one, a twentieth of it."""

_MIB = 1024 * 1024


def disk_troubles(folders: Mapping[str, Path], logs: Path) -> Iterator[Trouble]:
    """Yield what keeps the stack from writing: each full disk once, each folder that is read-only.

    Args:
        folders: what the stack writes to, by the name of its setting.
        logs: the folder whose rotated files may go.
    """
    by_disk: dict[int, dict[str, Path]] = {}
    for name, folder in folders.items():
        try:
            disk = folder.stat().st_dev
        except OSError as error:
            yield Trouble("disk", f"{name} ({folder}) cannot be used: {error.strerror}")
            continue
        if os.access(folder, os.W_OK):
            by_disk.setdefault(disk, {})[name] = folder
        else:
            yield Trouble("disk", f"{name} ({folder}) is read-only: make it writable")
    for on_disk in by_disk.values():
        lack = _lack(next(iter(on_disk.values())))
        if lack:
            names = ", ".join(f"{name} ({folder})" for name, folder in on_disk.items())
            yield Trouble(
                "disk",
                f"the disk of {names} has {lack}: delete retired versions (`vlserve delete`), "
                f"or files whose name ends in .1 to .5 in {logs}",
            )


def has_room(folder: Path, size: int) -> bool:
    """Return whether a file of ``size`` bytes leaves the disk of ``folder`` well; OSError."""
    disk = os.statvfs(folder)
    return _available(disk) - size >= _least(disk)


def free_space(folder: Path) -> str:
    """Return how much room the disk of ``folder`` has, for messages."""
    try:
        return f"{_available(os.statvfs(folder)) / _MIB:.1f} MiB free"
    except OSError as error:
        return f"which cannot be looked at: {error.strerror}"


def _lack(folder: Path) -> str:
    """Return what the disk of ``folder`` is short of; empty where nothing is."""
    disk = os.statvfs(folder)
    if _available(disk) < _least(disk):
        return f"{_available(disk) / _MIB:.1f} MiB left"
    return "no inode left" if disk.f_files and not disk.f_favail else ""


def _least(disk: os.statvfs_result) -> int:
    return min(LOW_BYTES, disk.f_blocks * disk.f_frsize // 20)


def _available(disk: os.statvfs_result) -> int:
    return disk.f_bavail * disk.f_frsize
