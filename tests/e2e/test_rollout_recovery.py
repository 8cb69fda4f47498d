"""kill -9 in the middle of a release: it goes on from its step with its evidence, or is taken back,
as its policy says; the gateway is never at weights that the ledger does not know."""

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from support.background_load import load_on
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind, RolloutStatus, State
from vlserve.control.gateway.envoy_clusters import cluster_name
from vlserve.control.store.database import LEDGER
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.errors import ControlError, StackError
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.stack import stack as control_stack

pytestmark = on_triton

MODEL = "tagger"
WITHIN_S = 120.0
STAYS: Mapping[str, Any] = {
    "weights": [20, 100],
    "hold_s": 3600,
    "unit": "request",
    "minimum": {"candidate": 10**6, "stable": 10**6, "units": 10**6, "pairs": 1},
}
PROCESS = {"control": "the control service", "gateway": "the gateway", "engine-0": "engine-0"}


@pytest.fixture(scope="module")
def settings(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """A stack of its own: version 1 stable, version 2 ready."""
    folder = tmp_path_factory.mktemp("rollout")
    settings = make_settings(folder, engine_kind)
    try:
        control_stack.up(settings, print)
        with ControlClient.of(settings) as control:
            for version in (1, 2):
                control.register(pack_echo(folder, MODEL, version, delay_ms=2))
            control.release(MODEL, 1)
        yield settings
    finally:
        control_stack.down(settings, print)


def kill(settings: Settings, name: str) -> None:
    (pid,) = [each.pid for each in control_stack.status(settings) if each.name == name]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def look(settings: Settings) -> RolloutView | None:
    with ControlClient.of(settings) as control, suppress(StackError):
        return control.rollout(MODEL)
    return None


def running(settings: Settings) -> RolloutView | None:
    """The release, which is not to have ended."""
    view = look(settings)
    assert view is None or view.status is RolloutStatus.RUNNING, view.decision
    return view


def counted(view: RolloutView | None) -> int:
    """Requests that are evidence by now."""
    windows = view.windows if view else ()
    return sum(window.candidate.requests + window.stable.requests for window in windows)


def gateway_weights(settings: Settings) -> dict[int, int]:
    """What the gateway's file says; it is in force as soon as it is there."""
    file = settings.state_dir / "gateway" / "dynamic" / "routes.json"
    for route in json.loads(file.read_text(encoding="utf-8"))["resources"][0]["virtual_hosts"][0][
        "routes"
    ]:
        shares = route.get("route", {}).get("weighted_clusters", {}).get("clusters", [])
        names = {cluster_name(MODEL, version): version for version in (1, 2)}
        if shares and shares[0]["name"] in names:
            return {names[share["name"]]: share["weight"] for share in shares}
    raise AssertionError("no weights")


def ledger_knows(settings: Settings) -> list[dict[int, int]]:
    """The weights that the ledger calls desired, or about to be."""
    with closing(sqlite3.connect(settings.model_store / LEDGER)) as ledger:
        row = ledger.execute("SELECT weights, intended FROM models WHERE model = ?", [MODEL])
        texts = [text for text in row.fetchone() if text]
    return [{int(key): share for key, share in json.loads(text).items()} for text in texts]


def healthy(settings: Settings) -> bool:
    with ControlClient.of(settings) as control, suppress(StackError):
        return control.health().status == "ok"
    return False


@pytest.mark.parametrize(
    ("target", "recovery"),
    [
        ("control", "resume"),
        ("gateway", "resume"),
        pytest.param("engine-0", "resume", marks=pytest.mark.long),
        pytest.param("control", "rollback", marks=pytest.mark.long),
        pytest.param("gateway", "rollback", marks=pytest.mark.long),
        pytest.param("engine-0", "rollback", marks=pytest.mark.long),
    ],
)
def test_a_release_survives_what_is_killed_in_it(
    settings: Settings, target: str, recovery: str
) -> None:
    with ControlClient.of(settings) as control:
        control.start_rollout(MODEL, 2, {**STAYS, "recovery": recovery})
    try:
        with load_on(settings.gateway_url, MODEL, [None, None]):
            wait_until(lambda: counted(look(settings)) > 100, WITHIN_S)
            before = look(settings)
            assert before is not None
            kill(settings, target)
            process = PROCESS[target]
            if recovery == "resume":
                wait_until(lambda: process in restarts(settings), WITHIN_S)
                wait_until(lambda: healthy(settings), WITHIN_S)
                after_restart = counted(look(settings))
                assert after_restart >= counted(before)
                wait_until(lambda: counted(running(settings)) > after_restart + 50, WITHIN_S)
            else:
                wait_until(lambda: ended(settings), WITHIN_S)
        view = look(settings)
        assert view is not None
        if recovery == "resume":
            assert (view.status, view.step, view.weight) == (RolloutStatus.RUNNING, 0, 20)
            assert gateway_weights(settings) == {2: 20, 1: 80}
        else:
            assert view.status is RolloutStatus.ROLLED_BACK
            assert view.decision is not None and process in view.decision.reason
            assert gateway_weights(settings) == {1: 100}
    finally:
        wait_until(lambda: healthy(settings), WITHIN_S)
        with ControlClient.of(settings) as control, suppress(ControlError):
            control.abort(MODEL)


def restarts(settings: Settings) -> list[str]:
    """Processes whose restart the release under way has noticed."""
    with ControlClient.of(settings) as control, suppress(StackError):
        events = control.history(MODEL)
        start = max(n for n, event in enumerate(events) if event.kind == "release_started")
        resumptions = [event for event in events[start:] if event.kind == "release_resumed"]
        return [name for event in resumptions for name in event.detail["restarted"]]
    return []


def ended(settings: Settings) -> bool:
    view = look(settings)
    return view is not None and not view.status.under_way


def test_the_gateway_is_never_at_weights_that_the_ledger_does_not_know(
    settings: Settings,
) -> None:
    """The control service is killed again and again while it moves traffic."""
    stop = threading.Event()

    def move() -> None:
        with ControlClient.of(settings) as control:
            while not stop.wait(0.02):  # who asks what is down without a pause takes a core from it
                with suppress(ControlError, StackError):
                    control.start_rollout(MODEL, 2, STAYS)
                with suppress(ControlError, StackError):
                    control.abort(MODEL)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(4):
            kill(settings, "control")
            weights = ledger_knows(settings)
            assert gateway_weights(settings) in weights
            wait_until(lambda: healthy(settings), WITHIN_S)
    finally:
        stop.set()
        mover.join()
    wait_until(lambda: healthy(settings), WITHIN_S)
    with ControlClient.of(settings) as control:
        with suppress(ControlError):
            control.abort(MODEL)
        model = control.model(MODEL)
    assert gateway_weights(settings) == model.weights == {1: 100}
    assert {each.version: each.state for each in model.versions} == {
        1: State.STABLE,
        2: State.READY,
    }


def test_a_candidate_that_was_taken_back_drains_after_a_while(
    settings: Settings, tmp_path: Path
) -> None:
    with ControlClient.of(settings) as control:
        control.register(pack_echo(tmp_path, MODEL, 3))
        control.start_rollout(MODEL, 3, {**STAYS, "keep_s": 1})
        control.abort(MODEL)

        def state() -> State:
            return next(each.state for each in control.model(MODEL).versions if each.version == 3)

        assert state() is State.READY
        wait_until(lambda: state() is State.RETIRED, WITHIN_S)
        assert gateway_weights(settings) == {1: 100}
