"""The way back works though the settings of now cannot be read, or are not those of the stack."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import Run
from support.control_api_server import RunningControl, running_control
from vlserve.exporter.echo import pack_echo
from vlserve.running_settings import (
    differing,
    keep_settings,
    read_kept,
    settings_file,
    settings_to_reach_stack,
)
from vlserve.settings import STACK_VARIABLE, Settings, load_settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import supervisord

GOING_BACK = [["rollback", "tagger"], ["status"], ["history", "tagger"], ["unload", "tagger", 1]]
"""That `down` works too is shown by the stack's own tests."""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[RunningControl]:
    """A control service as `up` would leave it, with tagger 1 and then 2 released."""
    with running_control(tmp_path) as service:
        for version in (1, 2):
            service.client.register(pack_echo(tmp_path, "tagger", version))
            service.client.release("tagger", version)
        port = int(service.url.rpartition(":")[2])
        control = service.settings.control.model_copy(update={"port": port})
        settings = service.settings.model_copy(update={"control": control})
        settings_file(settings.state_dir).parent.mkdir(parents=True, exist_ok=True)
        keep_settings(settings)
        yield service


def write(project: Path, text: str) -> None:
    (project / "serving_config").mkdir(exist_ok=True)
    (project / "serving_config" / "vlserve.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["gateway: {port: 8080", "gateway: {prot: 1}", "- 1", "engine: {workers: no}"]
)
def test_a_broken_file_does_not_bar_the_way_back(
    up: RunningControl, run: Run, tmp_path: Path, text: str
) -> None:
    write(tmp_path, text)
    assert "vlserve.yaml" in run("up").line
    for words in GOING_BACK[:3]:
        result = run(*words)
        assert result.code == 0, result
        assert "vlserve.yaml" in (result.out if words == ["status"] else result.err)
    assert up.client.model("tagger").stable == 1


def test_a_wrong_variable_does_not_either(
    up: RunningControl, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLSERVE_ENGINE__WORKERS", "many")
    result = run("rollback", "tagger")
    assert (result.code, "VLSERVE_ENGINE__WORKERS" in result.err) == (0, True)
    assert "warning: settings cannot work" in result.err


def test_settings_that_changed_since_up_do_not_hide_the_stack(
    up: RunningControl, run: Run, tmp_path: Path
) -> None:
    write(tmp_path, "control: {port: 9}\n")
    result = run("rollback", "tagger")
    assert (result.code, "warning" in result.err) == (0, False)


def test_a_state_dir_that_the_broken_file_names_is_found_by_the_stack(
    up: RunningControl, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / ".vlserve").rename(elsewhere)
    text = (
        settings_file(elsewhere)
        .read_text(encoding="utf-8")
        .replace(f"{tmp_path}/.vlserve", str(elsewhere))
    )
    settings_file(elsewhere).write_text(text, encoding="utf-8")
    write(tmp_path, "state_dir: elsewhere\ngateway: {")

    class OfTheStack:
        def environ(self) -> dict[str, str]:
            return {STACK_VARIABLE: str(elsewhere)}

    monkeypatch.setattr("psutil.process_iter", lambda: [OfTheStack()])
    assert run("rollback", "tagger").code == 0


def test_the_stack_of_another_project_is_not_taken_for_this_ones(
    up: RunningControl, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    write_to = other / "serving_config"
    write_to.mkdir(parents=True)
    write(other, "gateway: {")
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(other))
    monkeypatch.setenv("VLSERVE_STATE_DIR", str(tmp_path / ".vlserve"))
    assert "vlserve.yaml is not YAML" in run("rollback", "tagger").line


@pytest.mark.parametrize("text", ["", "{", '{"gateway": {"port": "x"}}', '{"later": 1}'])
def test_kept_settings_that_cannot_be_read_are_none(tmp_path: Path, run: Run, text: str) -> None:
    settings_file(tmp_path).parent.mkdir(parents=True)
    settings_file(tmp_path).write_text(text, encoding="utf-8")
    assert read_kept(tmp_path) is None
    assert "vlserve up" in run("history", "tagger").line


def test_what_is_no_file_of_settings_is_not_read(tmp_path: Path) -> None:
    file = settings_file(tmp_path)
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    assert read_kept(tmp_path) is None
    file.unlink()
    file.symlink_to("/dev/zero")
    assert read_kept(tmp_path) is None


def test_kept_settings_are_those_that_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    settings = Settings(engine=EngineSettings(workers=7, batch_size=3))
    settings_file(settings.state_dir).parent.mkdir(parents=True)
    keep_settings(settings)
    assert settings_file(settings.state_dir).stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("VLSERVE_GATEWAY__PORT", "1234")
    write(tmp_path, "engine: {queue_size: 5}")
    snapshot = read_kept(settings.state_dir)
    assert snapshot is not None and differing(snapshot, settings) == []
    assert settings_to_reach_stack() == (snapshot, "")
    assert differing(load_settings(), settings) == ["gateway", "engine"]


def test_other_processors_are_no_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    first = load_settings()
    settings_file(first.state_dir).parent.mkdir(parents=True)
    keep_settings(first)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    second, snapshot = load_settings(), read_kept(first.state_dir)
    assert snapshot is not None and first.engine.workers != second.engine.workers
    assert differing(second, snapshot) == []
    other = Settings(engine=EngineSettings(workers=3))
    assert differing(other, snapshot) == ["engine"]


def test_processes_of_a_stack_read_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control service comes up again, though the file was broken meanwhile."""
    settings = Settings(project_dir=tmp_path, engine=EngineSettings(workers=7))
    for name in [name for name in os.environ if name.startswith("VLSERVE_")]:
        monkeypatch.delenv(name)
    for name, value in supervisord.environment(settings).items():
        monkeypatch.setenv(name, value)
    write(tmp_path, "gateway: {")
    assert load_settings() == settings
