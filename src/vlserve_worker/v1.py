"""KServe's V1 protocol: `{"instances": […]}` in, `{"predictions": […]}` out. Each instance is one
item of the batch, a plain JSON request; each prediction is its plain answer.

A bad instance fails its request: 400 where the fault is the client's, in the instance's own words
after its index. https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlserve_worker.bodies import SENT_ENCODING, SENT_TYPE, BodyRefused, unpacked
from vlserve_worker.v2.exchange import (
    REQUEST_ID,
    ItemAnswer,
    Raw,
    WholeAnswer,
    error_of,
    header_of,
    summed,
)
from vlserve_worker.v2.item_ids import item_id
from vlserve_worker.v2.items import BODY
from vlserve_worker.v2.messages import MAX_ITEMS, TOO_MANY_ITEMS, Encoded, refused
from vlserve_worker.v2.rest import JSON, strict_json

logger = logging.getLogger(__name__)

V1 = "v1"
"""What the gateway's header calls the protocol."""

_OF_ITEMS = (REQUEST_ID, SENT_ENCODING, SENT_TYPE)
"""Headers that each item has of its own."""


@dataclass(frozen=True)
class V1Exchange:
    """One V1 request. ``items``: its plain requests; of one that cannot be read, none, and
    ``refusal`` says why."""

    items: Sequence[Raw] = ()
    refusal: BodyRefused | None = None

    def join(self, answers: Sequence[ItemAnswer]) -> WholeAnswer:
        """Return the answer to the request, from that to each of its items, or from the one refusal
        of all of it."""
        timing = summed([answer.timing for answer in answers])
        for at, answer in enumerate(answers):
            wrong = error_of(answer)
            if wrong and self.refusal is not None:
                return WholeAnswer(answer.status, timing, _json({"error": wrong}))
            if wrong:
                status = 400 if answer.status < 500 else answer.status
                return WholeAnswer(status, timing, _json({"error": f"instance {at}: {wrong}"}))
        try:
            told = {"predictions": [json.loads(answer.body) for answer in answers]}
            return WholeAnswer(200, timing, _json(told))
        except Exception as error:  # an archive may answer anything: the batch's others are whole
            logger.exception("the answers to a request are no JSON")
            said = f"inference_failed: an answer is no JSON ({type(error).__name__})"
            return WholeAnswer(500, timing, _json({"error": said}))


def open_v1(raw: Raw, max_bytes: int) -> V1Exchange:
    """Return a V1 request as its items.

    Args:
        max_bytes: of the body, once it is unpacked.
    """
    try:
        return V1Exchange(_split(raw, max_bytes))
    except BodyRefused as error:
        return V1Exchange(refusal=error)
    except Exception as error:  # whatever is in it: it must not take the batch down
        logger.exception("a V1 request could not be read")
        unread = refused(f"the request cannot be read ({type(error).__name__})")
        return V1Exchange(refusal=unread)


def _split(raw: Raw, max_bytes: int) -> list[Raw]:
    sent = next((one["value"] for one in raw["parameters"] if one["name"] == BODY), bytearray())
    body = unpacked(bytearray(sent), header_of(raw, SENT_ENCODING), max_bytes)
    instances = _instances(strict_json(bytes(body)))
    request_id = header_of(raw, REQUEST_ID) or str(uuid.uuid4())
    headers = [one for one in raw["headers"] if bytes(one["name"]).lower() not in _OF_ITEMS]
    return [
        {
            **raw,
            "headers": [
                *headers,
                {"name": REQUEST_ID, "value": item_id(request_id, at, len(instances)).encode()},
                {"name": SENT_TYPE, "value": JSON.encode()},
            ],
            "parameters": [{"name": BODY, "contentType": JSON, "value": _bytes(instance)}],
        }
        for at, instance in enumerate(instances)
    ]


def _instances(told: Any) -> list[Any]:
    instances = told.get("instances") if isinstance(told, dict) else None
    if not isinstance(instances, list) or not instances:
        raise refused('the body must be {"instances": [...]}, with one or more of them')
    if len(instances) > MAX_ITEMS:
        raise refused(
            f"the request has {len(instances)} instances, the limit is {MAX_ITEMS}: send them in "
            "several",
            TOO_MANY_ITEMS,
        )
    return instances


def _bytes(told: Any) -> bytearray:
    return bytearray(json.dumps(told).encode())


def _json(told: Any) -> Encoded:
    text = json.dumps(told, ensure_ascii=False, allow_nan=False)
    return Encoded(text.encode("utf-8", "backslashreplace"), JSON)
