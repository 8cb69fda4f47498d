"""One request of several items, whatever its protocol: apart into plain requests, as TorchServe's
worker reads them, and their plain answers together again.

A bad item fails its request: 400 where the fault is the client's, in the item's own words after its
index.
"""

import json
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlserve_worker.bodies import REQUEST_ID, SENT_ENCODING, BodyRefused, header_value, unpacked
from vlserve_worker.v2.item_ids import item_id
from vlserve_worker.v2.items import BODY
from vlserve_worker.v2.messages import Encoded, refused

logger = logging.getLogger(__name__)

Raw = dict[str, Any]
"""A request as TorchServe's worker reads it: ``headers`` and ``parameters``."""


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


@dataclass(frozen=True, kw_only=True)
class Exchange(ABC):
    """One request and its answer. ``items``: its plain requests; of one that cannot be read, none,
    and ``refusal`` says why. ``partial``: a bad item leaves the others their answers."""

    items: Sequence[Raw] = ()
    refusal: BodyRefused | None = None
    partial: bool = False

    item: ClassVar[str]
    """What the protocol calls an item."""
    unwritable: ClassVar[str]
    """What is wrong with answers that cannot be written in it."""

    def join(self, answers: Sequence[ItemAnswer]) -> WholeAnswer:
        """Return the answer to the request, from that to each of its items, or from the one refusal
        of all of it."""
        timing = summed([answer.timing for answer in answers])
        wrong = [error_of(answer) for answer in answers]
        if self.refusal is not None:
            return WholeAnswer(answers[0].status, timing, self.write_error(wrong[0]))
        first = next((at for at, error in enumerate(wrong) if error), None)
        if first is not None and not self.partial:
            status = answers[first].status
            encoded = self.write_error(f"{self.item} {first}: {wrong[first]}")
            return WholeAnswer(400 if status < 500 else status, timing, encoded)
        try:
            return WholeAnswer(200, timing, self.write_answer(answers, wrong))
        except Exception as error:  # an archive may answer anything: the batch's others are whole
            logger.exception("the answers to a request cannot be written")
            why = f"inference_failed: {self.unwritable} ({type(error).__name__})"
            return WholeAnswer(500, timing, self.write_error(why))

    @abstractmethod
    def write_answer(self, answers: Sequence[ItemAnswer], wrong: Sequence[str]) -> Encoded:
        """Write the items' answers as one; any exception where they have no form in the protocol.
        ``wrong``: of each item, as `error_of`; with ``partial`` alone there is any."""

    @abstractmethod
    def write_error(self, message: str) -> Encoded:
        """Write an error."""


def read_or_refuse(
    read: Callable[[], Exchange], refuse: Callable[[BodyRefused], Exchange]
) -> Exchange:
    """Return what ``read`` makes of a request, or ``refuse`` of the reason that it cannot be."""
    try:
        return read()
    except BodyRefused as error:
        return refuse(error)
    except Exception as error:  # whatever is in it: it must not take the batch down
        logger.exception("a request of several items could not be read")
        return refuse(refused(f"the request cannot be read ({type(error).__name__})"))


def header_of(raw: Raw, name: bytes) -> str:
    """Return the value of a header; empty where it is not there."""
    return header_value(raw, name).decode("utf-8", "replace")


def request_id_of(raw: Raw) -> str:
    """Return the client's X-Request-Id; a new one where there is none."""
    return header_of(raw, REQUEST_ID) or str(uuid.uuid4())


def body_of(raw: Raw, max_bytes: int) -> bytearray:
    """Return the body, unpacked. Raises BodyRefused: it cannot be, or has more than ``max_bytes``
    then."""
    body = next((part["value"] for part in raw["parameters"] if part["name"] == BODY), bytearray())
    return unpacked(bytearray(body), header_of(raw, SENT_ENCODING), max_bytes)


def item_requests(
    raw: Raw, parameters: Sequence[list[Raw]], headers: Mapping[bytes, str]
) -> list[Raw]:
    """Return a plain request for each item's ``parameters``, with an id of its own, and with
    ``headers`` in the place of its request's."""
    request_id = request_id_of(raw)
    others = [
        header
        for header in raw["headers"]
        if bytes(header["name"]).lower() not in (REQUEST_ID, SENT_ENCODING, *headers)
    ]
    return [
        {
            **raw,
            "headers": [
                *others,
                _header(REQUEST_ID, item_id(request_id, at, len(parameters))),
                *(_header(name, value) for name, value in headers.items()),
            ],
            "parameters": item_parameters,
        }
        for at, item_parameters in enumerate(parameters)
    ]


def _header(name: bytes, value: str) -> Raw:
    return {"name": name, "value": value.encode()}


def error_of(answer: ItemAnswer) -> str:
    """Return ``CODE: MESSAGE`` of a plain error; empty of an answer."""
    if answer.status < 400:
        return ""
    try:
        error = json.loads(answer.body)["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"inference_failed: the version answered {answer.status}"


def summed(timings: Sequence[str]) -> str:
    """Return Server-Timing of all batches that the items were in; neighbours of one share it."""
    total: dict[str, float] = {}
    for timing in dict.fromkeys(timings):
        for stage in filter(None, timing.split(", ")):
            name, _, duration = stage.partition(";dur=")
            total[name] = total.get(name, 0.0) + float(duration or 0)
    return ", ".join(f"{name};dur={value:.3f}" for name, value in total.items())
