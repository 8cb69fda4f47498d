"""Check a release in steps from outside: by the answers that clients got, and nothing else. Pure.

A request counts in a step if it was sent and answered while that step was certainly in force. One
that was under way at a change may belong to either step, and counts in none. Every request counts
among the lost ones, whenever it was sent.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlserve.loadgen.request_record import RequestRecord

SMALLEST_P = 0.001
"""A split is wrong where chance misses the weight by so much no more often than this."""
ROLLBACK_MS = 150.0
"""The longest time in which a rollback must reach clients."""
FEWEST = 10
"""The fewest requests, or sticky keys, by which a split is judged."""
GUARD_S = 0.1
"""Time in which a weight that the control service reports reaches every thread of the gateway."""


@dataclass(frozen=True)
class Step:
    """A time during which the candidate certainly had ``weight`` per cent.

    ``begun`` and ``ended`` are Unix times in seconds.
    """

    weight: int
    begun: float
    ended: float

    def has(self, request: RequestRecord) -> bool:
        """Tell whether the request was sent and answered in this step."""
        return self.begun + GUARD_S <= request.sent_at and request.ended_at <= self.ended


@dataclass(frozen=True)
class WatchedRelease:
    """What was done to the model while the requests were sent."""

    candidate: int
    stable: int
    steps: tuple[Step, ...]
    promoted: bool
    why: str
    rolled_back_at: float | None
    """Unix time, s, of the control service's answer to the rollback; None: there was none."""


@dataclass(frozen=True)
class Limits:
    """What each version must hold."""

    max_error_rate: float
    max_p99_ms: float


@dataclass(frozen=True)
class Check:
    """One check and its outcome. Field names are result.json's."""

    name: str
    passed: bool
    said: str
    """The numbers behind the outcome, in words."""


@dataclass(frozen=True)
class VersionSummary:
    """The answers of one version during the whole run. Field names are result.json's."""

    version: int
    requests: int
    failures: int
    p50_ms: float | None
    """Of right answers; None: there was none."""
    p99_ms: float | None

    @property
    def error_rate(self) -> float:
        """Failures per request, 0 to 1."""
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class StepSplit:
    """How a step split the requests that the gateway routed. Field names are result.json's."""

    weight: int
    free: int
    """Requests without a sticky key that asked for no version."""
    free_on_candidate: int
    callers: int
    """Sticky keys, each counted once."""
    callers_on_candidate: int


def check_release(
    requests: Sequence[RequestRecord], release: WatchedRelease, limits: Limits
) -> tuple[Check, ...]:
    """Return all checks, in the order in which they are worth reading."""
    return (
        Check("promoted", release.promoted, release.why),
        *_check_splits(requests, release),
        _check_sticky(requests, release),
        _check_monotone(requests, release),
        _check_requested(requests),
        _check_lost(requests),
        *(_check_version(version, limits) for version in version_summaries(requests, release)),
        _check_rollback(requests, release),
    )


def version_summaries(
    requests: Sequence[RequestRecord], release: WatchedRelease
) -> tuple[VersionSummary, ...]:
    """Return the answers of stable and of the candidate, summarised."""
    return tuple(_summarise(requests, number) for number in (release.stable, release.candidate))


def step_splits(
    requests: Sequence[RequestRecord], release: WatchedRelease
) -> tuple[StepSplit, ...]:
    """Return the split of each step."""
    right = _right_answers(requests)
    return tuple(_split(right, step, release.candidate) for step in release.steps)


def rollback_ms(requests: Sequence[RequestRecord], release: WatchedRelease) -> float | None:
    """Return the time from the rollback's answer to the candidate's last answer, in ms.

    Counts requests that were sent after the rollback was answered and asked for no version: 0
    where the candidate answered none of them, None where there were none.
    """
    since = release.rolled_back_at
    if since is None:
        return None
    after = [r for r in _right_answers(requests) if r.sent_at >= since and not r.requested_version]
    late_s = [r.ended_at - since for r in after if r.version == release.candidate]
    return round(max(late_s, default=0.0) * 1000, 1) if after else None


def _check_splits(requests: Sequence[RequestRecord], release: WatchedRelease) -> Iterator[Check]:
    """Yield a check for each step, and a broken one where no step was seen."""
    splits = step_splits(requests, release)
    if not splits:
        yield Check("split", False, "no step was seen")
    for split in splits:
        draws = (
            _check_draw("requests", split.free_on_candidate, split.free, split.weight),
            _check_draw("callers", split.callers_on_candidate, split.callers, split.weight),
        )
        passed = all(passed for passed, _ in draws)
        yield Check(f"split {split.weight} %", passed, ", ".join(words for _, words in draws))


def _check_draw(unit: str, on_candidate: int, total: int, weight: int) -> tuple[bool, str]:
    if total < FEWEST:
        return False, f"only {total} {unit}"
    from scipy.stats import binomtest  # takes a second, which `vlserve stress` does not need

    p = float(binomtest(on_candidate, total, weight / 100).pvalue)
    return p > SMALLEST_P, f"{on_candidate} of {total} {unit} (p {p:.2g})"


def _check_sticky(requests: Sequence[RequestRecord], release: WatchedRelease) -> Check:
    moves, repeats = [], 0
    for step in release.steps:
        version_of: dict[str, int] = {}
        for key, version in _sticky_answers(requests, step):
            repeats += key in version_of
            if version_of.setdefault(key, version) != version:
                moves.append(f"{key} at {step.weight} %")
    if moves:
        return Check("sticky", False, f"callers changed their version: {', '.join(moves[:3])}")
    return Check("sticky", repeats > 0, f"{repeats} times a caller came again within a step")


def _check_monotone(requests: Sequence[RequestRecord], release: WatchedRelease) -> Check:
    on_candidate: set[str] = set()
    returns, repeats = [], 0
    for step in release.steps:
        answers = _sticky_answers(requests, step)
        for key, version in answers:
            if key in on_candidate:
                repeats += 1
                if version == release.stable:
                    returns.append(f"{key} at {step.weight} %")
        on_candidate |= {key for key, version in answers if version == release.candidate}
    if returns:
        return Check("monotone", False, f"callers went back to stable: {', '.join(returns[:3])}")
    return Check("monotone", repeats > 0, f"{repeats} requests of callers who had the candidate")


def _check_requested(requests: Sequence[RequestRecord]) -> Check:
    answers = [r for r in _right_answers(requests) if r.requested_version is not None]
    wrong = sum(r.version != r.requested_version for r in answers)
    words = f"{len(answers)} requests asked for a version, {wrong} got another one"
    return Check("asked for", bool(answers) and not wrong, words)


def _check_lost(requests: Sequence[RequestRecord]) -> Check:
    kinds = Counter(r.failure for r in requests if r.failure is not None)
    words = f"{kinds.total()} of {len(requests)} requests"
    if kinds:
        words += f" ({', '.join(f'{kind}: {count}' for kind, count in sorted(kinds.items()))})"
    return Check("none lost", bool(requests) and not kinds, words)


def _check_version(version: VersionSummary, limits: Limits) -> Check:
    words = (
        f"{version.requests} requests, {version.error_rate:.2%} failed, "
        f"p50 {_ms(version.p50_ms)}, p99 {_ms(version.p99_ms)}"
    )
    passed = (
        version.p99_ms is not None
        and version.p99_ms <= limits.max_p99_ms
        and version.error_rate <= limits.max_error_rate
    )
    return Check(f"version {version.version}", passed, words)


def _check_rollback(requests: Sequence[RequestRecord], release: WatchedRelease) -> Check:
    took_ms = rollback_ms(requests, release)
    if took_ms is None:
        return Check("rollback", False, "was not seen")
    words = f"felt within {took_ms:g} ms of its answer, {ROLLBACK_MS:g} ms at most"
    return Check("rollback", took_ms <= ROLLBACK_MS, words)


def _right_answers(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    return [r for r in requests if r.failure is None and r.version is not None]


def _sticky_answers(requests: Sequence[RequestRecord], step: Step) -> list[tuple[str, int]]:
    """Return sticky key and version of the step's right answers, in the order of the requests."""
    inside = sorted((r for r in requests if step.has(r)), key=lambda r: r.sent_at)
    return [
        (r.sticky_key, r.version)
        for r in inside
        if r.failure is None and r.sticky_key is not None and r.version is not None
    ]


def _split(right: Sequence[RequestRecord], step: Step, candidate: int) -> StepSplit:
    answers = [r for r in right if step.has(r) and r.requested_version is None]
    free = [r for r in answers if r.sticky_key is None]
    first: dict[str, int] = {}
    for key, version in _sticky_answers(answers, step):
        first.setdefault(key, version)
    return StepSplit(
        weight=step.weight,
        free=len(free),
        free_on_candidate=sum(r.version == candidate for r in free),
        callers=len(first),
        callers_on_candidate=sum(version == candidate for version in first.values()),
    )


def _summarise(requests: Sequence[RequestRecord], version: int) -> VersionSummary:
    answers = [r for r in requests if r.version == version]
    times = [r.latency_ms for r in answers if r.failure is None and r.latency_ms is not None]
    p50_ms, p99_ms = (round(float(np.percentile(times, q)), 1) if times else None for q in (50, 99))
    failures = sum(r.failure is not None for r in answers)
    return VersionSummary(version, len(answers), failures, p50_ms, p99_ms)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:g} ms"
