"""A user's JSON file beside a checkpoint: read, or named with what is wrong with it."""

import json
from pathlib import Path
from typing import Any

from vlserve.errors import ExportError
from vlserve.exporter.file_kinds import TEXTS, kind_of, read_head
from vlserve.text_files import encoding_hint


def read_json(path: Path, name: str) -> Any:
    """Return the contents of a JSON file in UTF-8, with a byte order mark or without.

    Args:
        path: of the file.
        name: what the message calls it.

    Raises:
        ExportError: It is no regular file, cannot be read, or is no JSON.
    """
    if path.exists() and not path.is_file():
        raise ExportError(f"{name} cannot be read: it is not a regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ExportError(f"{name} cannot be read: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ExportError(
            f"{name} cannot be read: it is not UTF-8, at byte {error.start}: save it so"
            f"{encoding_hint(path)}"
        ) from error
    except OSError as error:
        raise ExportError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        kind = kind_of(read_head(path))
        wrong = str(error) if kind is None or kind in TEXTS else f"it is {kind.what}. {kind.do}"
        raise ExportError(f"{name} cannot be read: {wrong}") from error
