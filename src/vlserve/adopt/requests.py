"""Requests from files: what an adopted archive's probes ask."""

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlserve.errors import NotAdopted
from vlserve.runtime.manifest import MAX_PROBES

MAX_BYTES = 32 * 1024**2
_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
}
_UNKNOWN = "application/octet-stream"


@dataclass(frozen=True)
class LegacyCall:
    """One request. ``called``: the file that it is from."""

    called: str
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def fields(self, path: str) -> dict[str, Any]:
        """Return it as a probe has it; ``path``: of the model's predictions."""
        content = base64.b64encode(self.content).decode("ascii")
        return {"path": path, "headers": self.headers, "content": content}


def read_calls(path: Path | None) -> list[LegacyCall]:
    """Return the request of a file, or one of each entry of a folder, by their names. A file is a
    body: .json and .txt of that type, any other without a type, as `curl -T` sends it. A folder
    inside is a form: each of its files a part of that name. Without a path, an empty JSON object.

    Raises:
        NotAdopted: there are none, too many, or they are too large.
    """
    if path is None:
        return [LegacyCall("an empty JSON object", b"{}", {"content-type": "application/json"})]
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    special = next((entry for entry in entries if not (entry.is_file() or entry.is_dir())), None)
    if special:
        raise NotAdopted(f"{special} is neither a file nor a folder")
    if not 0 < len(entries) <= MAX_PROBES:
        raise NotAdopted(f"{path} holds {len(entries)} requests, not 1 to {MAX_PROBES}")
    return [_form(entry) if entry.is_dir() else _body(entry) for entry in entries]


def _body(file: Path) -> LegacyCall:
    kind = {".json": _TYPES[".json"], ".txt": _TYPES[".txt"]}.get(file.suffix.lower())
    _check_size([file])
    return LegacyCall(file.name, file.read_bytes(), {"content-type": kind} if kind else {})


def _form(folder: Path) -> LegacyCall:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    _check_size(files)
    boundary = uuid.uuid5(uuid.NAMESPACE_URL, folder.name).hex
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{file.stem}"; '
        f'filename="{file.name}"\r\n'
        f"Content-Type: {_TYPES.get(file.suffix.lower(), _UNKNOWN)}\r\n\r\n".encode()
        + file.read_bytes()
        + b"\r\n"
        for file in files
    )
    kind = f"multipart/form-data; boundary={boundary}"
    return LegacyCall(folder.name, parts + f"--{boundary}--\r\n".encode(), {"content-type": kind})


def _check_size(files: Sequence[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise NotAdopted(f"{files[0]} has {size} bytes, more than {MAX_BYTES}")
