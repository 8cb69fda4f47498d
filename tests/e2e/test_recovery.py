"""kill -9 of each process under load (benchmarks/release/recovery.py, on a stack of its own): the
same versions, weights and history come back. What is lost meanwhile is a clean error, never a wrong
answer."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import httpx
import pytest

from support.background_load import QUESTION
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from vlserve.control.domain import EngineKind, State
from vlserve.drill.crash import NEEDS_UP, TARGETS, WITH_GATEWAY, crash, release_both
from vlserve.errors import StackError
from vlserve.exporter.echo import pack_echo
from vlserve.stack import stack as control_stack
from vlserve.testing.clients import Load, Question, drawn_questions
from vlserve.testing.editions import Edition, echo_editions
from vlserve.testing.stack import RunningStack, running_stack

pytestmark = on_triton

MODEL = "survivor"
WITHIN_S = 120.0


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    return drawn_questions(tmp_path_factory.mktemp("covers"), count=10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, questions: Sequence[Question]) -> list[Edition]:
    return list(islice(echo_editions(tmp_path_factory.mktemp("pair"), MODEL, questions), 2))


@pytest.fixture(scope="module")
def own_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory, pair: Sequence[Edition]
) -> Iterator[RunningStack]:
    """A stack of its own, so that nothing of other tests has to come back: version 1 was stable
    before version 2."""
    with running_stack(make_settings(tmp_path_factory.mktemp("recovery"), engine_kind)) as stack:
        release_both(stack, pair, MODEL)
        yield stack


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=pytest.mark.long if name in NEEDS_UP else ()) for name in TARGETS],
)
def test_what_is_killed_comes_back_as_it_was(
    own_stack: RunningStack, pair: Sequence[Edition], questions: Sequence[Question], target: str
) -> None:
    """`crash` asks both versions and the model all the while, and judges each answer."""
    load = Load(own_stack.settings.gateway_url, MODEL, clients=6, rate_per_s=30.0)
    cost = crash(own_stack, target, pair, questions, load)
    print(cost)
    assert cost.breaches == []
    if target in ("engine", *NEEDS_UP):
        assert list(cost.events) == ["recovered", "recovered"]
    if target == "control":
        assert cost.lost == {}
    if target in WITH_GATEWAY:
        assert cost.lost


def test_a_register_goes_on_after_the_control_service_was_killed_in_it(
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

    caller = threading.Thread(target=register)
    caller.start()
    wait_until(lambda: state() is State.LOADING, WITHIN_S)
    (pid,) = [
        each.pid for each in control_stack.status(own_stack.settings) if each.name == "control"
    ]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    caller.join()
    assert errors
    wait_until(lambda: state() is State.READY, WITHIN_S)
    answer = httpx.post(
        f"{own_stack.settings.gateway_url}/predictions/{MODEL}/3",
        json=QUESTION,
        timeout=60.0,
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["version"]) == (200, 3)
    assert own_stack.control.register(archive).already_registered
    assert own_stack.control.unload(MODEL, 3).state is State.RETIRED
