"""Rollouts in memory, and requests that never were: the log lines that a gateway and handlers would
have written."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.control_fakes import FakeGateway
from vlserve.control.assembly import Control
from vlserve.control.domain import Rollout, RolloutStatus, State
from vlserve.control.rollouts.report import RolloutReport

TAGS = ("music", "sport", "food")
QUICK: dict[str, Any] = {
    "weights": [20, 50, 100],
    "hold_s": 0,
    "minimum": {"candidate": 80, "stable": 80, "units": 80, "pairs": 60},
}


@dataclass(frozen=True)
class Behaviour:
    """Of one version. ``scores``: what it answers, best first."""

    fail_rate: float = 0.0
    refuse_rate: float = 0.0
    latency_ms: float = 10.0
    scores: Callable[[random.Random], Mapping[str, float]] = field(
        default=lambda chance: {chance.choice(TAGS): 0.9}
    )


class Requests:
    """Writes what the fake gateway's routing would have led to."""

    def __init__(self, logs: Path, gateway: FakeGateway, seed: int = 0) -> None:
        self._logs = logs
        self._gateway = gateway
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        logs.mkdir(parents=True, exist_ok=True)

    def send(
        self, count: int, versions: Mapping[int, Behaviour] | None = None, model: str = "tagger"
    ) -> None:
        """Route ``count`` requests by weight, and copy to a shadow where there is one."""
        behaviours = versions or {}
        for _ in range(count):
            route = self._gateway.route(model)
            (version,) = self._chance.choices([*route.weights], [*route.weights.values()])
            name = f"r{next(self._numbers)}"
            content = self._chance.randrange(2**32)
            self._answer(model, version, name, behaviours.get(version, Behaviour()), content)
            if route.shadow and self._chance.random() < route.shadow.percent / 100:
                shadow = behaviours.get(route.shadow.version, Behaviour())
                self._answer(model, route.shadow.version, name, shadow, content, copy=True)

    def _answer(
        self,
        model: str,
        version: int,
        name: str,
        behaviour: Behaviour,
        content: int,
        copy: bool = False,
    ) -> None:
        failed = self._chance.random() < behaviour.fail_rate
        refused = self._chance.random() < behaviour.refuse_rate
        about = {"request_id": name, "model": model}
        if not failed:
            scores = behaviour.scores(random.Random(content))
            self.write("answers", about | {"version": version, "scores": dict(scores)})
        self.write(
            "shadow" if copy else "access",
            about
            | {
                "version": str(version),
                "step": self._gateway.route(model).step,
                "status": 500 if failed else 422 if refused else 200,
                "flags": None,
                "duration_ms": behaviour.latency_ms * self._chance.uniform(0.8, 1.2),
                "caller": None,
            },
        )

    def write(self, log: str, line: Mapping[str, Any]) -> None:
        with (self._logs / f"{log}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def register(control: Control, *archives: Path) -> None:
    for archive in archives:
        control.service.register(shutil.copy(archive, control.service.incoming / archive.name))


def start(control: Control, version: int = 2, **changes: Any) -> RolloutReport:
    return control.service.rollouts.start("tagger", version, QUICK | changes)


def look(control: Control, model: str = "tagger") -> RolloutReport:
    return control.service.rollouts.latest(model)


def state(control: Control, version: int) -> State:
    return control.ledger.version("tagger", version).state


def kinds(control: Control, model: str = "tagger") -> list[str]:
    return [event.kind for event in control.ledger.events(model)]


def drive(
    control: Control,
    requests: Requests,
    versions: dict[int, Behaviour] | None = None,
    ticks: int = 60,
) -> RolloutReport:
    """Traffic and ticks until the release ends, or for ``ticks``."""
    for _ in range(ticks):
        requests.send(40, versions)
        control.rollout_loop.tick()
        if not look(control).status.under_way:
            break
    return look(control)


def rollout_record() -> Rollout:
    """Return a rollout of tagger 2 over 1, as the ledger has it."""
    return Rollout(
        id=1,
        model="tagger",
        candidate=2,
        stable=1,
        status=RolloutStatus.RUNNING,
        step=0,
        shadow_percent=50,
        started_at="2026-11-29T00:00:00+00:00",
        ended_at=None,
        keep_until=None,
        state_json="{}",
    )
