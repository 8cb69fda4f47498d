"""Find where the time of requests went, from the Server-Timing of their answers. Pure.

The header is W3C's (https://www.w3.org/TR/server-timing/): the handler names what it did, the
gateway adds ``engine``, the time from the request sent on to the answer's first byte.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlserve.loadgen.request_record import RequestRecord

IN_HANDLER = ("decode", "tokenise", "infer", "postprocess", "serialise")
STAGES = ("gateway", "queue", *IN_HANDLER)
"""``gateway`` is all time outside of the engine: gateway, network and client. ``queue`` is the
engine's time outside of the handler: reading the body, waiting for a worker and for the batch,
logs, writing the answer. The others are times of the whole batch, for which each of its requests
waits."""


@dataclass(frozen=True)
class StageMeans:
    """Mean milliseconds of each stage; they add up to ``latency_ms``."""

    requests: int
    latency_ms: float
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class WhereTimeWent:
    """Mean times of the right answers that have timings."""

    share: float
    """Their share of all right answers, 0 to 1."""
    all: StageMeans
    slowest: StageMeans
    """The slowest 1 %, at least one."""


def read_timing(headers: Iterable[str]) -> dict[str, float]:
    """Return the milliseconds by name of Server-Timing headers.

    Entries without a readable ``dur`` are left out.
    """
    timing = {}
    for entry in ",".join(headers).split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    timing[name] = float(value.strip().strip('"'))
                except ValueError:
                    continue
    return timing


def stages_of(latency_ms: float, timing: Mapping[str, float]) -> dict[str, float] | None:
    """Return the stages of one answer, which add up to its latency; None if a timing is missing."""
    if "engine" not in timing or any(stage not in timing for stage in IN_HANDLER):
        return None
    handler = {stage: timing[stage] for stage in IN_HANDLER}
    engine = timing["engine"]
    return {"gateway": latency_ms - engine, "queue": engine - sum(handler.values()), **handler}


def where_time_went(records: Sequence[RequestRecord]) -> WhereTimeWent | None:
    """Return the mean times of the right answers; None where none of them has timings."""
    good = [r for r in records if r.failure is None and r.latency_ms is not None]
    times = [
        (r.latency_ms, stages)
        for r in good
        if r.latency_ms is not None and (stages := stages_of(r.latency_ms, r.timing)) is not None
    ]
    if not times:
        return None
    times.sort(key=lambda pair: pair[0])
    slowest = times[-max(1, len(times) // 100) :]
    return WhereTimeWent(len(times) / len(good), _means(times), _means(slowest))


def _means(times: Sequence[tuple[float, Mapping[str, float]]]) -> StageMeans:
    means = {stage: float(np.mean([stages[stage] for _, stages in times])) for stage in STAGES}
    return StageMeans(
        requests=len(times),
        latency_ms=float(np.mean([latency_ms for latency_ms, _ in times])),
        stage_ms=means,
    )
