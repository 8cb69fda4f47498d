"""Who waits for a lock is told who holds it."""

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vlserve.lock_holders import NOBODY_KNOWS, holder_of, lock_within, open_lock, try_lock

_HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a lock")
def test_the_holder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    assert holder_of(file) == NOBODY_KNOWS
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert f"(pid {other.pid})" in holder_of(file)
        assert holder_of(file).startswith("python")
        assert holder_of(file).isprintable()
    with file.open(encoding="utf-8") as own:
        fcntl.flock(own, fcntl.LOCK_SH)
        assert f"(pid {os.getpid()})" in holder_of(file)


def test_of_a_file_that_is_not_there_nobody_knows(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "none") == NOBODY_KNOWS


def test_nobody_else_can_open_the_file_of_a_lock(tmp_path: Path) -> None:
    """Whoever may read it may hold it: one of an earlier version is closed to others too."""
    file, before = tmp_path / "lock", os.umask(0)
    try:
        file.touch(mode=0o644)
        with open_lock(file) as lock:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            fcntl.flock(lock, fcntl.LOCK_EX)
        file.unlink()
        with open_lock(file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_lock_is_waited_for_as_long_as_told(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with open_lock(file) as waiter:
        with open_lock(file) as holder:
            assert try_lock(holder)
            assert not lock_within(waiter, 0.0)
        assert lock_within(waiter, 0.0)
