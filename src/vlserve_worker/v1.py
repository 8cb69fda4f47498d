"""KServe's V1 protocol: `{"instances": […]}` in, `{"predictions": […]}` out. Each instance is one
item of the batch, a plain JSON request; each prediction is its plain answer.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlserve_worker.bodies import SENT_TYPE
from vlserve_worker.several_items import (
    Exchange,
    ItemAnswer,
    Raw,
    body_of,
    item_requests,
    read_or_refuse,
)
from vlserve_worker.v2 import rest
from vlserve_worker.v2.items import BODY
from vlserve_worker.v2.messages import Encoded, check_items, refused

V1 = "v1"
"""What the gateway's header calls the protocol."""


@dataclass(frozen=True, kw_only=True)
class V1Exchange(Exchange):
    """One V1 request."""

    item: ClassVar[str] = "instance"
    unwritable: ClassVar[str] = "an answer is no JSON"

    def write_answer(self, answers: Sequence[ItemAnswer], wrong: Sequence[str]) -> Encoded:
        content = {"predictions": [json.loads(answer.body) for answer in answers]}
        return Encoded(rest.json_bytes(content), rest.JSON)

    def write_error(self, message: str) -> Encoded:
        return rest.write_error(message)


def open_v1(raw: Raw, max_bytes: int) -> Exchange:
    """Return a V1 request as its items.

    Args:
        max_bytes: of the body, once it is unpacked.
    """
    return read_or_refuse(
        lambda: V1Exchange(items=_split(raw, max_bytes)),
        lambda refusal: V1Exchange(refusal=refusal),
    )


def _split(raw: Raw, max_bytes: int) -> list[Raw]:
    instances = _instances(rest.strict_json(bytes(body_of(raw, max_bytes))))
    return item_requests(raw, [[_body(instance)] for instance in instances], {SENT_TYPE: rest.JSON})


def _instances(content: Any) -> list[Any]:
    instances = content.get("instances") if isinstance(content, dict) else None
    if not isinstance(instances, list) or not instances:
        raise refused('the body must be {"instances": [...]}, with one or more of them')
    check_items(len(instances), "instances")
    return instances


def _body(instance: Any) -> Raw:
    return {
        "name": BODY,
        "contentType": rest.JSON,
        "value": bytearray(json.dumps(instance).encode()),
    }
