"""What the command line says of an error: one line that names what it happened to."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlserve.control.control_access import URL
from vlserve.errors import StackDown, VlserveError
from vlserve.project import find_project_dir
from vlserve.settings import load_settings

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")
"""How numpy says that a disk is full."""
_NO_SPACE_BYTES = 1024 * 1024
"""A disk with less is taken for the full one."""


def explained(error: VlserveError | OSError, words: Sequence[str]) -> str:
    """Return the message of an error of the command that was called with ``words``."""
    if isinstance(error, StackDown) and not os.environ.get(URL):
        return f"{error} (the project folder is {_project_dir()})"
    if isinstance(error, OSError):
        return _io_message(error, words)
    return str(error)


def _io_message(error: OSError, words: Sequence[str]) -> str:
    if error.errno in _FULL or _SHORT_WRITE.search(str(error)):
        message = error.strerror or os.strerror(errno.ENOSPC)
        return f"{message}: {_full_place(error, words)}. Free some, or choose another place"
    if error.strerror is None:
        return str(error) or type(error).__name__
    files = [name for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(map(_shown, files))}: {error.strerror}" if files else error.strerror


def _full_place(error: OSError, words: Sequence[str]) -> str:
    """Return the file or the folders without space: a write does not say where it failed."""
    file = error.filename2 or error.filename  # of a copy, the second is written
    if file is not None:
        return _shown(file)
    full = dict.fromkeys(_shown(place) for place in _places(words) if _is_full(place))
    return ", ".join(full) or "on the disk of a file that this command writes"


def _places(words: Sequence[str]) -> Iterator[Path]:
    """Yield where a command may write: what it was given, and its own folders."""
    for word in words:
        path = Path(word.rpartition("=")[2] if word.startswith("--") else word)
        yield from (place for place in (path, path.parent) if place.exists())
    yield Path(tempfile.gettempdir())
    try:
        settings = load_settings()
    except (VlserveError, OSError):
        return
    yield from (place for place in (settings.state_dir, settings.model_store) if place.exists())


def _is_full(place: Path) -> bool:
    try:
        return shutil.disk_usage(place).free < _NO_SPACE_BYTES
    except OSError:
        return False


def _project_dir() -> str:
    try:
        return str(find_project_dir())
    except OSError as error:
        return f"unknown: the current folder cannot be read, {error.strerror}"


def _shown(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return text if text.isprintable() else repr(text)
