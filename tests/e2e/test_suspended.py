"""What is suspended (SIGSTOP) keeps its process id and answers nothing: it is told, and replaced.
Real processes."""

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from support.running_stack import make_settings, wait_until
from vlserve.cli import app
from vlserve.control import client as control_client
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.errors import StackDown, SupervisorHangs
from vlserve.settings import Settings
from vlserve.stack import stack as control_stack
from vlserve.stack import stopping
from vlserve.supervisor import Supervisor
from vlserve.testing import RunningStack

PROGRAMS = ["control", "engine-0", "gateway"]


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never answers."""
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT_S", 2.0)
    monkeypatch.setattr("vlserve.supervisor.ANSWER_TIMEOUT_S", 2.0)
    monkeypatch.setattr(control_stack, "_HANGS_S", 3.0)


@pytest.fixture(scope="module")
def own_settings(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    settings = make_settings(tmp_path_factory.mktemp("suspended"), engine_kind)
    yield settings
    control_stack.down(settings, print)


@pytest.fixture
def settings(own_settings: Settings) -> Settings:
    """Settings of a stack that is up; a test may leave it down."""
    control_stack.up(own_settings, print)
    return own_settings


def _pid(settings: Settings, program: str) -> int:
    """The process id of a program; 0 while it is being started."""
    return {each.name: each.pid for each in control_stack.status(settings)}[program] or 0


def _supervisord(settings: Settings) -> psutil.Process:
    return next(
        process
        for process in stopping.processes(settings)
        if "supervisord" in " ".join(process.cmdline())
    )


def _status(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> dict[str, Any]:
    monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: settings)
    result = CliRunner().invoke(app, ["status", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    status: dict[str, Any] = json.loads(result.stdout)
    return status


def test_a_suspended_control_service_is_told_and_up_starts_it_anew(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, before = stack.settings, stack.control.health().status
    pid = _pid(settings, "control")
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    status = _status(monkeypatch, settings)
    states = {process["name"]: process["state"] for process in status["processes"]}
    assert states == {"control": "SUSPENDED", "engine-0": "RUNNING", "gateway": "RUNNING"}
    assert status["health"] is None
    assert "suspended or hangs; `vlserve up`" in status["troubles"][0]
    with (
        ControlClient.of(settings) as control,
        pytest.raises(StackDown, match="suspended or hangs"),
    ):
        control.rollback("tagger")
    messages: list[str] = []
    control_stack.up(settings, messages.append)
    assert "control runs and does not answer: starting it anew" in messages
    assert _pid(settings, "control") != pid
    wait_until(lambda: stack.control.health().status == before)
    assert _status(monkeypatch, settings)["troubles"] == []


@pytest.mark.long
@pytest.mark.parametrize("word", ["up", "down"])
def test_a_suspended_supervisord_is_told_and_replaced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    before = {process.pid for process in stopping.processes(settings)}
    _supervisord(settings).send_signal(signal.SIGSTOP)
    with pytest.raises(SupervisorHangs):
        control_stack.status(settings)
    status = _status(monkeypatch, settings)
    assert status["processes"] == []
    assert re.search(r"supervisord \(pid \d+\) is suspended", status["health"]["status"])
    assert "supervisord answers nothing" in status["troubles"][0]
    messages: list[str] = []
    if word == "down":
        assert control_stack.down(settings, messages.append)
        assert stopping.processes(settings) == []
    else:
        control_stack.up(settings, messages.append)
        assert sorted(each.name for each in control_stack.status(settings)) == PROGRAMS
        assert not before & {process.pid for process in stopping.processes(settings)}
    assert "waiting for running requests" in messages


@pytest.mark.long
def test_what_is_suspended_can_be_killed_and_comes_back_and_down_ends_it(
    settings: Settings,
) -> None:
    pid = _pid(settings, "engine-0")
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    Supervisor(settings).kill("engine-0")
    wait_until(lambda: _pid(settings, "engine-0") not in (0, pid))
    assert not psutil.pid_exists(pid)
    for program in PROGRAMS:
        psutil.Process(_pid(settings, program)).send_signal(signal.SIGSTOP)
    assert control_stack.down(settings, print)
    assert stopping.processes(settings) == []
