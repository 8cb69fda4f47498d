"""A disk of a few MiB, to be filled: a tmpfs where mounting is allowed, else a skipped test."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK = 4096


@contextmanager
def small_disk(folder: Path, size: str = "32m") -> Iterator[Path]:
    """``folder`` on a disk of its own while the body runs."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, encoding="utf-8"
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if process.returncode:
        pytest.skip(f"mounting is not allowed here: {process.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use the last byte of the disk of ``folder``; return the file that does."""
    file = folder / "filling"
    with file.open("ab", buffering=0) as stream:
        for block in (1024 * _BLOCK, _BLOCK, 1):
            try:
                while True:
                    stream.write(bytes(block))
            except OSError:
                continue
    return file
