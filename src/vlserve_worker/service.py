"""TorchServe's worker with the filter of requests (request_filter.py) before the archive's handler,
which reads and answers through TorchServe's context."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlserve_worker import image_limits
from vlserve_worker.batch_notes import notes_folder
from vlserve_worker.busy_workers import BUSY_FILE
from vlserve_worker.capture import Capture
from vlserve_worker.lone_requests import lone_requests
from vlserve_worker.request_filter import (
    MAX_BODY_BYTES,
    REQUEST_ID,
    Noted,
    Refusal,
    RequestFilter,
    open_notes,
)

ANSWERED_BY = "x-vlserve-version"

Handler = Callable[[list[Any], Any], Any]


def answer_batch(
    requests: RequestFilter, data: Sequence[Refusal | Noted], context: Any, handler: Handler
) -> Any:
    """Return one answer a request, in order, by the handler or in its place; none at all, which
    TorchServe takes for what it is, where the handler is broken."""
    processors, ids = context.request_processor, context.request_ids

    def run(places: list[int], values: list[dict[str, Any]]) -> list[Any] | None:
        context.request_processor = [processors[at] for at in places]
        context.request_ids = {new: ids[at] for new, at in enumerate(places)}
        answered = handler(values, context)
        whole = isinstance(answered, list) and len(answered) == len(places)
        return answered if whole else None

    def refuse(at: int, refusal: Refusal) -> bytes:
        context.set_response_status(code=refusal.status, idx=at)
        context.set_response_content_type(at, "application/json")
        context.set_response_header(at, ANSWERED_BY, str(requests.version))
        return refusal.body(_request_id(context, at))

    answers = requests.answer(data, run, refuse)
    if answers is None:
        return []
    context.request_processor, context.request_ids = processors, ids
    return answers


def install_filter(service: Any, requests: RequestFilter) -> None:
    """Have TorchServe's class of services ask ``requests`` before the handler."""
    hand_over: Callable[[list[dict[str, Any]]], Any] = service.retrieve_data_for_inference
    begin: Callable[..., None] = service.__init__

    def retrieve(batch: list[dict[str, Any]]) -> Any:
        read = requests.read_batch(batch)
        headers, values, ids = hand_over(batch)
        data = [
            one if isinstance(one, Refusal) else Noted(fields, one)
            for one, fields in zip(read, values, strict=True)
        ]
        return headers, data, ids

    def begin_with(
        self: Any, name: str, folder: str, about: Any, handler: Handler, *more: Any
    ) -> None:
        def answer(data: list[Refusal | Noted], context: Any) -> Any:
            return answer_batch(requests, data, context, handler)

        begin(self, name, folder, about, answer, *more)

    service.retrieve_data_for_inference = staticmethod(retrieve)
    service.__init__ = begin_with


def open_filter(
    model: str, version: int, engine_dir: str | None, archive: Path, lone_threads: int = 1
) -> RequestFilter:
    """Return the filter of a version, in the instance whose folder is ``engine_dir``. ``archive``:
    where it is unpacked. ``lone_threads``: those of a request that comes alone."""
    checks_images = not image_limits.bounds_images(archive)
    if engine_dir is None:
        return RequestFilter(version, None, MAX_BODY_BYTES, checks_images=checks_images)
    instance = Path(engine_dir)
    configured = _configured(instance)
    return RequestFilter(
        version,
        open_notes(notes_folder(instance.parent, model, version)),
        configured.get("max_request_size", MAX_BODY_BYTES),
        configured.get("default_response_timeout"),
        checks_images,
        lone_requests(archive, lone_threads, instance.parent / BUSY_FILE),
        Capture(instance.parent / "capture" / model),
    )


def _configured(instance: Path) -> dict[str, int]:
    """Return the numbers of the file that TorchServe itself reads."""
    try:
        text = (instance / "config.properties").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+)=(\d+)$", text, re.MULTILINE)}


def _request_id(context: Any, at: int) -> str:
    """Return the client's X-Request-Id, else TorchServe's own."""
    for name, value in context.get_all_request_header(at).items():
        if name.lower() == REQUEST_ID and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(at))
