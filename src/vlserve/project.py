"""The project folder, and the files that the package brings for it.

A project folder may hold export/, handlers/, serving_config/ and loadtest/. The package brings a
copy of each; a file of the project wins over the packaged file of the same path, file by file.
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

FOLDERS = ("export", "handlers", "serving_config", "loadtest")
"""What users edit; all of it travels in the wheel."""
MARKER = "vlserve-project.json"
"""`vlserve init` writes it; a folder that holds one is a project folder."""
VARIABLE = "VLSERVE_PROJECT_DIR"

_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "_project"


class Folder(Protocol):
    """A folder that is only read: a `pathlib.Path`, or a `LayeredFolder`."""

    def __truediv__(self, name: str, /) -> Path: ...

    def glob(self, pattern: str, /) -> Iterable[Path]: ...


class LayeredFolder:
    """The files of two folders as one: those of ``upper`` hide those of ``lower``."""

    def __init__(self, upper: Path, lower: Path) -> None:
        self._upper, self._lower = upper, lower

    def __truediv__(self, name: str, /) -> Path:
        """Return the file ``name``: the upper one where it exists, else the lower one.

        An upper one that cannot be reached, as a link into nothing or to itself, is returned all
        the same: who reads it learns that, where the lower one would stand in unnoticed.
        """
        upper = self._upper / name
        return upper if _is_given(upper) else self._lower / name

    def glob(self, pattern: str, /) -> Iterator[Path]:
        """Yield the files that match ``pattern``, sorted by their path inside the folder."""
        names = {
            file.relative_to(folder)
            for folder in (self._upper, self._lower)
            for file in folder.glob(pattern)
        }
        return (self / str(name) for name in sorted(names))

    def __str__(self) -> str:
        return str(self._upper)


def _is_given(path: Path) -> bool:
    """Return whether a user put something there, readable or not."""
    try:
        path.lstat()
    except FileNotFoundError:
        return any(folder.is_symlink() and not folder.exists() for folder in path.parents)
    except OSError:  # a folder that is a file, a loop of links, no permission
        return True
    return True


def find_project_dir() -> Path:
    """Return the project folder: VLSERVE_PROJECT_DIR, else the nearest folder upwards that
    `vlserve init` made or that is a checkout, else the current folder."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder).absolute()
    here = Path.cwd()
    return nearest(here, is_project) or here


def project_folder(name: str, project: Path | None = None) -> LayeredFolder:
    """Return one of `FOLDERS`: the project's files over the packaged ones.

    Args:
        name: One of `FOLDERS`.
        project: The project folder; by default, the one that `find_project_dir` finds.
    """
    return LayeredFolder((project or find_project_dir()) / name, packaged_dir() / name)


def project_file(relative: str, project: Path | None = None) -> Path:
    """Return the project's file of this path where it exists, else the packaged one."""
    return LayeredFolder(project or find_project_dir(), packaged_dir()) / relative


@cache
def packaged_dir() -> Path:
    """Return the folder that holds the packaged `FOLDERS`: inside the installed package, or the
    checkout that the package is run from.

    Raises:
        FileNotFoundError: The package was copied from a checkout without them.
    """
    if _IN_WHEEL.is_dir():
        return _IN_WHEEL
    checkout = nearest(_PACKAGE, is_checkout)
    if checkout is None:
        raise FileNotFoundError(
            f"{_PACKAGE} lacks {', '.join(FOLDERS)}: install the wheel, or run from a checkout"
        )
    return checkout


def nearest(folder: Path, matches: Callable[[Path], bool]) -> Path | None:
    """Return ``folder`` or the first of its parents that ``matches``; None when none does."""
    return next((candidate for candidate in (folder, *folder.parents) if matches(candidate)), None)


def is_project(folder: Path) -> bool:
    """Return whether `vlserve init` made the folder, or it is a checkout."""
    return (folder / MARKER).is_file() or is_checkout(folder)


def is_checkout(folder: Path) -> bool:
    """Return whether the folder is a checkout of vlserve itself."""
    if not (folder / "src" / "vlserve").is_dir():
        return False
    try:
        pyproject = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(pyproject.get("project", {}).get("name") == "vlserve")
