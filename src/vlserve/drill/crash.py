"""What the kill of one process costs clients, and whether all comes back as it was."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import httpx
import psutil

from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.control.wire.views import EventView, ModelView
from vlserve.drill.stack_programs import program_of
from vlserve.errors import ControlError, StackError
from vlserve.settings import Settings
from vlserve.stack import stack, stopping
from vlserve.testing.clients import NO_CONNECTION, WRONG, Clients, Exchange, Load, Question
from vlserve.testing.editions import Edition
from vlserve.testing.stack import RunningStack
from vlserve.tls import trust_of

NEEDS_UP = ("supervisord", "everything")
TARGETS = ("worker", "engine", "gateway", "control", *NEEDS_UP)
WITH_GATEWAY = ("gateway", *NEEDS_UP)
"""The gateway goes down with these: nobody answers for a while."""

_CLEAN_ERROR = re.compile(r"HTTP 50[234] \w+")
_RECOVERY_EVENTS = {"recovered", "restore_failed"}
_WHOLE_WITHIN_S = 120.0
_BEFORE_S, _AFTER_S = 1.0, 2.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Crash:
    """What one kill cost."""

    killed: str
    requests: int
    """Asked from the kill on, until a while after all was whole again."""
    lost: Mapping[str, int]
    wrong: Mapping[str, int]
    lost_for_s: float
    """From the kill to the last request that was lost; 0: none was."""
    whole_after_s: float
    """From the kill until every process, version and worker was back."""
    events: Sequence[str]
    """What the history says of it."""
    breaches: Sequence[str]


@dataclass(frozen=True)
class Moments:
    """Of one drill, on the monotonic clock in seconds. ``gateway_back_s``: it answered again;
    the kill itself where the gateway was not killed."""

    killed_s: float
    gateway_back_s: float
    whole_s: float


def release_both(stack: RunningStack, pair: Sequence[Edition], model: str) -> None:
    """Register and release two versions, the second over the first."""
    for edition in pair:
        stack.control.register(edition.archive)
        stack.control.release(model, edition.version)


def crash(
    stack: RunningStack,
    target: str,
    pair: Sequence[Edition],
    questions: Sequence[Question],
    load: Load,
) -> Crash:
    """Kill ``target`` while clients ask the model and both versions; judged once all is whole."""
    settings = stack.settings
    with closing(EngineGroup(endpoints(settings), settings.engine)) as engine:
        census = _census(settings)
        _wait_until(lambda: _is_whole(stack, engine, census), target)
        model, history = _model(stack, load), stack.control.history(load.model)
        right = {edition.version: edition.answers for edition in pair}
        clients = Clients(load, questions, right)
        with clients.asking():
            time.sleep(_BEFORE_S)
            killed_s = time.monotonic()
            pids = _kill(settings, target)
            gateway_back_s = _gateway_back_s(settings, target, killed_s)
            _wait_until(
                lambda: (
                    not pids & {process.pid for process in stopping.processes(settings)}
                    and _is_whole(stack, engine, census)
                ),
                target,
            )
            moments = Moments(killed_s, gateway_back_s, time.monotonic())
            time.sleep(_AFTER_S)
    after = stack.control.history(load.model)
    return judge(
        target,
        moments,
        clients.exchanges,
        _changes(model, _model(stack, load), history, after),
        [event.kind for event in after[len(history) :]],
    )


def judge(
    target: str,
    moments: Moments,
    exchanges: Sequence[Exchange],
    changes: Sequence[str],
    events: Sequence[str],
) -> Crash:
    """Judge what clients saw of one kill by what it may cost. ``changes``: what is not as it was
    before."""
    errors = [each for each in exchanges if each.failure]
    failures = [each for each in errors if each.failure not in WRONG]
    wrong = Counter(str(each.failure) for each in errors if each.failure in WRONG)
    disconnects = [each for each in failures if each.failure in NO_CONNECTION]
    unclean_errors = [
        each
        for each in failures
        if each not in disconnects and not _CLEAN_ERROR.fullmatch(_kind(each))
    ]
    losses = [each for each in disconnects if each.sent_s > moments.gateway_back_s]
    breaches = {
        f"{sum(wrong.values())} answers wrong": bool(wrong),
        f"{len(unclean_errors)} answers are no clean error": bool(unclean_errors),
        f"{len(losses)} connections refused or lost while the gateway was up": bool(losses),
        "lost before the kill": any(each.answered_s < moments.killed_s for each in errors),
        "lost after all was whole": any(each.sent_s > moments.whole_s for each in errors),
        f"unexpected events: {', '.join(events)}": not set(events) <= _RECOVERY_EVENTS,
    }
    last_lost_s = max((each.answered_s for each in failures), default=moments.killed_s)
    return Crash(
        killed=target,
        requests=sum(each.answered_s >= moments.killed_s for each in exchanges),
        lost=dict(Counter(map(_kind, failures))),
        wrong=dict(wrong),
        lost_for_s=round(last_lost_s - moments.killed_s, 2),
        whole_after_s=round(moments.whole_s - moments.killed_s, 1),
        events=events,
        breaches=[*changes, *(breach for breach, is_so in breaches.items() if is_so)],
    )


def _kind(exchange: Exchange) -> str:
    return str(exchange.failure)


def _kill(settings: Settings, target: str) -> set[int]:
    """Kill the processes of ``target`` and return their ids."""
    processes = stopping.processes(settings)
    if target != "everything":
        processes = [process for process in processes if program_of(process) == target][:1]
    for process in sorted(processes, key=lambda each: program_of(each) != "supervisord"):
        with suppress(psutil.NoSuchProcess):  # a worker that went with its engine
            process.kill()
    return {process.pid for process in processes}


def _gateway_back_s(settings: Settings, target: str, killed_s: float) -> float:
    if target in NEEDS_UP:
        stack.up(settings, print)
    elif target == "gateway":
        _wait_until(lambda: _answers(settings), "the gateway")
    else:
        return killed_s
    return time.monotonic()


def _answers(settings: Settings) -> bool:
    url, trust = f"{settings.gateway_url}/health", trust_of(settings.gateway_tls)
    try:
        return httpx.get(url, trust_env=False, verify=trust).is_success
    except httpx.TransportError:
        return False


def _census(settings: Settings) -> Counter[str]:
    """Return how many processes of each kind run."""
    names = (program_of(process) for process in stopping.processes(settings))
    return Counter(name for name in names if name)


def _is_whole(stack: RunningStack, engine: EngineGroup, census: Counter[str]) -> bool:
    """Return whether every process runs once, every version has all its workers, and no more is
    loaded."""
    workers = stack.settings.engine.workers
    try:
        healthy = stack.control.health().status == "ok"
        models = stack.control.models()
        holdings, kinds = engine.loaded(), engine.kinds()
    except (StackError, ControlError):
        return False
    views = [view for model in models for view in model.versions if view.state.loaded]
    targets = {
        name: {(each.model, each.version) for each in views if each.engine == kinds[name]}
        for name in holdings
    }
    return (
        healthy
        and all(
            {key for key, version in holding.items() if version.workers_ready == workers}
            == targets[name]
            for name, holding in holdings.items()
        )
        and _census(stack.settings) == census
    )


def _wait_until(holds: Callable[[], bool], subject: str) -> None:
    deadline = time.monotonic() + _WHOLE_WITHIN_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{subject} was not whole after {_WHOLE_WITHIN_S:g} s")
        time.sleep(_POLL_S)


def _model(stack: RunningStack, load: Load) -> ModelView:
    return stack.control.model(load.model)


def _changes(
    before: ModelView, after: ModelView, history: Sequence[EventView], later: Sequence[EventView]
) -> list[str]:
    """Return what the crash changed, of what it must not change."""

    def versions(model: ModelView) -> list[tuple[object, ...]]:
        return [(view.version, view.state, view.weight, view.sha256) for view in model.versions]

    same = {
        "stable version": before.stable == after.stable,
        "earlier versions": before.earlier == after.earlier,
        "weights": before.weights == after.weights,
        "versions": versions(before) == versions(after),
        "history": list(later[: len(history)]) == list(history),
    }
    return [f"{name} changed" for name, is_same in same.items() if not is_same]
