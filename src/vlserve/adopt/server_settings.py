"""What a TorchServe server said of a model outside of its archive: its config.properties."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import NotAdopted

MAX_BYTES = 1024**2
_ENTRY = re.compile(r"\s*([A-Za-z0-9_.]+)\s*[=:]\s*(.*)")


@dataclass(frozen=True)
class ServerSettings:
    """``models``: name -> version -> what it says of it, in TorchServe's names."""

    envelope: str | None = None
    decodes: bool = True
    limits_pixels: bool = True
    response_timeout_s: int | None = None
    models: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None

    def of(self, name: str, version: str) -> Mapping[str, Any]:
        """Return what stands there of one version; nothing where it is not there."""
        versions = (self.models or {}).get(name, {})
        return versions.get(version, {}) if isinstance(versions, dict) else {}


def read_server_settings(file: Path) -> ServerSettings:
    """Read a config.properties. NotAdopted where an entry cannot be read."""
    if file.stat().st_size > MAX_BYTES:
        raise NotAdopted(f"{file.name} has more than {MAX_BYTES} bytes")
    entries = _entries(file.read_text(encoding="utf-8", errors="replace"))
    try:
        models = json.loads(entries["models"]) if entries.get("models", "").strip() else {}
        timeout = (
            int(entries["default_response_timeout"])
            if "default_response_timeout" in entries
            else None
        )
    except (ValueError, RecursionError) as error:
        raise NotAdopted(f"{file.name}: models or default_response_timeout: {error}") from error
    if not isinstance(models, dict):
        raise NotAdopted(f"{file.name}: models is no JSON object")
    return ServerSettings(
        entries.get("service_envelope") or None,
        entries.get("decode_input_request", "true").lower() != "false",
        entries.get("limit_max_image_pixels", "true").lower() != "false",
        timeout,
        models,
    )


def _entries(text: str) -> dict[str, str]:
    """Return the entries of a Java properties file; a backslash at a line's end goes on."""
    text = re.sub(r"\\\r?\n\s*", "", text)
    lines = (line for line in text.splitlines() if not line.lstrip().startswith(("#", "!")))
    return {match[1]: match[2].strip() for line in lines if (match := _ENTRY.match(line))}
