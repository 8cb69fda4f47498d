"""The form of a trial: which fields a version takes, from its task's schema and its manifest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from vlserve.project import Folder
from vlserve.runtime.errors import ArchiveError
from vlserve.runtime.inputs import VisualFields, VisualTextFields, fields_of, takes_text
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import load_task

Kind = Literal["image", "file", "text", "number", "switch", "json"]
"""How a field is filled in: with a picture, another file, words, a number, a tick, or JSON."""

_KINDS: Mapping[str, Kind] = {"integer": "number", "number": "number", "boolean": "switch"}


@dataclass(frozen=True)
class FormField:
    """One field of a request."""

    name: str
    kind: Kind
    required: bool


class TaskSchemas:
    """The request schemas of the tasks in handlers/, read as they are asked for."""

    def __init__(self, handlers: Folder) -> None:
        self._handlers = handlers
        self.of = cache(self._read)

    def _read(self, task: str) -> type[BaseModel]:
        """Return a task's schema; that of an image and a text where the project has no such file
        any more."""
        try:
            return load_task(self._handlers / f"{task}.py").fields
        except ArchiveError:
            return VisualTextFields


def form_fields(schema: type[BaseModel], manifest: Manifest) -> tuple[FormField, ...]:
    """Return the fields of a request that the version of ``manifest`` takes, in the schema's order
    but with pictures and texts first."""
    description = fields_of(schema, manifest).model_json_schema()
    required = description.get("required", ())
    fields = [
        FormField(name, kind, name in required)
        for name, kind in _kinds(description["properties"])
        if not issubclass(schema, VisualFields) or _takes(manifest, name)
    ]
    return tuple(sorted(fields, key=lambda field: field.kind not in ("image", "text")))


def _kinds(properties: Mapping[str, Any]) -> Iterator[tuple[str, Kind]]:
    for name, schema in properties.items():
        kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
        formats = {each.get("format") for each in kinds}
        if "binary" in formats:
            yield name, "image" if name.startswith("image") else "file"
        elif kinds[0].get("type") == "string":
            yield name, "text"
        else:
            yield name, _KINDS.get(str(kinds[0].get("type")), "json")


def _takes(manifest: Manifest, name: str) -> bool:
    """Return whether the model takes a field of its inputs; see vlserve.runtime.inputs."""
    match name.rstrip("2"):
        case "image":
            return manifest.image is not None
        case "features":
            return manifest.regions is not None
        case "boxes":
            return manifest.regions is not None and manifest.regions.boxes
        case "text":
            return takes_text(manifest)
    return True
