"""The way back while the control service is down and another process holds the ledger's lock."""

import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from support.background_load import QUESTION
from support.control_fakes import FakeEngine
from support.ledger_troubles import ledger_says
from support.rollout_traffic import kinds, register
from support.running_stack import RunningGateway, make_settings, running_gateway, wait_until
from vlserve.cli import app
from vlserve.control import direct_way_back
from vlserve.control.assembly import Control, assemble
from vlserve.control.direct_way_back import abort, roll_back
from vlserve.control.domain import EngineKind, RolloutStatus
from vlserve.control.gateway.last_routes import last_routes
from vlserve.control.gateway.writer_lock import gateway_writer
from vlserve.control.store.database import LEDGER
from vlserve.errors import (
    ControlError,
    GatewayTaken,
    NoRelease,
    NothingToRollBackTo,
    NotReady,
    ReleaseUnderWay,
    StackDown,
    StackError,
    Unauthorized,
)
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.stack import stack as control_stack
from vlserve.testing import RunningStack, running_stack

STAYS = {"weights": [50, 100], "hold_s": 3600, "unit": "request"}


@contextmanager
def held_by_another(store: Path) -> Iterator[None]:
    """Hold the lock of a ledger, as a process of somebody else would."""
    with (store / f"{LEDGER}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    """A real one."""
    with running_gateway(tmp_path) as gateway:
        yield gateway


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def control(gateway: RunningGateway, engine: FakeEngine, tmp_path: Path) -> Control:
    """Tagger 1, 2 and 3 are loaded, and 1 and then 2 were released."""
    control = assemble(gateway.settings, engine, gateway.gateway)
    register(control, *(pack_echo(tmp_path, "tagger", version) for version in (1, 2, 3)))
    for version in (1, 2):
        control.service.release("tagger", version)
    return control


def weights(settings: Settings) -> dict[int, int]:
    return dict(last_routes(settings)["tagger"].weights)


def _rollback(settings: Settings, engine: FakeEngine) -> int:
    return roll_back(settings, engine, "tagger").version


def _abort(settings: Settings, engine: FakeEngine) -> int:
    report = abort(settings, engine, "tagger")
    assert (report.status, report.weight) == (RolloutStatus.ABORTED, 0)
    assert "control service is down" in report.unrecorded
    return report.stable


@pytest.mark.parametrize(
    ("in_steps", "word", "back_on", "event", "second_error"),
    [
        (False, _rollback, 1, "rolled_back", NothingToRollBackTo),
        (True, _rollback, 2, "aborted", None),
        (True, _abort, 2, "aborted", NoRelease),
    ],
    ids=["rollback", "rollback of a rollout", "abort"],
)
def test_traffic_goes_back_and_the_next_control_service_writes_it_down(
    control: Control,
    gateway: RunningGateway,
    engine: FakeEngine,
    in_steps: bool,
    word: Callable[[Settings, FakeEngine], int],
    back_on: int,
    event: str,
    second_error: type[ControlError] | None,
) -> None:
    settings = gateway.settings
    if in_steps:
        control.service.rollouts.start("tagger", 3, STAYS)
        assert weights(settings) == {3: 50, 2: 50}
    control.ledger.close()  # as a kill does
    with held_by_another(settings.model_store):
        with pytest.raises(ControlError, match="uses"):
            assemble(settings, engine, gateway.gateway)
        assert word(settings, engine) == back_on
        assert weights(settings) == {back_on: 100}
        assert gateway.gateway.ready()  # Envoy says that it has these routes in force
        if second_error:
            with pytest.raises(second_error):
                word(settings, engine)
    assert ledger_says(control)[0] != json.dumps({str(back_on): 100})  # nothing was written yet
    again = assemble(settings, engine, gateway.gateway)
    again.reconciler.tick()
    assert weights(settings) == {back_on: 100}
    assert ledger_says(again)[0] == json.dumps({str(back_on): 100})
    assert kinds(again)[-2:] == [event, "recorded_late"]
    again.ledger.close()


def test_back_twice(control: Control, gateway: RunningGateway, engine: FakeEngine) -> None:
    settings = gateway.settings
    control.service.rollouts.start("tagger", 3, STAYS)
    control.ledger.close()
    assert [_rollback(settings, engine), _rollback(settings, engine)] == [2, 1]
    assert weights(settings) == {1: 100}
    again = assemble(settings, engine, gateway.gateway)
    again.reconciler.tick()
    assert ledger_says(again) == ('{"1": 100}', "aborted")
    assert again.ledger.model("tagger").stack == (1,)
    again.ledger.close()


def test_what_cannot_be_gone_back_to_is_refused_and_nothing_changes(
    control: Control,
    gateway: RunningGateway,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = gateway.settings
    note = settings.state_dir / "unrecorded.json"
    control.reconciler.tick()  # which sets the note's space aside
    control.ledger.close()

    def check_refusal(kind: type[ControlError | StackError], why: str) -> None:
        with pytest.raises(kind, match=why):
            roll_back(settings, engine, "tagger")
        assert weights(settings) == {2: 100}
        assert note.is_dir() or not note.read_text(encoding="utf-8").strip()

    monkeypatch.setattr(direct_way_back, "_WAIT_S", 0.1)
    with gateway_writer(settings):
        check_refusal(GatewayTaken, rf"pid {os.getpid()}\) may change the gateway's routes")
    engine.answer_wrong.add(("tagger", 1))
    check_refusal(NotReady, "tagger 1 does not answer its own probe right")
    engine.answer_wrong.clear()
    version = engine.held["engine-0"].pop(("tagger", 1))
    check_refusal(NotReady, "tagger 1 does not answer")
    engine.held["engine-0"]["tagger", 1] = version
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        check_refusal(Unauthorized, "another user's")
    backup = note.rename(note.with_suffix(".aside"))
    note.mkdir()
    check_refusal(ControlError, "cannot be noted in .*, so nothing has changed: Is a directory")
    note.rmdir()
    backup.rename(note)
    gateway.stop()
    check_refusal(StackDown, "the gateway does not answer either")
    gateway.start()
    assert _rollback(settings, engine) == 1


def test_a_version_whose_path_is_closed_and_a_rollout_of_another(
    control: Control, gateway: RunningGateway, engine: FakeEngine
) -> None:
    settings = gateway.settings
    control.service.unload("tagger", 1)
    control.service.rollouts.start("tagger", 3, STAYS)
    control.ledger.close()
    with pytest.raises(ReleaseUnderWay, match="vlserve abort tagger"):
        roll_back(settings, engine, "tagger", 1)
    assert _abort(settings, engine) == 2
    with pytest.raises(NotReady, match="tagger 1 is not loaded, and the control service"):
        roll_back(settings, engine, "tagger")
    assert weights(settings) == {2: 100}


def test_without_a_stack_the_command_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(StackDown, match="there is no gateway"):
        roll_back(Settings(project_dir=tmp_path), FakeEngine(), "tagger")


@contextmanager
def foreign_program(port: int, status: int) -> Iterator[None]:
    """Listen in the control service's place, as any local program may while that is down."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 401])
def test_a_foreign_program_in_its_place_keeps_nobody_from_going_back(
    control: Control,
    gateway: RunningGateway,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    settings = gateway.settings
    control.ledger.close()
    monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: settings)
    monkeypatch.setattr("vlserve.control.engine.group.EngineGroup", lambda *_: engine)
    monkeypatch.setattr(FakeEngine, "close", lambda _: None, raising=False)
    monkeypatch.setattr(direct_way_back, "_WAIT_S", 0.1)
    with foreign_program(settings.control.port, status):
        with gateway_writer(settings):  # as the service holds while it runs
            result = CliRunner().invoke(app, ["rollback", "tagger"])
            assert isinstance(result.exception, StackDown)
            assert weights(settings) == {2: 100}
        result = CliRunner().invoke(app, ["rollback", "tagger"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tagger is back on 1" in result.stdout
    assert weights(settings) == {1: 100}


def _control_pid(settings: Settings) -> int:
    return {each.name: each.pid for each in control_stack.status(settings)}["control"] or 0


@pytest.mark.long
def test_abort_at_the_command_line(
    engine_kind: EngineKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: supervisord starts the control service again and again."""
    settings = make_settings(tmp_path, engine_kind)
    monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: settings)
    with running_stack(settings) as stack:
        for version in (1, 2):
            stack.control.register(pack_echo(tmp_path, "tagger", version))
        stack.control.release("tagger", 1)
        stack.control.start_rollout("tagger", 2, STAYS)
        assert _versions(stack) == {1, 2}
        psutil.Process(_control_pid(settings)).send_signal(signal.SIGKILL)
        wait_until(lambda: not stack.control.is_up())
        with held_by_another(settings.model_store):
            result = CliRunner().invoke(app, ["abort", "tagger"], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            assert "tagger is back on 1; 2 was taken back" in result.stdout
            assert "the ledger is told later: the control service is down" in result.stdout
            assert _versions(stack) == {1}
        control_stack.up(settings, print)
        wait_until(lambda: stack.control.health().status == "ok", 60)
        assert stack.control.model("tagger").weights == {1: 100}
        assert stack.control.history("tagger")[-1].kind == "recorded_late"
        assert _versions(stack) == {1}


def _versions(own_stack: RunningStack) -> set[int]:
    answers = [own_stack.http.post("/predictions/tagger", json=QUESTION) for _ in range(40)]
    assert {each.status_code for each in answers} == {200}
    return {each.json()["version"] for each in answers}
