"""The folder that an adopted archive's handler sees: a private, writable copy for each worker."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from vlserve.runtime.manifest import HANDLER, TRITON_MODEL

_PREFIX = "legacy-"


def enter_private_copy(source: Path, name: str) -> Path:
    """Copy ``source``, make the copy the working folder and the first place of imports, and return
    it. It goes when the process ends; what killed processes left of ``name`` goes now."""
    parent = Path(tempfile.gettempdir())
    prefix = f"{_PREFIX}{name}."  # no name of a model has a dot
    _remove_left_overs(parent, prefix)
    copy = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}."))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(source, copy, dirs_exist_ok=True)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    _make_way(copy)
    return copy


def _remove_left_overs(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).partition(".")[0]
        if pid.isdecimal() and int(pid) != os.getpid() and not _runs(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _make_way(copy: Path) -> None:
    """Let the user's files be imported that are called like our entry points."""
    for file in (HANDLER, TRITON_MODEL):
        if (copy / file).is_file():
            sys.modules.pop(file.removesuffix(".py"), None)
