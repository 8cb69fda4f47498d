"""What the processes of a stack write into their log files, a line at a time, as it comes."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

_LOOK_S = 0.2
_LONGEST_LINE_BYTES = 65_536


class _Log:
    """One log file, which may be renamed while a new one takes its name, as rotation does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = b""
        self._file = _opened(path)
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)  # what was before is not shown

    def new_lines(self) -> Iterable[bytes]:
        """Yield the whole lines that were written since the last call."""
        while file := self._file or _opened(self._path):
            self._file = file
            while piece := file.readline(_LONGEST_LINE_BYTES):
                self._begun += piece
                if piece.endswith(b"\n") or len(self._begun) >= _LONGEST_LINE_BYTES:
                    yield self._begun.rstrip(b"\n")
                    self._begun = b""
            if self._is_newest(file):
                return
            file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _is_newest(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        try:
            newest = self._path.stat()
        except OSError:  # the next one is not there yet
            return True
        if (newest.st_dev, newest.st_ino) != (status.st_dev, status.st_ino):
            return False
        if newest.st_size < file.tell():  # it was emptied
            file.seek(0)
        return True


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:
        return None


class FollowedLogs:
    """A thread hands on the lines of several log files from now on; a context manager."""

    def __init__(self, logs: Mapping[str, Path], show: Callable[[str, str], None]) -> None:
        """
        Args:
            logs: name -> file, which need not be there yet.
            show: takes the name of a log and a line of it.
        """
        self._logs = {name: _Log(path) for name, path in logs.items()}
        self._show = show
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="followed-logs", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self._look()
        self._look()
        for log in self._logs.values():
            log.close()

    def _look(self) -> None:
        for name, log in self._logs.items():
            for line in log.new_lines():
                self._show(name, line.decode("utf-8", "replace"))
