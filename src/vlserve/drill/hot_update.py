"""Versions that come, take over, give back and go while clients ask, and what that cost them."""

import math
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import quantiles

from vlserve.control.client import ControlClient
from vlserve.control.domain import State
from vlserve.testing.clients import WRONG, Clients, Exchange, Load
from vlserve.testing.editions import Edition

IN_FORCE_WITHIN_MS = 150.0
"""A release that has returned is answered by the new version within this time."""
PAUSE_S = 0.5
"""Between two words, so that every version gets to answer."""
_TOLD_STEPS = 3
"""Of those that ran during the longest stall, by name."""

Show = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One word to the control service, and when it was begun and had returned (monotonic, s)."""

    verb: str
    version: int
    begun_s: float
    returned_s: float

    @property
    def took_ms(self) -> float:
        return (self.returned_s - self.begun_s) * 1000

    @property
    def moves_traffic(self) -> bool:
        return self.verb in ("release", "rollback")


@dataclass(frozen=True)
class HotUpdates:
    """What the updates cost clients. ``stale``: requests that began after a release or rollback had
    returned, and that the version before it answered; ``largest_lag_ms``: how long after."""

    rounds: int
    clients: int
    connections: int
    rate_per_s: float
    limit_per_s: float | None
    requests: int
    lost: Mapping[str, int]
    wrong: Mapping[str, int]
    stale: int
    largest_lag_ms: float
    slowest_first_answer_ms: float
    """From the return of a release or rollback to the first answer of its version, at worst."""
    p50_ms: float
    p99_ms: float
    longest_stall_ms: float
    """The longest that a request took, counted from when it was due."""
    stalled_during: str
    longest_silence_ms: float
    """The longest time in which nobody got a right answer."""
    took_ms: Mapping[str, tuple[float, float]]
    """Verb -> median and longest time that the command took."""
    breaches: tuple[str, ...]
    load_average: tuple[float, float]
    """Of the machine over one minute, before and after."""

    @property
    def passed(self) -> bool:
        return not self.breaches


def update_in_rounds(
    control: ControlClient,
    clients: Clients,
    editions: Iterator[Edition],
    rounds: int,
    show: Show,
    pause_s: float = PAUSE_S,
) -> tuple[list[Step], list[Exchange]]:
    """Release the first edition, then ``rounds`` more under load; the steps, and what was seen."""
    model = clients.load.model
    steps: list[Step] = []

    def step(verb: str, edition: Edition) -> None:
        begun_s = time.monotonic()
        match verb:
            case "register":
                control.register(edition.archive)
            case "release":
                control.release(model, edition.version)
            case "rollback":
                control.rollback(model)
            case "unload":
                state = control.unload(model, edition.version).state
                if state is not State.RETIRED:
                    raise RuntimeError(f"{model} {edition.version} is {state} after its unload")
        steps.append(Step(verb, edition.version, begun_s, time.monotonic()))
        time.sleep(pause_s)

    before = next(editions)
    clients.right[before.version] = before.answers
    clients.pin(before.version)
    step("register", before)
    step("release", before)
    with clients.asking():
        time.sleep(pause_s)
        for number, edition in enumerate(islice(editions, rounds), start=1):
            clients.right[edition.version] = edition.answers
            step("register", edition)
            step("release", edition)
            clients.pin(before.version, edition.version)
            step("rollback", before)
            step("release", edition)
            clients.pin(edition.version)
            step("unload", before)
            before = edition
            show(f"round {number} of {rounds}: version {edition.version} is in force")
    return steps, clients.exchanges


def judge(
    load: Load,
    limit_per_s: float | None,
    connections: int,
    steps: Sequence[Step],
    exchanges: Sequence[Exchange],
    load_average: tuple[float, float],
) -> HotUpdates:
    """Judge the steps and the exchanges of a drill by what it must show."""
    moves = [step for step in steps if step.moves_traffic]
    failures = Counter(each.failure for each in exchanges if each.failure)
    wrong = {kind: count for kind, count in failures.items() if kind in WRONG}
    losses = {kind: count for kind, count in failures.items() if kind not in WRONG}
    lags = [lag for each in exchanges if (lag := lag_ms(each, moves))]
    if strays := lags.count(math.inf):
        wrong["version without traffic"] = strays
    lags = [lag for lag in lags if lag < math.inf]
    answers: dict[int | None, list[Exchange]] = {}
    for each in exchanges:
        if each.wanted is None and each.failure is None:
            answers.setdefault(each.version, []).append(each)
    firsts = [_first_answer_ms(move, answers.get(move.version, [])) for move in moves[1:]]
    worst = max(exchanges, key=lambda each: each.latency_ms)
    by_percent = quantiles([each.latency_ms for each in exchanges], n=100, method="inclusive")
    largest_lag_ms = max(lags, default=0.0)
    slowest_first_ms = max(firsts, default=0.0)
    limits = {
        f"{sum(losses.values())} requests lost": bool(losses),
        f"{sum(wrong.values())} answers wrong": bool(wrong),
        f"the old version answered {largest_lag_ms:.0f} ms after": (
            largest_lag_ms > IN_FORCE_WITHIN_MS
        ),
        f"the new version first answered {slowest_first_ms:.0f} ms after": (
            slowest_first_ms > IN_FORCE_WITHIN_MS
        ),
        f"{connections} connections for {load.clients} clients": connections != load.clients,
    }
    return HotUpdates(
        rounds=sum(step.verb == "unload" for step in steps),
        clients=load.clients,
        connections=connections,
        rate_per_s=load.rate_per_s,
        limit_per_s=limit_per_s,
        requests=len(exchanges),
        lost=losses,
        wrong=wrong,
        stale=len(lags),
        largest_lag_ms=round(largest_lag_ms, 1),
        slowest_first_answer_ms=round(slowest_first_ms, 1),
        p50_ms=round(by_percent[49], 1),
        p99_ms=round(by_percent[98], 1),
        longest_stall_ms=round(worst.latency_ms, 1),
        stalled_during=_during(worst, steps),
        longest_silence_ms=round(_longest_silence_ms(exchanges), 1),
        took_ms=_took_ms(steps),
        breaches=tuple(breach for breach, is_so in limits.items() if is_so),
        load_average=load_average,
    )


def lag_ms(exchange: Exchange, moves: Sequence[Step]) -> float:
    """Return how long before a request to the model began the version that answered it had lost its
    traffic: 0 when it had not, infinite when it was not even the last to lose it."""
    if exchange.wanted is not None or exchange.version is None:
        return 0.0
    count = bisect_right(moves, exchange.sent_s, key=lambda move: move.returned_s)
    begun = bisect_right(moves, exchange.answered_s, key=lambda move: move.begun_s)
    under_way = moves[count:begun]
    newest = moves[count - 1]
    if exchange.version in {move.version for move in (newest, *under_way)}:
        return 0.0
    if count > 1 and exchange.version == moves[count - 2].version:
        return (exchange.sent_s - newest.returned_s) * 1000
    return math.inf


def _first_answer_ms(move: Step, answers: Sequence[Exchange]) -> float:
    """From the return of a move to the first of its version's ``answers``."""
    times = (each.answered_s for each in answers if each.sent_s > move.begun_s)
    return max(0.0, (min(times, default=math.inf) - move.returned_s) * 1000)


def _during(exchange: Exchange, steps: Sequence[Step]) -> str:
    under_way = [
        f"{step.verb} of version {step.version}"
        for step in steps
        if step.begun_s <= exchange.answered_s and exchange.due_s <= step.returned_s
    ]
    told = ", ".join(under_way[:_TOLD_STEPS]) or "no step"
    more = len(under_way) - _TOLD_STEPS
    return f"{told} and {more} more" if more > 0 else told


def _longest_silence_ms(exchanges: Sequence[Exchange]) -> float:
    ends = sorted(each.answered_s for each in exchanges if each.failure is None)
    gaps = (later - earlier for earlier, later in pairwise(ends))
    return max(gaps, default=math.inf) * 1000


def _took_ms(steps: Sequence[Step]) -> dict[str, tuple[float, float]]:
    took: dict[str, list[float]] = {}
    for step in steps:
        took.setdefault(step.verb, []).append(step.took_ms)
    return {
        verb: (round(sorted(times)[len(times) // 2], 1), round(max(times), 1))
        for verb, times in took.items()
    }
