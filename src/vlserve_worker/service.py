"""TorchServe's worker with the filter of requests (request_filter.py) before the archive's handler,
which reads and answers through TorchServe's context."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve_worker import image_limits
from vlserve_worker.adopted import is_adopted
from vlserve_worker.bodies import REQUEST_ID
from vlserve_worker.busy_workers import BUSY_FILE
from vlserve_worker.capture import Capture
from vlserve_worker.crash_notes import notes_folder
from vlserve_worker.lone_requests import lone_requests
from vlserve_worker.request_filter import (
    MAX_BODY_BYTES,
    Noted,
    Refusal,
    RequestFilter,
    open_notes,
)
from vlserve_worker.several_items import Exchange, ItemAnswer
from vlserve_worker.v2.batch import spread_batch
from vlserve_worker.v2.exchange import Served

ANSWERED_BY = "x-vlserve-version"
TIMING = "server-timing"
JSON_LENGTH = "inference-header-content-length"

Handler = Callable[[list[Any], Any], Any]


@dataclass(frozen=True)
class Asked:
    """One request, as the items of which it is made: a plain one is one. ``processors``: what
    TorchServe keeps of an item's headers and of the answer's. ``ids``: TorchServe's own."""

    items: Sequence[Refusal | Noted]
    processors: Sequence[Any]
    ids: Sequence[str]
    exchange: Exchange | None = None


def answer_requests(
    requests: RequestFilter, client_requests: Sequence[Asked], context: Any, handler: Handler
) -> Any:
    """Return one answer a request, as `answer_batch`, of V2 requests too."""
    context.request_processor = [
        processor for request in client_requests for processor in request.processors
    ]
    context.request_ids = dict(
        enumerate(name for request in client_requests for name in request.ids)
    )
    items = [item for request in client_requests for item in request.items]
    batch_size = int(context.system_properties.get("batch_size") or 1)
    answers = answer_batch(requests, items, context, handler, batch_size)
    context.request_processor = [request.processors[0] for request in client_requests]
    context.request_ids = {at: request.ids[0] for at, request in enumerate(client_requests)}
    if not answers:
        return answers
    queue = iter(answers)
    return [
        _answer_of(request, at, [next(queue) for _ in request.items], context)
        for at, request in enumerate(client_requests)
    ]


def _answer_of(request: Asked, at: int, answers: list[Any], context: Any) -> Any:
    if request.exchange is None:
        return answers[0]
    whole = request.exchange.join(
        [
            ItemAnswer(
                processor.get_response_status_code(),
                processor.get_response_header(TIMING) or "",
                answer,
            )
            for processor, answer in zip(request.processors, answers, strict=True)
        ]
    )
    context.set_response_status(code=whole.status, idx=at)
    context.set_response_content_type(at, whole.encoded.content_type)
    if whole.timing:
        context.set_response_header(at, TIMING, whole.timing)
    if whole.encoded.json_bytes is not None:
        context.set_response_header(at, JSON_LENGTH, str(whole.encoded.json_bytes))
    return whole.encoded.body


def answer_batch(
    requests: RequestFilter,
    data: Sequence[Refusal | Noted],
    context: Any,
    handler: Handler,
    batch_size: int = sys.maxsize,
) -> Any:
    """Return one answer an item, in order, by the handler or in its place; none at all, which
    TorchServe takes for what it is, where the handler is broken. ``batch_size``: the most items
    that the handler gets at once."""
    processors, ids = context.request_processor, context.request_ids

    def run(places: list[int], values: list[dict[str, Any]]) -> list[Any] | None:
        context.request_processor = [processors[at] for at in places]
        context.request_ids = {new: ids[at] for new, at in enumerate(places)}
        results = handler(values, context)
        whole = isinstance(results, list) and len(results) == len(places)
        return results if whole else None

    def refuse(at: int, refusal: Refusal) -> bytes:
        context.set_response_status(code=refusal.status, idx=at)
        context.set_response_content_type(at, "application/json")
        context.set_response_header(at, ANSWERED_BY, str(requests.version))
        return refusal.body(_request_id(context, at))

    answers = requests.answer(data, run, refuse, batch_size)
    if answers is None:
        return []
    context.request_processor, context.request_ids = processors, ids
    return answers


def install_filter(service: Any, requests: RequestFilter, served: Served) -> None:
    """Have TorchServe's class of services ask ``requests`` before the handler."""
    hand_over: Callable[[list[dict[str, Any]]], Any] = service.retrieve_data_for_inference
    begin: Callable[..., None] = service.__init__

    def retrieve(batch: list[dict[str, Any]]) -> Any:
        spread = spread_batch(batch, served, requests.max_body_bytes)
        results = requests.read_batch(spread.items, spread.shares)
        processors, values, ids = hand_over(
            [
                batch[place] if isinstance(item, Refusal) else item
                for item, place in zip(spread.items, spread.places, strict=True)
            ]
        )
        items = [
            result if isinstance(result, Refusal) else Noted(fields, result, turn)
            for result, fields, turn in zip(results, values, spread.turns, strict=True)
        ]
        columns = (items, processors, list(ids.values()))
        groups = zip(*map(spread.grouped, columns), spread.exchanges, strict=True)
        client_requests = [Asked(*group) for group in groups]
        first_ids = {at: request.ids[0] for at, request in enumerate(client_requests)}
        first_processors = [request.processors[0] for request in client_requests]
        return first_processors, client_requests, first_ids

    def begin_with(
        self: Any, name: str, folder: str, about: Any, handler: Handler, *more: Any
    ) -> None:
        def answer(client_requests: list[Asked], context: Any) -> Any:
            return answer_requests(requests, client_requests, context, handler)

        begin(self, name, folder, about, answer, *more)

    service.retrieve_data_for_inference = staticmethod(retrieve)
    service.__init__ = begin_with


def open_filter(
    model: str, version: int, engine_dir: str | None, archive: Path, lone_threads: int = 1
) -> RequestFilter:
    """Return the filter of a version, in the instance whose folder is ``engine_dir``. ``archive``:
    where it is unpacked. ``lone_threads``: those of a request that comes alone."""
    checks_images = not image_limits.bounds_images(archive)
    raw = is_adopted(archive)
    if engine_dir is None:
        return RequestFilter(
            version, None, MAX_BODY_BYTES, checks_images=checks_images, leaves_raw=raw
        )
    instance = Path(engine_dir)
    config = _configured(instance)
    return RequestFilter(
        version,
        open_notes(notes_folder(instance.parent, model, version)),
        config.get("max_request_size", MAX_BODY_BYTES),
        config.get("default_response_timeout"),
        checks_images,
        lone_requests(archive, lone_threads, instance.parent / BUSY_FILE),
        Capture(instance.parent / "capture" / model),
        raw,
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
        if name.lower() == REQUEST_ID.decode() and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(at))
