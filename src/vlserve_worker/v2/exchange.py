"""One V2 request and its answer: apart into plain requests, as TorchServe's worker reads them, and
their plain answers together again.

A bad item fails its request: 400 where the fault is the client's, in the item's own words after its
index. With the parameter ``partial`` the other items are answered, and ``errors`` says what is
wrong with each.
"""

import json
import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from vlserve_worker.bodies import SENT_ENCODING, SENT_TYPE, BodyRefused, quoted, unpacked
from vlserve_worker.v2 import protobuf, rest
from vlserve_worker.v2.item_ids import item_id
from vlserve_worker.v2.items import BODY, is_partial, split_items
from vlserve_worker.v2.messages import (
    BYTES,
    Encoded,
    InferAnswer,
    InferRequest,
    Tensor,
    refused,
)
from vlserve_worker.v2.outputs import ERRORS, join_answers, outputs_of

PROTOCOL = b"x-vlserve-protocol"
"""The gateway's header with the protocol of a request; without it, it is a plain one."""

JSON_LENGTH = b"x-vlserve-json-length"
"""The gateway's header with the client's Inference-Header-Content-Length, which Triton's own
requests need for themselves."""

REQUEST_ID = b"x-request-id"

logger = logging.getLogger(__name__)

Raw = dict[str, Any]
"""A request as TorchServe's worker reads it: ``headers`` and ``parameters``."""


class Codec(Protocol):
    """How V2 is carried."""

    def read_request(self, body: bytearray, json_length: str) -> InferRequest:
        """Raises BodyRefused."""
        ...

    def write_answer(self, answer: InferAnswer, request: InferRequest) -> Encoded: ...

    def write_error(self, message: str) -> Encoded: ...


V2 = "v2"
"""Value of PROTOCOL."""

CODECS: Mapping[str, Codec | ModuleType] = {protobuf.PROTOBUF: protobuf}
"""Content type of a body -> what reads and writes it; any other is JSON."""


@dataclass(frozen=True)
class Served:
    """The version that answers."""

    model: str = ""
    version: int = 0
    task: str = ""


@dataclass(frozen=True)
class ItemAnswer:
    """What an archive, or the filter in its place, said to one item: an HTTP status, the value of
    Server-Timing, and JSON; of an adopted archive headers, and a body of any form."""

    status: int
    timing: str
    body: bytes
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class WholeAnswer:
    """What the client gets."""

    status: int
    timing: str
    encoded: Encoded


@dataclass(frozen=True)
class Exchange:
    """One V2 request. ``items``: its plain requests; of one that cannot be read, none, and
    ``refusal`` says why."""

    codec: Any
    served: Served
    items: Sequence[Raw] = ()
    request: InferRequest | None = None
    partial: bool = False
    refusal: BodyRefused | None = field(default=None)

    def join(self, answers: Sequence[ItemAnswer]) -> WholeAnswer:
        """Return the answer to the request, from that to each of its items, or from the one refusal
        of all of it."""
        timing = summed([answer.timing for answer in answers])
        wrong = [error_of(answer) for answer in answers]
        if self.request is None:
            return WholeAnswer(answers[0].status, timing, self.codec.write_error(wrong[0]))
        first = next((at for at, error in enumerate(wrong) if error), None)
        if first is not None and not self.partial:
            status = answers[first].status
            error = self.codec.write_error(f"item {first}: {wrong[first]}")
            return WholeAnswer(400 if status < 500 else status, timing, error)
        try:
            return WholeAnswer(200, timing, self._answer(self.request, answers, wrong))
        except Exception as error:  # an archive may answer anything: the batch's others are whole
            logger.exception("the answers to a request have no form in V2")
            said = f"inference_failed: the answer has no form in V2 ({type(error).__name__})"
            return WholeAnswer(500, timing, self.codec.write_error(said))

    def _answer(
        self, request: InferRequest, answers: Sequence[ItemAnswer], wrong: Sequence[str]
    ) -> Encoded:
        told = [
            None if error else json.loads(answer.body)
            for answer, error in zip(answers, wrong, strict=True)
        ]
        outputs = join_answers(self.served.task, told)
        if self.partial:
            errors = [error.encode("utf-8", "surrogatepass") for error in wrong]
            outputs.append(Tensor(ERRORS, BYTES, (len(errors),), errors))
        if request.outputs:
            by_name = {output.name: output for output in outputs}
            asked = [by_name.get(one.name) for one in request.outputs]
            outputs = [output for output in asked if output is not None]
        version = str(self.served.version)
        answer = InferAnswer(self.served.model, version, request.id, tuple(outputs))
        encoded: Encoded = self.codec.write_answer(answer, request)
        return encoded


def open_exchange(raw: Raw, served: Served, max_bytes: int) -> Exchange | None:
    """Return a V2 request as its items; None of a plain request.

    Args:
        max_bytes: of the body, once it is unpacked.
    """
    if header_of(raw, PROTOCOL) != V2:
        return None
    codec = CODECS.get(header_of(raw, SENT_TYPE), rest)
    try:
        return _read(raw, codec, served, max_bytes)
    except BodyRefused as error:
        return Exchange(codec, served, refusal=error)
    except Exception as error:  # whatever is in it: it must not take the batch down
        logger.exception("a V2 request could not be read")
        unread = refused(f"the request cannot be read ({type(error).__name__})")
        return Exchange(codec, served, refusal=unread)


def header_of(raw: Raw, name: bytes) -> str:
    """Return the value of a header; empty where it is not there."""
    values = (one["value"] for one in raw["headers"] if bytes(one["name"]).lower() == name)
    return bytes(next(values, b"")).decode("utf-8", "replace")


def _read(raw: Raw, codec: Any, served: Served, max_bytes: int) -> Exchange:
    sent = next((one["value"] for one in raw["parameters"] if one["name"] == BODY), bytearray())
    body = unpacked(bytearray(sent), header_of(raw, SENT_ENCODING), max_bytes)
    request: InferRequest = codec.read_request(body, header_of(raw, JSON_LENGTH))
    partial = is_partial(request)
    _check_outputs(request, served, partial)
    items = split_items(request)
    request_id = header_of(raw, REQUEST_ID) or str(uuid.uuid4())
    headers = [
        one
        for one in raw["headers"]
        if bytes(one["name"]).lower() not in (REQUEST_ID, SENT_ENCODING)
    ]
    plain: list[Raw] = [
        {
            **raw,
            "headers": [*headers, _id_header(item_id(request_id, at, len(items)))],
            "parameters": [_part(*field) for field in fields.items()],
        }
        for at, fields in enumerate(items)
    ]
    return Exchange(codec, served, plain, request, partial)


def _check_outputs(request: InferRequest, served: Served, partial: bool) -> None:
    known = [output.name for output in outputs_of(served.task)] + ([ERRORS] if partial else [])
    for one in request.outputs:
        if one.name not in known:
            raise refused(f"there is no output {quoted(one.name)}: there are {', '.join(known)}")
    twice = Counter(one.name for one in request.outputs).most_common(1)
    if twice and twice[0][1] > 1:
        raise refused(f"the output {quoted(twice[0][0])} is asked for twice")


def _id_header(request_id: str) -> Raw:
    return {"name": REQUEST_ID, "value": request_id.encode()}


def _part(name: str, value: bytes) -> Raw:
    return {"name": name, "contentType": "application/octet-stream", "value": bytearray(value)}


def error_of(answer: ItemAnswer) -> str:
    """Return ``CODE: MESSAGE`` of a plain error; empty of an answer."""
    if answer.status < 400:
        return ""
    try:
        error = json.loads(answer.body)["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, TypeError, KeyError):
        return f"inference_failed: the version answered {answer.status}"


def summed(timings: Sequence[str]) -> str:
    """Return Server-Timing of all batches that the items were in; neighbours of one share it."""
    total: dict[str, float] = {}
    for timing in dict.fromkeys(timings):
        for stage in filter(None, timing.split(", ")):
            name, _, duration = stage.partition(";dur=")
            total[name] = total.get(name, 0.0) + float(duration or 0)
    return ", ".join(f"{name};dur={value:.3f}" for name, value in total.items())
