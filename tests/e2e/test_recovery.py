"""kill -9 of each process, under load: the stack comes back by itself with the same versions,
weights and history. What is lost meanwhile is a clean error, and never a wrong version."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from load import NO_CONNECTION, QUESTION, Asked, load_on
from running import RunningStack, make_settings, wait_until

from vlserve.control import stack as control_stack
from vlserve.control.client import ControlClient
from vlserve.control.contract import State
from vlserve.control.views import ModelView
from vlserve.errors import StackError
from vlserve.exporter.echo import pack_echo

BACK_WITHIN_S = 120.0
MODEL = "survivor"
ENGINE_LOST = {502, 503, 504}


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack of its own, so that nothing of other tests has to come back: version 1 was stable
    before version 2."""
    folder = tmp_path_factory.mktemp("recovery")
    settings = make_settings(folder)
    try:
        control_stack.up(settings, print)
        with (
            ControlClient(settings.control_url) as control,
            httpx.Client(base_url=settings.gateway_url, timeout=60.0, trust_env=False) as http,
        ):
            for version in (1, 2):
                control.register(pack_echo(folder, MODEL, version, answer_shift=version))
                control.release(MODEL, version)
            yield RunningStack(settings, control, http)
    finally:
        control_stack.down(settings, print)


def pid_of(stack: RunningStack, name: str) -> int:
    (process,) = [each for each in control_stack.status(stack.settings) if each.name == name]
    assert process.pid is not None
    return process.pid


def is_whole(stack: RunningStack) -> bool:
    """Everything answers, and every version is held by as many workers as it should be."""
    try:
        health, model = stack.control.health(), stack.control.model(MODEL)
    except StackError:
        return False
    held = [each.workers_ready for each in model.versions if each.state.loaded]
    return health.status == "ok" and all(each == {"engine-0": 2} for each in held)


def desired(model: ModelView) -> tuple[object, ...]:
    """All that a crash must not change."""
    versions = [(each.version, each.state, each.weight, each.sha256) for each in model.versions]
    return model.stable, model.earlier, dict(model.weights), versions


def kill_under_load(stack: RunningStack, pid: int) -> list[Asked]:
    """SIGKILL ``pid`` between requests, wait until the stack is whole, ask on for a while."""
    wait_until(lambda: is_whole(stack), BACK_WITHIN_S)
    before, history = desired(stack.control.model(MODEL)), stack.control.history(MODEL)
    with load_on(stack.gateway_url, MODEL, [None, None, 1]) as load:
        wait_until(lambda: len(load.asked) > 20)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid))
        time.sleep(1.0)  # the control service looks twice
        wait_until(lambda: is_whole(stack), BACK_WITHIN_S)
        whole = time.monotonic()
        wait_until(lambda: len([each for each in load.asked if each.sent > whole]) > 20)
    assert desired(stack.control.model(MODEL)) == before
    assert stack.control.history(MODEL)[: len(history)] == history
    answered = [each for each in load.asked if each.status == 200]
    assert {each.version for each in answered if each.wanted is None} == {2}
    assert {each.version for each in answered if each.wanted == 1} == {1}
    assert all(each.status == 200 for each in load.asked if each.sent > whole)
    lost = [each for each in load.asked if each.status != 200]
    print(f"{len(lost)} of {len(load.asked)} lost: {sorted({each.status for each in lost})}")
    return lost


def test_a_worker(own_stack: RunningStack) -> None:
    engine = psutil.Process(pid_of(own_stack, "engine-0"))
    worker = next(
        child
        for child in engine.children(recursive=True)
        if "model_service_worker" in " ".join(child.cmdline())
    )
    lost = kill_under_load(own_stack, worker.pid)
    assert {each.status for each in lost} <= ENGINE_LOST


def test_the_engine(own_stack: RunningStack) -> None:
    lost = kill_under_load(own_stack, pid_of(own_stack, "engine-0"))
    assert {each.status for each in lost} <= ENGINE_LOST
    kinds = [event.kind for event in own_stack.control.history(MODEL)]
    assert kinds[-2:] == ["recovered", "recovered"]


def test_the_control_service(own_stack: RunningStack) -> None:
    assert kill_under_load(own_stack, pid_of(own_stack, "control")) == []


def test_the_gateway(own_stack: RunningStack) -> None:
    lost = kill_under_load(own_stack, pid_of(own_stack, "gateway"))
    assert {each.status for each in lost} <= {NO_CONNECTION}


def test_the_control_service_in_the_middle_of_a_register(
    own_stack: RunningStack, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, MODEL, 3)
    errors: list[Exception] = []

    def register() -> None:
        try:
            own_stack.control.register(archive)
        except StackError as error:
            errors.append(error)

    def state() -> State | None:
        try:
            versions = own_stack.control.model(MODEL).versions
        except StackError:
            return None
        return next((each.state for each in versions if each.version == 3), None)

    registering = threading.Thread(target=register)
    registering.start()
    wait_until(lambda: state() is State.LOADING, BACK_WITHIN_S)
    os.kill(pid_of(own_stack, "control"), signal.SIGKILL)
    registering.join()
    assert errors
    wait_until(lambda: state() is State.READY, BACK_WITHIN_S)
    answer = own_stack.http.post(f"/predictions/{MODEL}/3", json=QUESTION)
    assert (answer.status_code, answer.json()["version"]) == (200, 3)
    assert own_stack.control.register(archive).already_registered
    assert own_stack.control.unload(MODEL, 3).state is State.RETIRED
