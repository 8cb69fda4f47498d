"""up, down and status, and what supervisord brings back. Real processes."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from support.engine_workers import worker_pids
from support.engines import on_triton, torchserve_only
from support.running_stack import admin_page, make_settings, wait_until
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.key import read_key
from vlserve.control.wire.views import Health
from vlserve.errors import ControlError, PortBusy, SettingsError, StackError
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.probes import drawn_image
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack import stack as control_stack
from vlserve.stack import starting
from vlserve.stack.ports import ports
from vlserve.testing import RunningStack, free_ports

pytestmark = on_triton

PROGRAMS = ["control", "engine-0", "gateway"]


@pytest.fixture
def settings(engine_kind: EngineKind, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a stack that is down; it is down again after the test."""
    settings = make_settings(tmp_path, engine_kind)
    yield settings
    control_stack.down(settings, print)


def _processes(settings: Settings) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STACK_VARIABLE) == str(settings.state_dir):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def _pids(settings: Settings) -> dict[str, int | None]:
    return {process.name: process.pid for process in control_stack.status(settings)}


def _assert_nothing_is_left(settings: Settings) -> None:
    assert _processes(settings) == []
    assert control_stack.status(settings) == []
    assert not settings.socket_dir.exists()
    names = [path.name for path in settings.state_dir.rglob("*")]
    assert not [name for name in names if name.endswith((".sock", ".pid"))]
    for each in ports(settings):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((each.host, each.port))


@pytest.mark.long
def test_up_and_down_in_a_folder_with_an_awkward_name(
    engine_kind: EngineKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, Chinese, and too long for a socket; two `up` at once start one stack."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("LC_ALL", "C")
    folder = tmp_path / "my 模型" / ("long" * 25)
    settings = make_settings(folder, engine_kind, api_keys=("the-api-key",))
    try:
        ups = [threading.Thread(target=control_stack.up, args=(settings, print)) for _ in range(2)]
        for up in ups:
            up.start()
        for up in ups:
            up.join()
        assert sorted(_pids(settings)) == PROGRAMS
        processes = _processes(settings)
        assert sum("supervisord" in " ".join(process.cmdline()) for process in processes) == 1
        assert not [process for process in processes if "PYTHONPATH" in process.environ()]
        _assert_secrets_are_private(settings)
        assert control_stack.down(settings, print)
        _assert_nothing_is_left(settings)
        assert not control_stack.down(settings, print)
    finally:
        control_stack.down(settings, print)


def _assert_secrets_are_private(settings: Settings) -> None:
    text = _key_file(settings).read_text(encoding="utf-8")
    tokens = re.findall(r'"(?:key|management|inference)": "([^"]+)"', text)
    control_key = read_key(settings.control_key_file)
    assert control_key and tokens
    secrets = ["the-api-key", control_key, *tokens]
    for path in filter(Path.is_file, settings.state_dir.rglob("*")):
        if any(secret in path.read_text(errors="replace", encoding="utf-8") for secret in secrets):
            assert path.stat().st_mode & 0o077 == 0, path
    engine = psutil.Process(_pids(settings)["engine-0"])
    assert "the-api-key" not in str(engine.environ())


def _key_file(settings: Settings) -> Path:
    return settings.state_dir / "engine-0" / "key_file.json"


@pytest.mark.long
def test_up_mends_what_a_killed_supervisord_left(settings: Settings) -> None:
    control_stack.up(settings, print)
    before = _pids(settings)
    for process in _processes(settings):
        if "supervisord" in " ".join(process.cmdline()):
            process.kill()
    wait_until(lambda: control_stack.status(settings) == [])
    assert _processes(settings)
    with ControlClient.of(settings) as control:
        assert "is gone: what dies now stays dead" in control.health().status
    control_stack.up(settings, print)
    after = _pids(settings)
    assert sorted(after) == PROGRAMS
    assert not set(before.values()) & set(after.values())
    control_stack.down(settings, print)
    _assert_nothing_is_left(settings)


def test_down_lets_running_requests_finish(settings: Settings, tmp_path: Path) -> None:
    control_stack.up(settings, print)
    with ControlClient.of(settings) as control:
        control.register(pack_echo(tmp_path, "slow", 1, delay_ms=800))
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"{settings.gateway_url}/predictions/slow/1"
        body = {"image": drawn_image(0), "text": "cat"}
        answers.append(httpx.post(url, json=body, timeout=30, trust_env=False))

    caller = threading.Thread(target=ask)
    caller.start()
    with closing(EnvoyGateway(settings)) as gateway:
        wait_until(lambda: gateway.in_flight("slow", 1) == 1)
    control_stack.down(settings, print)
    caller.join()
    assert answers[0].status_code == 200, answers[0].text
    _assert_nothing_is_left(settings)


def test_busy_ports_are_named_with_their_setting_and_holder(settings: Settings) -> None:
    with socket.socket() as first, socket.socket() as other:
        first.bind(("127.0.0.1", settings.gateway.port))
        other.bind(("0.0.0.0", settings.engine.base_port + 2))
        first.listen()
        other.listen()
        with pytest.raises(PortBusy) as error:
            control_stack.up(settings, print)
    message = str(error.value)
    assert f"{settings.gateway.port} (gateway.port, VLSERVE_GATEWAY__PORT)" in message
    assert f"{settings.engine.base_port + 2} (engine.base_port" in message
    assert f"(pid {os.getpid()})" in message
    assert str(settings.control.port) not in message
    _assert_nothing_is_left(settings)


def test_what_does_not_start_is_told_with_its_log_and_nothing_stays_up(settings: Settings) -> None:
    start = settings.config_dir / settings.engine.kind / "start.sh"
    start.write_text("echo no memory left for it >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(StackError, match=r"(?s)engine-0 does not start.*no memory left for it"):
        control_stack.up(settings, print)
    _assert_nothing_is_left(settings)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_up_that_is_cut_short_leaves_nothing_up(
    settings: Settings, interruption: type[BaseException]
) -> None:
    def progress(message: str) -> None:
        if message == "gateway answers":
            raise interruption

    with pytest.raises(interruption):
        control_stack.up(settings, progress)
    _assert_nothing_is_left(settings)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("gateway/envoy.yaml", "admin: {address: ${no_such_setting}}", "no_such_setting"),
        ("gateway/envoy.yaml", "admin: [", "envoy.yaml"),
        ("supervisor/{engine}.conf", "[program:${nme}]", "nme"),
        pytest.param(
            *("torchserve/config.properties", "a=${b", "config.properties"),
            marks=torchserve_only("it reads config.properties"),
        ),
    ],
)
def test_configuration_that_cannot_be_filled_in_starts_nothing(
    settings: Settings, file: str, text: str, words: str
) -> None:
    engine = {"torchserve": "engine", "triton": "triton"}[settings.engine.kind]
    (settings.config_dir / file.format(engine=engine)).write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        control_stack.up(settings, print)
    _assert_nothing_is_left(settings)


def test_up_is_free_when_up(stack: RunningStack) -> None:
    before = _pids(stack.settings)
    assert {process.state for process in control_stack.status(stack.settings)} == {"RUNNING"}
    control_stack.up(stack.settings, print)
    assert _pids(stack.settings) == before


@pytest.mark.parametrize("drain", ["/drain_listeners", "/healthcheck/fail"])
def test_up_opens_a_drained_gateway_again(stack: RunningStack, drain: str) -> None:
    """As a `down` leaves it that was cut short, and whoever else may use the admin page."""
    before = _pids(stack.settings)
    with admin_page(stack.settings) as admin:
        assert admin.post(drain).status_code == 200
    with closing(EnvoyGateway(stack.settings)) as gateway:
        wait_until(gateway.is_drained)
        messages: list[str] = []
        control_stack.up(stack.settings, messages.append)
        assert not gateway.is_drained()
    assert messages[0].startswith("the gateway was drained")
    assert _is_well(stack.gateway_url)
    after = _pids(stack.settings)
    assert {name for name in after if after[name] != before[name]} == {"gateway"}


def test_an_up_that_fails_leaves_what_was_up(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _pids(stack.settings)
    monkeypatch.setattr(control_stack, "_mend_what_hangs", lambda *_: None)
    monkeypatch.setattr(starting, "START_TIMEOUT_S", 0.0)
    monkeypatch.setattr(starting, "_answers", lambda *_: False)
    with pytest.raises(StackError, match="does not start"):
        control_stack.up(stack.settings, print)
    assert _pids(stack.settings) == before


def test_up_waits_for_a_control_service_that_is_being_started_anew(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = ControlError("that was another program"), StackError("it does not answer")
    troubles: list[Exception] = [third, second]
    health = ControlClient.health
    messages: list[str] = []

    def stumble(control: ControlClient) -> Health:
        """Once it has answered, which is said."""
        if troubles and "control answers" in messages:
            raise troubles.pop()
        return health(control)

    monkeypatch.setattr(ControlClient, "health", stumble)
    control_stack.up(stack.settings, messages.append)
    assert messages[-2:] == ["that was another program", "it does not answer"]


def test_up_with_other_settings_is_refused(stack: RunningStack) -> None:
    before = _pids(stack.settings)
    gateway = stack.settings.gateway.model_copy(update={"port": free_ports(1)})
    other = stack.settings.model_copy(update={"gateway": gateway})
    with pytest.raises(StackError, match=r"other settings of gateway.*vlserve down"):
        control_stack.up(other, print)
    assert _pids(stack.settings) == before


@pytest.mark.parametrize("program", ["gateway", "control"])
def test_a_killed_program_comes_back(stack: RunningStack, program: str) -> None:
    pid = _pids(stack.settings)[program]
    psutil.Process(pid).kill()
    wait_until(lambda: _pids(stack.settings).get(program) not in (None, pid))
    is_up = {"gateway": lambda: _is_well(stack.gateway_url), "control": stack.control.is_up}
    wait_until(is_up[program])


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@torchserve_only("Java has a heap")
def test_java_has_a_limit_of_memory(stack: RunningStack) -> None:
    java = psutil.Process(_pids(stack.settings)["engine-0"])
    assert f"-Xmx{stack.settings.engine.java_heap_mib}m" in java.cmdline()


def test_workers_have_a_limit_of_memory(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    stack.control.register(pack_echo(tmp_path, new_model, 1))
    engine = stack.settings.engine
    for pid in worker_pids(stack.settings, new_model)[1]:
        limit, _ = psutil.Process(pid).rlimit(psutil.RLIMIT_DATA)
        assert limit == engine.worker_memory_mib * 1024 * 1024
