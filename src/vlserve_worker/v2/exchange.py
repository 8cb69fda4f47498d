"""One V2 request and its answer: what it asks of its items, and the outputs of their answers.

With the parameter ``partial`` a bad item leaves the others their answers, and ``errors`` says what
is wrong with each.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from vlserve_worker.bodies import SENT_TYPE, quoted
from vlserve_worker.several_items import (
    Exchange,
    ItemAnswer,
    Raw,
    body_of,
    header_of,
    item_requests,
    read_or_refuse,
)
from vlserve_worker.v2 import protobuf, rest
from vlserve_worker.v2.items import is_partial, split_items
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


class Codec(Protocol):
    """How V2 is carried."""

    def read_request(self, body: bytearray, json_length: str) -> InferRequest:
        """Raises BodyRefused."""
        ...

    def write_answer(self, answer: InferAnswer, request: InferRequest) -> Encoded: ...

    def write_error(self, message: str) -> Encoded: ...


V2 = "v2"
"""Value of PROTOCOL."""

CODECS: Mapping[str, Codec] = {protobuf.PROTOBUF: protobuf}
"""Content type of a body -> what reads and writes it; any other is JSON."""


@dataclass(frozen=True)
class Served:
    """The version that answers."""

    model: str = ""
    version: int = 0
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class V2Exchange(Exchange):
    """One V2 request. ``request``: nothing of one that is refused."""

    codec: Codec
    served: Served
    request: InferRequest = field(default_factory=lambda: InferRequest(()))

    item: ClassVar[str] = "item"
    unwritable: ClassVar[str] = "the answer has no form in V2"

    def write_answer(self, answers: Sequence[ItemAnswer], wrong: Sequence[str]) -> Encoded:
        contents = [
            None if error else json.loads(answer.body)
            for answer, error in zip(answers, wrong, strict=True)
        ]
        outputs = join_answers(self.served.task, contents)
        if self.partial:
            errors = [error.encode("utf-8", "surrogatepass") for error in wrong]
            outputs.append(Tensor(ERRORS, BYTES, (len(errors),), errors))
        if self.request.outputs:
            by_name = {output.name: output for output in outputs}
            selection = [by_name.get(choice.name) for choice in self.request.outputs]
            outputs = [output for output in selection if output is not None]
        version = str(self.served.version)
        answer = InferAnswer(self.served.model, version, self.request.id, tuple(outputs))
        return self.codec.write_answer(answer, self.request)

    def write_error(self, message: str) -> Encoded:
        return self.codec.write_error(message)


def open_exchange(raw: Raw, served: Served, max_bytes: int) -> Exchange | None:
    """Return a V2 request as its items; None of a plain request.

    Args:
        max_bytes: of the body, once it is unpacked.
    """
    if header_of(raw, PROTOCOL) != V2:
        return None
    codec = CODECS.get(header_of(raw, SENT_TYPE), rest)
    return read_or_refuse(
        lambda: _read(raw, codec, served, max_bytes),
        lambda refusal: V2Exchange(codec=codec, served=served, refusal=refusal),
    )


def _read(raw: Raw, codec: Codec, served: Served, max_bytes: int) -> Exchange:
    request = codec.read_request(body_of(raw, max_bytes), header_of(raw, JSON_LENGTH))
    partial = is_partial(request)
    _check_outputs(request, served, partial)
    parameters = [[_part(*field) for field in fields.items()] for fields in split_items(request)]
    items = item_requests(raw, parameters, {})
    return V2Exchange(codec=codec, served=served, items=items, request=request, partial=partial)


def _check_outputs(request: InferRequest, served: Served, partial: bool) -> None:
    names = [output.name for output in outputs_of(served.task)] + ([ERRORS] if partial else [])
    for choice in request.outputs:
        if choice.name not in names:
            raise refused(f"there is no output {quoted(choice.name)}: there are {', '.join(names)}")
    most_common = Counter(choice.name for choice in request.outputs).most_common(1)
    if most_common and most_common[0][1] > 1:
        raise refused(f"the output {quoted(most_common[0][0])} is asked for twice")


def _part(name: str, value: bytes) -> Raw:
    return {"name": name, "contentType": "application/octet-stream", "value": bytearray(value)}
