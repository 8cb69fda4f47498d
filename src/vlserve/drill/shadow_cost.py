"""What clients notice of a shadow that is well, slow or dead."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles

from vlserve.control.domain import Instance, ModelRoute, Shadow
from vlserve.testing.clients import Clients, Exchange, Load, Question
from vlserve.testing.own_gateway import OwnGateway
from vlserve.testing.stand_in_engine import stand_in

MODEL, STABLE, CANDIDATE = "tagger", 1, 2
STABLE_MS = 20.0
"""What the stable version takes for an answer, and a shadow that is well."""
SLOW_MS = 2000.0
_LOGGED_S = SLOW_MS / 1000 + 2.0
"""After the last request: every copy has its answer, and the log its line."""


@dataclass(frozen=True)
class Kind:
    """One kind of shadow."""

    name: str
    percent: int
    delay_ms: float = STABLE_MS
    dead: bool = False

    @property
    def step(self) -> str:
        return f"{self.name}, {self.percent}%"

    @property
    def shadow(self) -> Shadow | None:
        return Shadow(CANDIDATE, self.percent) if self.percent else None


KINDS = (
    Kind("none", 0),
    Kind("well", 20),
    Kind("slow (2 s)", 20, SLOW_MS),
    Kind("dead", 20, dead=True),
    Kind("slow (2 s)", 100, SLOW_MS),
    Kind("dead", 100, dead=True),
)


@dataclass(frozen=True)
class ShadowCost:
    """What clients noticed of one kind. ``copies``: that the gateway's shadow log tells of."""

    rounds_ms: Sequence[Sequence[float]]
    failures: Mapping[str, int]
    copies: int

    @property
    def requests(self) -> int:
        return sum(map(len, self.rounds_ms))

    def percentile_ms(self, percent: int) -> float:
        return _percentile([each for latencies in self.rounds_ms for each in latencies], percent)

    def rounds_percentile_ms(self, percent: int) -> tuple[float, float]:
        """Return the percentile of the lowest and of the highest round."""
        by_round = [_percentile(latencies, percent) for latencies in self.rounds_ms]
        return min(by_round), max(by_round)


def _percentile(latencies_ms: Sequence[float], percent: int) -> float:
    return quantiles(latencies_ms, n=100)[percent - 1]


@contextmanager
def engines(kinds: Sequence[Kind]) -> Iterator[Mapping[Kind, Sequence[Instance]]]:
    """Run the instances that each kind is measured with: one has the stable version alone, one the
    shadow alone."""
    with ExitStack() as stack:
        no_shadow, no_stable = frozenset({(MODEL, CANDIDATE)}), frozenset({(MODEL, STABLE)})
        stable = stack.enter_context(stand_in("engine-0", STABLE_MS, no_shadow))
        instances = {}
        for number, kind in enumerate(kinds, 1):
            with ExitStack() as own_stack:
                shadow = own_stack.enter_context(
                    stand_in(f"engine-{number}", kind.delay_ms, no_stable)
                )
                if not kind.dead:
                    stack.push(own_stack.pop_all())
            instances[kind] = [stable, shadow]
        yield instances


def measure(
    own: OwnGateway,
    instances: Mapping[Kind, Sequence[Instance]],
    questions: Sequence[Question],
    load: Load,
    rounds: int,
    seconds: float,
) -> tuple[dict[Kind, ShadowCost], int]:
    """Put each kind in force for so many seconds, one after the other, in rounds; return the cost
    of each, and how many requests failed in all."""
    clients = Clients(load, questions, right={STABLE: [{}] * len(questions)})
    spans: dict[Kind, list[tuple[float, float]]] = {kind: [] for kind in instances}
    with clients.asking():
        for _ in range(rounds):
            for kind, pair in instances.items():
                route = ModelRoute(
                    MODEL, {STABLE: 100}, (STABLE, CANDIDATE), step=kind.step, shadow=kind.shadow
                )
                own.route([route], pair)
                began_s = time.monotonic()
                time.sleep(seconds)
                spans[kind].append((began_s, time.monotonic()))
    time.sleep(_LOGGED_S)
    copies = _copies(own)
    costs = {
        kind: _cost(clients.exchanges, periods, copies[kind.step])
        for kind, periods in spans.items()
    }
    return costs, sum(bool(each.failure) for each in clients.exchanges)


def _cost(
    exchanges: Sequence[Exchange], spans: Sequence[tuple[float, float]], copies: int
) -> ShadowCost:
    rounds = [[each for each in exchanges if began <= each.due_s < end] for began, end in spans]
    failures = Counter(each.failure for group in rounds for each in group if each.failure)
    return ShadowCost([[each.latency_ms for each in group] for group in rounds], failures, copies)


def _copies(own: OwnGateway) -> Counter[str]:
    log = own.settings.state_dir / "logs" / "shadow.jsonl"
    return Counter(
        json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()
    )
