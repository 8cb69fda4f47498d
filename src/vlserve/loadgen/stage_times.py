"""Where the time of requests went, as the Server-Timing of their answers tells. Pure.

The header is W3C's (https://www.w3.org/TR/server-timing/): the handler names what it did, the
gateway adds ``engine``, the time from the request sent on to the answer's first byte.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlserve.loadgen.request_record import RequestRecord

IN_HANDLER = ("decode", "tokenise", "infer", "postprocess", "serialise")
STAGES = ("gateway", "queue", *IN_HANDLER)
"""``gateway`` is all outside of the engine: the gateway, both ways over the network, and the client
itself. ``queue`` is what the engine took beside its handler: the body's way in, waiting for a
worker and for its batch, logs, the answer's way out. The others are those of the whole batch, for
which each of its requests waits."""


@dataclass(frozen=True)
class StageMeans:
    """Mean milliseconds of each stage; they add up to ``latency_ms``."""

    requests: int
    latency_ms: float
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class WhereTimeWent:
    """Of the right answers that said where their time went."""

    share: float
    """How many of all right answers those are."""
    all: StageMeans
    slowest: StageMeans
    """The slowest 1 %, at least one."""


def read_timing(headers: Iterable[str]) -> dict[str, float]:
    """Server-Timing headers -> milliseconds by name; entries without a readable ``dur`` are left
    out."""
    found = {}
    for entry in ",".join(headers).split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    found[name] = float(value.strip().strip('"'))
                except ValueError:
                    continue
    return found


def stages_of(latency_ms: float, timing: Mapping[str, float]) -> dict[str, float] | None:
    """The stages of one answer, which add up to its latency; None if it does not tell them."""
    if "engine" not in timing or any(stage not in timing for stage in IN_HANDLER):
        return None
    handled = {stage: timing[stage] for stage in IN_HANDLER}
    engine = timing["engine"]
    return {"gateway": latency_ms - engine, "queue": engine - sum(handled.values()), **handled}


def where_time_went(records: Sequence[RequestRecord]) -> WhereTimeWent | None:
    """None where no right answer tells."""
    good = [r for r in records if r.failure is None and r.latency_ms is not None]
    told = [
        (r.latency_ms, stages)
        for r in good
        if r.latency_ms is not None and (stages := stages_of(r.latency_ms, r.timing)) is not None
    ]
    if not told:
        return None
    told.sort(key=lambda one: one[0])
    slowest = told[-max(1, len(told) // 100) :]
    return WhereTimeWent(len(told) / len(good), _means(told), _means(slowest))


def _means(told: Sequence[tuple[float, Mapping[str, float]]]) -> StageMeans:
    return StageMeans(
        requests=len(told),
        latency_ms=float(np.mean([latency_ms for latency_ms, _ in told])),
        stage_ms={stage: float(np.mean([stages[stage] for _, stages in told])) for stage in STAGES},
    )
