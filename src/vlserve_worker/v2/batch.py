"""A batch of an engine, in which V2 and V1 requests stand as their items."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vlserve_worker.adopted import ADOPTED
from vlserve_worker.bodies import SENT_TYPE
from vlserve_worker.request_filter import Refusal
from vlserve_worker.several_items import Exchange, Raw, header_of
from vlserve_worker.v1 import V1, open_v1
from vlserve_worker.v2 import protobuf
from vlserve_worker.v2.exchange import PROTOCOL, V2, Served, V2Exchange, open_exchange
from vlserve_worker.v2.messages import refused

One = TypeVar("One")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spread:
    """``items``: what is asked of the archive, and what is refused in its place. Of each of them,
    ``places``: that of its request in the batch; ``turns``: its own among the request's items;
    ``shares``: among how many it divides the batch's time, so that each request has as much.
    ``exchanges``: of each request, None of a plain one.
    """

    items: list[Raw | Refusal]
    places: list[int]
    turns: list[int]
    shares: list[int]
    exchanges: list[Exchange | None]

    def grouped(self, values: Sequence[One]) -> Iterator[Sequence[One]]:
        """Yield, for each request, those of ``values`` that are its items'."""
        at = 0
        for exchange in self.exchanges:
            count = len(exchange.items) or 1 if exchange else 1
            yield values[at : at + count]
            at += count


def spread_batch(batch: Sequence[Raw | Refusal], served: Served, max_bytes: int) -> Spread:
    """Replace each V2 or V1 request of a batch by its items. ``max_bytes``: of a body, unpacked."""
    spread = Spread([], [], [], [], [])
    for place, request in enumerate(batch):
        exchange = None if isinstance(request, Refusal) else _opened(request, served, max_bytes)
        items: Sequence[Raw | Refusal] = [request]
        if exchange is not None:
            refusal = exchange.refusal
            items = [Refusal(refusal.code, refusal.message)] if refusal else exchange.items
        spread.exchanges.append(exchange)
        spread.items.extend(items)
        spread.places.extend([place] * len(items))
        spread.turns.extend(range(len(items)))
        spread.shares.extend([len(batch) * len(items)] * len(items))
    return spread


def _opened(request: Raw, served: Served, max_bytes: int) -> Exchange | None:
    if served.task == ADOPTED:  # its handler gets a request as it is
        return _no_grpc(request, served)
    if header_of(request, PROTOCOL) == V1:
        return open_v1(request, max_bytes)
    return open_exchange(request, served, max_bytes)


def _no_grpc(request: Raw, served: Served) -> Exchange | None:
    """Refuse a gRPC call: what a handler of TorchServe answers is no message for a client."""
    if header_of(request, PROTOCOL) != V2 or header_of(request, SENT_TYPE) != protobuf.PROTOBUF:
        return None
    refusal = refused(
        f"{served.model} is an adopted archive, which has no gRPC: send POST /predictions/"
    )
    return V2Exchange(codec=protobuf, served=served, refusal=refusal)


def served_by(archive: Path) -> Served:
    """Return what an unpacked archive serves; nothing of it where its manifest cannot be read."""
    try:
        manifest = json.loads((archive / "manifest.json").read_text(encoding="utf-8"))
        return Served(str(manifest["model"]), int(manifest["version"]), str(manifest["task"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s: what it serves cannot be read: %s", archive, error)
        return Served()
