"""The folders of a stack: what may lie in which, and who may enter."""

import os
from pathlib import Path

from vlserve.errors import SettingsError, StackError
from vlserve.settings import Settings


def refuse_store_in_state(settings: Settings) -> None:
    """Raise SettingsError where model_store lies in state_dir, which people delete: with the
    archives and the ledger in it."""
    if settings.model_store.is_relative_to(settings.state_dir):
        raise SettingsError(
            f"model_store ({settings.model_store}) lies in state_dir ({settings.state_dir}), which "
            "is safe to delete while the stack is down, and the archives and the ledger are not: "
            "move it, and set model_store (VLSERVE_MODEL_STORE) to its new place"
        )


def make_private(folder: Path) -> None:
    """Make a folder of ours that nobody else can enter: its parent may be open to all.

    Raises:
        StackError: it is somebody else's, or a link, or open to others.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    entry = folder.lstat()
    if folder.is_symlink() or entry.st_uid != os.getuid() or entry.st_mode & 0o077:
        raise StackError(f"{folder} must be a folder of yours alone (mode 700): remove it")
