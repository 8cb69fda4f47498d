"""What supervisord is told, without starting it."""

import configparser
import os
import shutil
from pathlib import Path
from typing import Literal

import pytest

from vlserve.errors import SettingsError
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings, GatewaySettings
from vlserve.stack import supervisord

PROJECT = Path(__file__).parents[3]


def _settings(folder: Path, **sections: object) -> Settings:
    shutil.copytree(PROJECT / "serving_config", folder / "serving_config")
    return Settings(project_dir=folder, **sections)  # type: ignore[arg-type]


def _written(settings: Settings) -> configparser.RawConfigParser:
    conf = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
    conf.read(supervisord.write_configuration(settings, Path("/bootstrap.json")))
    return conf


def test_every_program_comes_back_for_ever_and_takes_its_children_along(tmp_path: Path) -> None:
    conf = _written(_settings(tmp_path, engine=EngineSettings(instances=3)))
    programs = [name for name in conf.sections() if name.startswith("program:")]
    assert programs == [
        "program:gateway", "program:control",
        "program:engine-0", "program:engine-1", "program:engine-2",
    ]  # fmt: skip
    for program in programs:
        assert conf[program]["autorestart"] == "true"
        assert conf[program]["stopasgroup"] == conf[program]["killasgroup"] == "true"
        assert int(conf[program]["startretries"]) > 100_000


@pytest.mark.parametrize("kind", ["torchserve", "triton"])
def test_an_engine_ends_at_once(tmp_path: Path, kind: Literal["torchserve", "triton"]) -> None:
    """Asked to end, either one waits for open connections, though nobody asks any more."""
    conf = _written(_settings(tmp_path, engine=EngineSettings(kind=kind)))
    assert conf["program:engine-0"]["stopsignal"] == "KILL"


def test_instances_share_no_port_folder_or_socket_folder(tmp_path: Path) -> None:
    settings = _settings(tmp_path, engine=EngineSettings(instances=2, base_port=9000))
    conf = _written(settings)
    assert conf["program:engine-0"]["environment"] != conf["program:engine-1"]["environment"]
    lines = [
        (settings.state_dir / f"engine-{index}" / "config.properties")
        .read_text(encoding="utf-8")
        .splitlines()
        for index in range(2)
    ]
    first, second = (
        {line for line in text if "port=" in line or "address=" in line} for text in lines
    )
    assert len(first) == len(second) == 6
    assert not first & second
    assert "inference_address=http://127.0.0.1:9010" in second


def test_the_engine_may_load_from_the_model_store_alone(tmp_path: Path) -> None:
    """In the .properties file a backslash is doubled, and what is not ASCII is an escape."""
    settings = _settings(tmp_path / "模.型")
    supervisord.write_configuration(settings, Path("/bootstrap.json"))
    text = (settings.state_dir / "engine-0" / "config.properties").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith("allowed_urls="))
    assert line == rf"allowed_urls=file://\\Q{tmp_path}/\u6a21.\u578b/model_store\\E/.*"


@pytest.mark.parametrize("name", ["50%", "a;b", "it's", 'a"b', "a#b"])
def test_a_path_that_supervisord_cannot_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="supervisord takes none of"):
        supervisord.write_configuration(_settings(tmp_path / name), Path("/bootstrap.json"))


def test_sockets_are_beside_the_state_unless_the_path_is_too_long(tmp_path: Path) -> None:
    short = Settings(project_dir=tmp_path, state_dir=Path("/s"))
    assert short.socket_dir == Path("/s/run")
    first, second = (
        Settings(project_dir=tmp_path, state_dir=Path("/" + letter * 100)).socket_dir
        for letter in "ab"
    )
    assert first != second
    assert len(os.fsencode(first)) < 80
    assert str(os.getuid()) in first.name


def test_processes_get_these_settings_whatever_the_shell_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("odd \"key'",)
    settings = _settings(tmp_path, gateway=GatewaySettings(port=4444, api_keys=keys))
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("VLSERVE_GATEWAY__PORT", "5555")
    environment = supervisord.environment(settings)
    for name in ("PYTHONPATH", "VLSERVE_GATEWAY__PORT"):
        assert name not in environment
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_processes_take_over_named_variables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TS_CONFIG_FILE", "PYTHONSAFEPATH", "JAVA_TOOL_OPTIONS", "LD_PRELOAD", "WHATEVER"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    variables = supervisord.environment(Settings(project_dir=tmp_path))
    allowed_names = {*supervisord.INHERITED, "LC_ALL", "PYTHONUTF8"}
    assert {name for name in variables if not name.startswith("VLSERVE_")} <= allowed_names
    assert (variables["TZ"], variables["LC_ALL"], variables["PYTHONUTF8"]) == (
        "Asia/Shanghai",
        "C.UTF-8",
        "1",
    )
