"""Summarise the records of a stress run and compare them with its limits. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlserve.loadgen.load_plan import LEAST_SHARE_SENT
from vlserve.loadgen.request_record import RequestRecord
from vlserve.loadgen.stress_plan import StressPlan


@dataclass(frozen=True)
class LoadSummary:
    """A part of a run. Latencies are those of right answers; failures are counted beside them."""

    requests: int
    failures: Mapping[str, int]
    """Kind -> count, the most frequent first."""
    error_rate: float
    rps: float
    """Right answers per second."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    versions: Mapping[int, int]
    """Version -> how many answers it gave, wrong ones too."""
    longest_gap_ms: float
    """The longest time without a right answer: between two, before the first, or after the last."""


@dataclass(frozen=True)
class ClientUse:
    """How busy the load generator was: at its own limit it measures itself."""

    processes: int
    cpu_share: float
    """Of the busiest process, mean of the judged time; 1.0 is a whole core, the most it can get."""
    late_p99_ms: float
    """99 % of the requests were sent no later than this after they were due."""

    @property
    def saturated(self) -> bool:
        """Whether the numbers may be the client's rather than the server's.

        Then Locust used a whole core (it warns at the same share), or it did not get the CPU to
        send in time.
        """
        return self.cpu_share > 0.9 or self.late_p99_ms > 50


def _milliseconds(latencies: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(latencies, percent)), 3) if latencies else None


def summarise(records: Sequence[RequestRecord], start_s: float, end_s: float) -> LoadSummary:
    """Summarise the requests that were due from ``start_s`` until ``end_s``, seconds of the run.

    An answer that comes later than ``end_s`` extends the time.
    """
    good = [r for r in records if r.failure is None and r.latency_ms is not None]
    latencies = [r.latency_ms for r in good if r.latency_ms is not None]
    ends = sorted(r.due_s + (r.latency_ms or 0.0) / 1000 for r in good)
    end_s = max([end_s, *ends[-1:]])
    gaps = np.diff([start_s, *ends, end_s])
    failures = Counter(r.failure for r in records if r.failure is not None)
    versions = Counter(r.version for r in records if r.version is not None)
    return LoadSummary(
        requests=len(records),
        failures=dict(failures.most_common()),
        error_rate=failures.total() / len(records) if records else 0.0,
        rps=round(len(good) / (end_s - start_s), 2) if end_s > start_s else 0.0,
        p50_ms=_milliseconds(latencies, 50),
        p95_ms=_milliseconds(latencies, 95),
        p99_ms=_milliseconds(latencies, 99),
        max_ms=_milliseconds(latencies, 100),
        versions=dict(sorted(versions.items())),
        longest_gap_ms=round(float(gaps.max()) * 1000, 1),
    )


def split_warm_up(
    records: Sequence[RequestRecord], warm_up_s: float
) -> tuple[list[RequestRecord], list[RequestRecord]]:
    """Return the records due in the warm-up, and those that are judged."""
    return (
        [r for r in records if r.due_s < warm_up_s],
        [r for r in records if r.due_s >= warm_up_s],
    )


def late_p99_ms(records: Sequence[RequestRecord]) -> float:
    """Return how late clients sent requests after their due time, 99th percentile in ms."""
    late = [r.late_ms for r in records if r.latency_ms is not None]
    return _milliseconds(late, 99) or 0.0


def breaches(figures: LoadSummary, plan: StressPlan) -> tuple[str, ...]:
    """Return the limits of the plan that did not hold, in words; empty: all held."""
    if figures.p99_ms is None:
        return ("no request was answered right",)
    messages = []
    target = (plan.rate_per_s or 0.0) * plan.duration_s
    if figures.requests < LEAST_SHARE_SENT * target:
        messages.append(
            f"{figures.requests} requests were sent of the {target:.0f} that the rate asks for"
        )
    if figures.error_rate > plan.max_error_rate:
        messages.append(f"error rate {figures.error_rate:.3%} is above {plan.max_error_rate:.3%}")
    if figures.p99_ms > plan.max_p99_ms:
        messages.append(f"p99 {figures.p99_ms:.1f} ms is above {plan.max_p99_ms:g} ms")
    return tuple(messages)
