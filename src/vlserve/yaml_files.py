"""The YAML files of serving_config/ that hold settings, as dictionaries."""

import stat
from pathlib import Path
from typing import Any

import yaml

from vlserve.errors import SettingsError
from vlserve.text_files import encoding_hint


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the entries of a YAML file; an empty file has none.

    Raises:
        SettingsError: In one line, what is wrong with the file: it is no regular file, cannot be
            read, is not YAML in UTF-8, or holds something else than named entries.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise SettingsError(f"{file} is not a regular file")
        content = yaml.safe_load(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        hint = encoding_hint(file)
        raise SettingsError(
            f"{file} is not UTF-8, at byte {error.start}: save it so{hint}"
        ) from error
    except RecursionError as error:
        raise SettingsError(f"{file} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise SettingsError(f"{file} is not YAML: {_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{file} holds no settings: `name: value` lines are expected")
    return content


def _one_line(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{error.problem or error.context}{place}"
