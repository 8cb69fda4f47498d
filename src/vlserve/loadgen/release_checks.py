"""A release in steps, judged from outside: by what its callers saw alone. Pure.

A request belongs to a step if it began and ended while that step was surely in force; one that was
under way at a change belongs to either, and is left out of what is said by step. Nothing is left
out of the lost ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from vlserve.loadgen.caller_record import Call

SMALLEST_P = 0.001
"""A split that chance would miss by so much more rarely than this is a wrong one."""
ROLLBACK_MS = 150.0
FEWEST = 10
"""Requests, or callers, without which nothing is said of a split."""
GUARD_S = 0.1
"""A weight that the control service calls in force has reached every thread of the gateway."""


@dataclass(frozen=True)
class Step:
    """``weight``: the candidate's, per cent. It was surely in force from ``begun`` to ``ended``,
    Unix times, s."""

    weight: int
    begun: float
    ended: float

    def has(self, call: Call) -> bool:
        return self.begun + GUARD_S <= call.started and call.ended <= self.ended


@dataclass(frozen=True)
class WatchedRelease:
    """What was done meanwhile. ``rolled_back_at``: Unix time, s, at which the rollback after the
    release was answered; None where there was none."""

    candidate: int
    stable: int
    steps: tuple[Step, ...]
    promoted: bool
    why: str
    rolled_back_at: float | None


@dataclass(frozen=True)
class Limits:
    max_error_rate: float
    max_p99_ms: float


@dataclass(frozen=True)
class Check:
    """``said``: the figures behind it, in words."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class VersionFigures:
    """What callers had of one version, over the whole run. Latencies are those of right answers."""

    version: int
    requests: int
    failures: int
    p50_ms: float | None
    p99_ms: float | None

    @property
    def error_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class StepFigures:
    """Who got the candidate while a step was in force: of requests without a key or a wish, and of
    callers with a key, each counted once."""

    weight: int
    free: int
    free_on_candidate: int
    callers: int
    callers_on_candidate: int


def check_release(
    calls: Sequence[Call], release: WatchedRelease, limits: Limits
) -> tuple[Check, ...]:
    """All checks, in the order in which they are worth reading."""
    return (
        Check("promoted", release.promoted, release.why),
        *_splits(calls, release),
        _sticky(calls, release),
        _monotone(calls, release),
        _asked(calls),
        _lost(calls),
        *(_version(figures, limits) for figures in version_figures(calls, release)),
        _rollback(calls, release),
    )


def version_figures(calls: Sequence[Call], release: WatchedRelease) -> tuple[VersionFigures, ...]:
    return tuple(_figures_of(calls, version) for version in (release.stable, release.candidate))


def step_figures(calls: Sequence[Call], release: WatchedRelease) -> tuple[StepFigures, ...]:
    return tuple(_figures_in(_answered(calls), step, release.candidate) for step in release.steps)


def rollback_ms(calls: Sequence[Call], release: WatchedRelease) -> float | None:
    """From the answer of the rollback to the last response of the version that was rolled back, of
    requests that began after it; 0 where there was none. None without any request after it."""
    answered_at = release.rolled_back_at
    if answered_at is None:
        return None
    after = [c for c in _answered(calls) if c.started >= answered_at and c.asked is None]
    late = [c.ended - answered_at for c in after if c.version == release.candidate]
    return round(max(late, default=0.0) * 1000, 1) if after else None


def _splits(calls: Sequence[Call], release: WatchedRelease) -> Iterator[Check]:
    """One a step, and one that fails where no step was seen."""
    figures = step_figures(calls, release)
    if not figures:
        yield Check("split", False, "no step was seen")
    for step in figures:
        draws = (
            _draw("requests", step.free_on_candidate, step.free, step.weight),
            _draw("callers", step.callers_on_candidate, step.callers, step.weight),
        )
        held = all(passed for passed, _ in draws)
        yield Check(f"split {step.weight} %", held, ", ".join(said for _, said in draws))


def _draw(what: str, on_candidate: int, counted: int, weight: int) -> tuple[bool, str]:
    if counted < FEWEST:
        return False, f"only {counted} {what}"
    p = float(binomtest(on_candidate, counted, weight / 100).pvalue)
    return p > SMALLEST_P, f"{on_candidate} of {counted} {what} (p {p:.2g})"


def _sticky(calls: Sequence[Call], release: WatchedRelease) -> Check:
    moved, again = [], 0
    for step in release.steps:
        seen: dict[str, int] = {}
        for call in _keyed(calls, step):
            assert call.caller is not None and call.version is not None
            again += call.caller in seen
            if seen.setdefault(call.caller, call.version) != call.version:
                moved.append(f"{call.caller} at {step.weight} %")
    if moved:
        return Check("sticky", False, f"callers changed their version: {', '.join(moved[:3])}")
    return Check("sticky", again > 0, f"{again} times a caller came again within a step")


def _monotone(calls: Sequence[Call], release: WatchedRelease) -> Check:
    on_candidate: set[str] = set()
    back, stayed = [], 0
    for step in release.steps:
        keyed = _keyed(calls, step)
        for call in keyed:
            if call.caller in on_candidate:
                stayed += 1
                if call.version == release.stable:
                    back.append(f"{call.caller} at {step.weight} %")
        on_candidate |= {c.caller for c in keyed if c.caller and c.version == release.candidate}
    if back:
        return Check("monotone", False, f"callers went back to stable: {', '.join(back[:3])}")
    return Check("monotone", stayed > 0, f"{stayed} requests of callers who had the candidate")


def _asked(calls: Sequence[Call]) -> Check:
    asked = [call for call in _answered(calls) if call.asked is not None]
    wrong = sum(call.version != call.asked for call in asked)
    said = f"{len(asked)} requests asked for a version, {wrong} got another one"
    return Check("asked for", bool(asked) and not wrong, said)


def _lost(calls: Sequence[Call]) -> Check:
    kinds: dict[str, int] = {}
    for call in calls:
        if call.failure is not None:
            kinds[call.failure] = kinds.get(call.failure, 0) + 1
    lost = sum(kinds.values())
    said = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    words = f"{lost} of {len(calls)} requests" + (f" ({said})" if said else "")
    return Check("none lost", bool(calls) and lost == 0, words)


def _version(figures: VersionFigures, limits: Limits) -> Check:
    said = (
        f"{figures.requests} requests, {figures.error_rate:.2%} failed, "
        f"p50 {_ms(figures.p50_ms)}, p99 {_ms(figures.p99_ms)}"
    )
    held = (
        figures.p99_ms is not None
        and figures.p99_ms <= limits.max_p99_ms
        and figures.error_rate <= limits.max_error_rate
    )
    return Check(f"version {figures.version}", held, said)


def _rollback(calls: Sequence[Call], release: WatchedRelease) -> Check:
    took_ms = rollback_ms(calls, release)
    if took_ms is None:
        return Check("rollback", False, "was not seen")
    said = f"felt within {took_ms:g} ms of its answer, {ROLLBACK_MS:g} ms at most"
    return Check("rollback", took_ms <= ROLLBACK_MS, said)


def _answered(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if call.failure is None and call.version is not None]


def _keyed(calls: Sequence[Call], step: Step) -> list[Call]:
    keyed = [call for call in _answered(calls) if call.caller is not None and step.has(call)]
    return sorted(keyed, key=lambda call: call.started)


def _figures_in(calls: Sequence[Call], step: Step, candidate: int) -> StepFigures:
    inside = [call for call in calls if step.has(call) and call.asked is None]
    free = [call for call in inside if call.caller is None]
    first: dict[str, int | None] = {}
    for call in _keyed(inside, step):
        assert call.caller is not None
        first.setdefault(call.caller, call.version)
    return StepFigures(
        weight=step.weight,
        free=len(free),
        free_on_candidate=sum(call.version == candidate for call in free),
        callers=len(first),
        callers_on_candidate=sum(version == candidate for version in first.values()),
    )


def _figures_of(calls: Sequence[Call], version: int) -> VersionFigures:
    by_it = [call for call in calls if call.version == version]
    times = [call.latency_ms for call in by_it if call.failure is None]
    p50_ms, p99_ms = (round(float(np.percentile(times, q)), 1) if times else None for q in (50, 99))
    failures = sum(call.failure is not None for call in by_it)
    return VersionFigures(version, len(by_it), failures, p50_ms, p99_ms)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:g} ms"
