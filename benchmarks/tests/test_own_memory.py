"""Which memory of a process counts, where its growth is told."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.lib.memory import own_memory_mib

MIB = 1024**2
SIZE_MIB = 48
HOLD = """
import mmap, sys
own = bytearray(b"1") * int(sys.argv[2])
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(pages[at] for at in range(0, len(pages), mmap.PAGESIZE))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(file: Path, own_mib: int = 0) -> Iterator[psutil.Process]:
    """A process that has read ``file`` by a mapping, and holds ``own_mib`` besides."""
    command = [sys.executable, "-c", HOLD, str(file), str(own_mib * MIB)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield psutil.Process(process.pid)
        process.communicate()


@pytest.fixture
def file() -> Iterator[Path]:
    """On a disk: /tmp may be memory, whose pages count."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(b"\1" * (SIZE_MIB * MIB))
        file.flush()
        yield Path(file.name)


def test_it_is_the_same_when_another_process_of_the_same_file_ends(file: Path) -> None:
    with holder(file) as one:
        with holder(file):
            own_mib, pss = own_memory_mib(one.pid), one.memory_full_info().pss
        assert one.memory_full_info().pss > pss + SIZE_MIB * MIB / 4
        assert own_memory_mib(one.pid) == pytest.approx(own_mib, abs=1)


def test_what_a_process_allocates_counts(file: Path) -> None:
    with ExitStack() as stack:
        small, large = (stack.enter_context(holder(file, mib)) for mib in (0, SIZE_MIB))
        more_mib = own_memory_mib(large.pid) - own_memory_mib(small.pid)
    assert more_mib == pytest.approx(SIZE_MIB, abs=1)


def test_a_process_that_has_ended_has_none(file: Path) -> None:
    with holder(file) as process:
        pass
    with pytest.raises(OSError, match=str(process.pid)):
        own_memory_mib(process.pid)
