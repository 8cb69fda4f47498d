"""One version on Triton: what its Python backend runs as ``model.py``, in a stub each instance. The
archive's own triton_model.py answers.

A request is one tensor ``body``, the HTTP body as the gateway hands it over; what the gateway says
of it in headers stands in the request's parameters. The answer is one tensor ``answer``:

    STATUS SERVER-TIMING
    JSON body

or, of an adopted archive, whose handler sets headers and sends what it likes::

    STATUS;headers=LENGTH SERVER-TIMING
    name:value, a line each, LENGTH bytes in all
    body

because Triton 2.51 has neither statuses nor headers of a model's own. The gateway
(serving_config/gateway/triton.lua) makes them of the first line. Of what is not JSON alone, its
first word is ``STATUS;type=CONTENT-TYPE`` and, where binary data follow JSON, ``;json=BYTES``.
"""

import json
import logging
import os
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from vlserve_worker.adopted import is_adopted
from vlserve_worker.bodies import UNREADABLE
from vlserve_worker.capture import Capture
from vlserve_worker.crash_notes import is_of_a_client
from vlserve_worker.device import choose_device
from vlserve_worker.entry_point import entry_point
from vlserve_worker.image_limits import bounds_images
from vlserve_worker.lone_requests import LoneRequests, lone_requests
from vlserve_worker.request_filter import (
    MAX_BODY_BYTES,
    Noted,
    Refusal,
    RequestFilter,
    open_notes,
)
from vlserve_worker.several_items import ItemAnswer, WholeAnswer, request_id_of
from vlserve_worker.time_limit import ended_after
from vlserve_worker.triton_tensors import prove_exchange, read_tensor, write_tensor
from vlserve_worker.v2.batch import served_by, spread_batch

BODY, ANSWER = "body", "answer"
"""The tensors of config.pbtxt."""

RAW_HEADERS = "headers"
"""Beside the body of a client's request to an adopted archive; vlserve.runtime.exchange has it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """What config.pbtxt says of a version, in its ``parameters``; times in seconds."""

    archive_dir: Path
    """The unpacked archive."""
    version: int
    batch_size: int
    threads: int = 1
    device: str = "auto"
    lone_threads: int = 1
    busy_file: Path | None = None
    load_timeout_s: float | None = None
    response_timeout_s: float | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    notes_dir: Path | None = None
    capture_dir: Path | None = None
    answer_log: Path | None = None
    memory_mib: int | None = None

    @classmethod
    def read(cls, model_config: str) -> "Parameters":
        """Read them from a configuration as Triton hands it over, in JSON.

        Raises:
            KeyError: ``archive_dir`` or ``version`` is missing.
        """
        config = json.loads(model_config)
        values = {
            name: value["string_value"] for name, value in config.get("parameters", {}).items()
        }
        types = {
            "threads": int,
            "device": str,
            "lone_threads": int,
            "busy_file": Path,
            "load_timeout_s": float,
            "response_timeout_s": float,
            "max_body_bytes": int,
            "notes_dir": Path,
            "capture_dir": Path,
            "answer_log": Path,
            "memory_mib": int,
        }
        return cls(
            Path(values["archive_dir"]),
            int(values["version"]),
            max(1, int(config.get("max_batch_size", 1))),
            **{name: convert(values[name]) for name, convert in types.items() if name in values},
        )


class TritonPythonModel:
    """One instance of one version, in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the archive; raises when it is not what was packed, and ends the process when that
        takes longer than ``load_timeout_s``."""
        parameters = Parameters.read(args["model_config"])
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        with ended_after(parameters.load_timeout_s):
            prove_exchange()
            _prepare_process(parameters)
            choose_device(parameters.device, int(args.get("model_instance_device_id", 0)))
            lone = _lone_requests(parameters)
            self._archive = entry_point(parameters.archive_dir)(
                parameters.archive_dir,
                parameters.threads,
                parameters.batch_size,
                parameters.answer_log,
            )
        self._served = served_by(parameters.archive_dir)
        self._adopted = is_adopted(parameters.archive_dir)
        self._batch_size = parameters.batch_size
        folder, capture = parameters.notes_dir, parameters.capture_dir
        self._filter = RequestFilter(
            parameters.version,
            open_notes(folder) if folder else None,
            parameters.max_body_bytes,
            parameters.response_timeout_s,
            checks_images=not bounds_images(parameters.archive_dir),
            lone=lone,
            capture=Capture(capture) if capture else None,
            leaves_raw=self._adopted,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch: one response a request, in order, none of them an error of Triton's."""
        spread = spread_batch(
            [_raw(request) for request in requests], self._served, self._filter.max_body_bytes
        )
        ids = [_request_id(request) for request in spread.items]
        data = [
            result
            if isinstance(result, Refusal)
            else Noted(_values(item, with_headers=self._adopted), result, turn)
            for result, item, turn in zip(
                self._filter.read_batch(spread.items, spread.shares),
                spread.items,
                spread.turns,
                strict=True,
            )
        ]

        def run(places: list[int], values: list[dict[str, Any]]) -> list[ItemAnswer]:
            answers = self._archive.answer(values, [ids[at] for at in places])
            return [ItemAnswer(*answer) for answer in answers]

        def refuse(at: int, refusal: Refusal) -> ItemAnswer:
            return ItemAnswer(refusal.status, "", refusal.body(ids[at]))

        answers = self._filter.answer(data, run, refuse, self._batch_size) or []
        bodies = [
            _written(*item_answers)
            if exchange is None
            else _written_whole(exchange.join(item_answers))
            for item_answers, exchange in zip(
                spread.grouped(answers), spread.exchanges, strict=True
            )
        ]
        return [pb_utils.InferenceResponse([write_tensor(ANSWER, body)]) for body in bodies]

    def finalize(self) -> None:
        self._archive.close()


def _prepare_process(parameters: Parameters) -> None:
    """Make this process the version's own: its memory, its threads, its code."""
    if parameters.memory_mib is not None:
        # A request that would take all memory gets an error from the allocator instead.
        limit = parameters.memory_mib * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    threads = str(parameters.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    sys.dont_write_bytecode = True
    # What is installed of vlserve must not stand in for what the archive was packed with, nor what
    # lies in the folder that the server started in, "", for anything.
    sys.path[:] = [str(parameters.archive_dir.resolve()), *filter(None, sys.path)]


def _lone_requests(parameters: Parameters) -> LoneRequests | None:
    if parameters.busy_file is None:
        return None
    return lone_requests(parameters.archive_dir, parameters.lone_threads, parameters.busy_file)


def _raw(request: Any) -> dict[str, Any] | Refusal:
    """Return a request as TorchServe's worker reads it (bodies.py), or why it cannot be read."""
    try:
        headers: dict[str, str] = json.loads(request.parameters() or "{}")
    except ValueError:  # the stub itself decodes them
        return Refusal(UNREADABLE, "a header has bytes that are not UTF-8")
    (body,) = request.inputs()
    return {
        "headers": [
            {"name": name.lower().encode(), "value": _as_java_has_it(value)}
            for name, value in headers.items()
        ],
        "parameters": [
            {"name": BODY, "contentType": "application/octet-stream", "value": read_tensor(body)}
        ],
    }


def _as_java_has_it(header: str) -> bytes:
    """Return a header's value as TorchServe hands it over, which takes each byte for a letter."""
    return header.encode("utf-8").decode("latin-1").encode("utf-8")


def _values(request: dict[str, Any] | Refusal, *, with_headers: bool) -> dict[str, Any]:
    """``with_headers``: those of a client's request are among the values."""
    if isinstance(request, Refusal):
        return {}
    values = {parameter["name"]: parameter["value"] for parameter in request["parameters"]}
    if with_headers and is_of_a_client(request):
        values[RAW_HEADERS] = {
            header["name"].decode(): header["value"].decode() for header in request["headers"]
        }
    return values


def _request_id(request: dict[str, Any] | Refusal) -> str:
    """Return the client's X-Request-Id; a new one where there is none to be read."""
    return str(uuid.uuid4()) if isinstance(request, Refusal) else request_id_of(request)


def _written(answer: ItemAnswer) -> bytes:
    """Return what triton.lua makes an answer of; with headers, those are all that it is to have."""
    if answer.headers is None:
        return f"{answer.status} {answer.timing}\n".encode() + answer.body
    lines = "".join(
        f"{name}:{_header_value(value)}\n"
        for name, value in answer.headers.items()
        if name.isascii()
    ).encode("latin-1", "replace")
    first = f"{answer.status};headers={len(lines)} {answer.timing}\n"
    return first.encode() + lines + answer.body


def _header_value(value: str) -> str:
    return " ".join(value.splitlines())


def _written_whole(answer: WholeAnswer) -> bytes:
    encoded = answer.encoded
    json_bytes = "" if encoded.json_bytes is None else f";json={encoded.json_bytes}"
    about = f"{answer.status};type={encoded.content_type}{json_bytes}"
    return f"{about} {answer.timing}\n".encode() + encoded.body
