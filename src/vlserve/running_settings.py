"""The settings that the stack which runs was started with: they take effect at a start.

`up` keeps them in state_dir, and what talks to the stack goes by them. So the way back needs no
settings that can be read now.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from vlserve.errors import SettingsError
from vlserve.project import find_project_dir
from vlserve.settings import STACK_VARIABLE, Settings, SettingsAsGiven, load_settings

_STATE_DIR = "VLSERVE_STATE_DIR"
_MOST_BYTES = 2**20


def settings_file(state_dir: Path) -> Path:
    """Return where the settings of a running stack are kept."""
    return state_dir / "supervisor" / "settings.json"


def keep_settings(settings: Settings) -> None:
    """Write the settings that a stack is started with.

    The default of engine.workers is left out: it follows what the caller may use of the machine,
    and is the same setting in another shell.
    """
    names_workers = "workers" in settings.engine.model_fields_set
    text = settings.model_dump_json(exclude=None if names_workers else {"engine": {"workers"}})
    file = settings_file(settings.state_dir)
    file.touch(mode=0o600)  # api_keys are in it
    file.write_text(text, encoding="utf-8")


def read_kept(state_dir: Path) -> Settings | None:
    """Return the settings of the stack of a folder; None where none are kept, or none that this
    version of vlserve can read."""
    file = settings_file(state_dir)
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return None
        return SettingsAsGiven.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def settings_of_running(settings: Settings) -> Settings:
    """Return those that the stack of ``settings.state_dir`` runs with, where they are kept."""
    return read_kept(settings.state_dir) or settings


def settings_to_reach_stack() -> tuple[Settings, str]:
    """Return the settings by which this project's stack is reached, and why those of this
    environment cannot be used for it, or nothing.

    Raises:
        SettingsError: they cannot work, and none of a running stack are kept.
    """
    try:
        return settings_of_running(load_settings()), ""
    except SettingsError as error:
        project = find_project_dir()
        for state_dir in dict.fromkeys(_state_dirs(project)):
            settings = read_kept(state_dir)
            if settings is not None and settings.project_dir.resolve() == project.resolve():
                return settings, f"{error}; going by the settings that the stack runs with"
        raise


def differing(settings: Settings, others: Settings) -> list[str]:
    """Return the names of the settings in which two stacks differ."""
    ours, theirs = (model.model_dump(exclude={"project_dir"}) for model in (settings, others))
    names = [name for name in ours if ours[name] != theirs[name]]
    same_project = settings.project_dir.resolve() == others.project_dir.resolve()
    return names if same_project else ["project_dir", *names]


def _state_dirs(project: Path) -> Iterator[Path]:
    """Yield where the state of this project's stack may lie: vlserve.yaml, which may say so, is
    not to be read."""
    if state_dir := os.environ.get(_STATE_DIR):
        yield (project / state_dir).resolve()
    yield (project / str(Settings.model_fields["state_dir"].default)).resolve()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if state_dir := process.environ().get(STACK_VARIABLE):
                yield Path(state_dir)
