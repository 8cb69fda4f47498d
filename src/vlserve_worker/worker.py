"""One worker: TorchServe's own program, which is told three things better.

torch is imported at its first use. TorchServe imports it whatever the graph is; that is most of
what a worker costs to start (1.4 s of CPU, which a register takes away from the versions that
serve) and to keep (120 MB). Here it is imported when a TorchScript graph is opened, or never.

Forms are parsed here. The gateway lets TorchServe take them for plain bytes, because its own parser
is most of what it does for a request: ten times what it takes here.

Threads are the version's own. TorchServe gives the workers of all versions one environment.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from multipart import MultipartSegment, PushMultipartParser, parse_options_header

SENT_TYPE = b"x-vlserve-content-type"
"""The gateway's header with the content type of a body, which it hands over as plain bytes."""

CHARSETS = ("", "utf-8", "utf8", "us-ascii", "ascii")
"""What a form may say of its texts: they are read as UTF-8."""

ENCODINGS = ("", "7bit", "8bit", "binary")
"""What a part may say of its bytes (Content-Transfer-Encoding): that they are what was meant."""

MAX_PARTS = 64
MAX_HEADER_BYTES = 8192


class TorchAtFirstUse(PathFinder):
    """Finds torch, and leaves its import to whoever first asks it for something."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target) if fullname == "torch" else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def unwrap_form(request: dict[str, Any]) -> None:
    """Put the parts of a form in the place of its body, in a request as TorchServe's worker reads
    it. In the place of what is no readable form is an empty body, which the handler refuses."""
    headers = request["headers"]
    sent = next((one["value"] for one in headers if one["name"] == SENT_TYPE), b"")
    sent_type = sent.decode("latin-1")
    read = FORMS.get(sent_type.partition(";")[0].strip().lower())
    parameters = request["parameters"]
    at = next((place for place, one in enumerate(parameters) if one["name"] == "body"), None)
    if at is None or read is None:
        return
    try:
        parts = read(parameters[at]["value"], sent_type)
    except Exception:  # whatever is in it: it must not take the batch down
        parameters[at]["value"] = bytearray()
        return
    parameters[at : at + 1] = [
        {"name": name, "contentType": "application/octet-stream", "value": value}
        for name, value in parts.items()
    ]


def read_form(body: bytearray, content_type: str) -> dict[str, bytearray]:
    """Field name -> bytes. ValueError when it is no whole form, a part has no name of its own, or
    its bytes are said to be encoded."""
    _, options = parse_options_header(content_type)
    _check(options.get("charset"), CHARSETS)
    parts: dict[str, bytearray] = {}
    part = bytearray()
    with PushMultipartParser(
        options.get("boundary", ""),
        max_header_size=MAX_HEADER_BYTES,
        max_segment_count=MAX_PARTS,
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                _check(event.charset, CHARSETS)
                _check(event.header("Content-Transfer-Encoding"), ENCODINGS)
                if not event.name or event.name in parts:
                    raise ValueError("a part has no name, or the name of another")
                part = parts[event.name] = bytearray()
            elif event:
                part += event
    if not parts:
        raise ValueError("the form has no parts")
    return parts


def read_urlencoded(body: bytearray, content_type: str) -> dict[str, bytearray]:
    """Field name -> bytes. ValueError when it holds no field, too many, or one twice, or is said to
    be of another charset."""
    _, options = parse_options_header(content_type)
    _check(options.get("charset"), CHARSETS)
    text = body.decode("utf-8", "surrogateescape")
    pairs = parse_qsl(
        text, True, True, errors="surrogateescape", max_num_fields=MAX_PARTS, separator="&"
    )
    parts = {name: bytearray(value.encode("utf-8", "surrogateescape")) for name, value in pairs}
    if not parts or len(parts) < len(pairs):
        raise ValueError("the form has no fields, or one twice")
    return parts


FORMS: Mapping[str, Callable[[bytearray, str], dict[str, bytearray]]] = {
    "multipart/form-data": read_form,
    "application/x-www-form-urlencoded": read_urlencoded,
}
"""How a form is read, by its content type."""


def _check(said: str | None, allowed: Sequence[str]) -> None:
    """What is said to be something else must not be read wrong."""
    if (said or "").strip().lower() not in allowed:
        raise ValueError(f"{said} is not read")


def read_forms(service: Any) -> None:
    """Have TorchServe's worker parse forms before it hands a batch to the handler."""
    hand_over: Callable[[list[dict[str, Any]]], Any] = service.retrieve_data_for_inference

    def parsed(batch: list[dict[str, Any]]) -> Any:
        for request in batch:
            unwrap_form(request)
        return hand_over(batch)

    service.retrieve_data_for_inference = staticmethod(parsed)


def take_threads(folder: Path, environment: MutableMapping[str, str]) -> None:
    """The number that the control service wrote for this version into the instance's folder goes
    into ``environment``. ``folder``: the unpacked archive."""
    if "ENGINE_DIR" not in environment:
        return
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    model = manifest["model"]
    version = f"{model['modelName']}-{model['modelVersion']}"
    told = Path(environment["ENGINE_DIR"]) / "threads" / version
    if told.is_file():
        threads = told.read_text(encoding="utf-8").strip()
        environment.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)


if __name__ == "__main__":
    take_threads(Path.cwd(), os.environ)  # TorchServe starts a worker in its model's folder
    sys.meta_path.insert(0, TorchAtFirstUse)
    from ts.service import Service

    read_forms(Service)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as for any program that Python is given
    runpy.run_path(sys.argv[0], run_name="__main__")
