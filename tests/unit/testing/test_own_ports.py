"""A stack of one's own: its ports are free, and everything else stays as it was set."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vlserve.settings import Settings
from vlserve.settings_sections import ControlSettings, EngineSettings, GatewaySettings
from vlserve.stack.ports import ports
from vlserve.testing import free_ports, with_free_ports


def test_every_process_gets_a_free_port_of_its_own(tmp_path: Path) -> None:
    settings = with_free_ports(
        Settings(project_dir=tmp_path, engine=EngineSettings(instances=3, workers=1))
    )
    numbers = [setting.port for setting in ports(settings)]
    assert len(numbers) == len(set(numbers)) and len(numbers) > 3 + 3
    for port in numbers:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_what_else_was_set_stays(tmp_path: Path) -> None:
    settings = Settings(
        project_dir=tmp_path,
        state_dir=tmp_path / "elsewhere",
        gateway=GatewaySettings(timeout_s=7.0),
        control=ControlSettings(tick_s=0.25),
        engine=EngineSettings(queue_size=3),
    )
    own = with_free_ports(settings)
    assert (own.project_dir, own.state_dir) == (tmp_path, tmp_path / "elsewhere")
    assert own.model_store == tmp_path / "model_store"
    assert own.gateway.timeout_s == 7.0
    assert own.control.tick_s == 0.25
    assert own.engine.queue_size == 3
    assert (
        own.gateway_url.endswith(f":{own.gateway.port}") and own.gateway_url != settings.gateway_url
    )


def test_a_port_in_use_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_ports(3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        firsts = iter([busy, busy - 1, busy - 2, free])
        monkeypatch.setattr("random.randrange", lambda *_: next(firsts))
        assert free_ports(3) == free


def test_what_another_process_was_given_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing listens there yet."""
    code = "from vlserve.testing import free_ports; print(free_ports(3), flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        others_first, free = int(process.stdout.readline()), free_ports(3)
        firsts = iter([others_first, others_first - 1, others_first + 2, free])
        monkeypatch.setattr("random.randrange", lambda *_: next(firsts))
        assert free_ports(3) == free
        process.communicate(b"\n")
    firsts = iter([others_first])
    assert free_ports(3) == others_first


def test_it_needs_no_torch() -> None:
    code = "import sys, vlserve.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
