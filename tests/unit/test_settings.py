"""Settings: where values come from, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlserve.errors import SettingsError
from vlserve.settings import NEIGHBOURS_IN_TIME, Settings, load_settings
from vlserve.settings_sections import EngineSettings, GatewaySettings
from vlserve_worker.time_limit import limit_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "serving_config").mkdir()
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    return tmp_path


def write(project: Path, text: str) -> None:
    (project / "serving_config" / "vlserve.yaml").write_text(text, encoding="utf-8")


def test_defaults_keep_everything_inside_the_project_and_on_loopback(project: Path) -> None:
    settings = load_settings()
    assert settings.state_dir == project / ".vlserve"
    assert settings.model_store == project / "model_store"
    assert settings.gateway_url == "http://127.0.0.1:8080"


def test_the_file_wins_over_defaults_and_the_environment_over_the_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, "gateway: {port: 9001}\nengine: {workers: 3}\n")
    monkeypatch.setenv("VLSERVE_GATEWAY__PORT", "9002")
    settings = load_settings()
    assert settings.gateway.port == 9002
    assert settings.engine.workers == 3


def test_the_shipped_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLSERVE_PROJECT_DIR", raising=False)
    settings = load_settings()
    assert (settings.project_dir / "serving_config" / "vlserve.yaml").is_file()


def test_an_address_beyond_loopback_needs_keys(project: Path) -> None:
    write(project, "gateway: {host: 0.0.0.0}")
    with pytest.raises(SettingsError, match="api_keys"):
        load_settings()
    write(project, "gateway: {host: 0.0.0.0, api_keys: [secret-of-this-test]}")
    assert load_settings().gateway_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gateway: {prot: 8080}", "gateway.prot"),
        ("engine: {max_batch_delay_ms: 0}", "engine.max_batch_delay_ms"),
        ("gateway: {port: eighty}", "gateway.port"),
        ("gateway: {host: not an address}", "gateway"),
        ("gateway: [", "not YAML"),
        ("- gateway", "holds no settings"),
        ("1: 2", "holds no settings"),
        ("a: 2001-99-99", "not YAML: month must be in 1..12"),
        ("[" * 5000, "nested too deeply"),
        ("state_dir: ''", "state_dir"),
        ("gateway: {api_keys: ['']}", "gateway.api_keys"),
        ('gateway: {api_keys: ["two\\nlines"]}', "gateway.api_keys"),
        ("gateway: {retries: -1}", "gateway.retries"),
        ("control: {tick_s: .nan}", "control.tick_s"),
        ("engine: {load_timeout_s: .inf}", "engine.load_timeout_s"),
        ("gateway: {timeout_s: 1.0e300}", "gateway.timeout_s"),
        ("gateway: {max_body_bytes: 99999999999}", "gateway.max_body_bytes"),
        ("engine: {queue_size: 99999999999}", "engine.queue_size"),
        ("engine: {workers: 99999999}", "engine.workers"),
        ("gateway: {port: 1}\ngateway: {port: 2}", "'gateway' is there twice, line 2"),
        ("gateway:\n  port: 1\n  port: 2", "'port' is there twice, line 3"),
        ("gateway: &gateway\n  <<: *gateway", "nested too deeply"),
        ("gateway: {api_keys: '" + "[" * 50_000 + "'}", "gateway.api_keys"),
        ("state_dir: ~/state", "state_dir"),
        ('state_dir: "a\\0b"', "state_dir"),
        ('"a\\e\\nb": 1', r"a\x1b\nb"),
        ("\n".join(f"setting_{number}: 1" for number in range(5000)), "and 4990 more"),
        ("#" * 200_000, "has 200000 bytes, more than"),
    ],
)
def test_what_cannot_work_is_refused_by_name(project: Path, text: str, name: str) -> None:
    write(project, text)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert name in str(error.value)
    assert str(project / "serving_config" / "vlserve.yaml") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("raw", [b"\xff", "gateway: {port: 81}".encode("utf-16")])
def test_a_file_of_another_encoding_is_named(project: Path, raw: bytes) -> None:
    (project / "serving_config" / "vlserve.yaml").write_bytes(raw)
    with pytest.raises(SettingsError, match=r"vlserve\.yaml is not UTF-8"):
        load_settings()


def test_a_file_with_a_byte_order_mark_is_read(project: Path) -> None:
    file = project / "serving_config" / "vlserve.yaml"
    file.write_text("gateway: {port: 81}", encoding="utf-8-sig")
    assert load_settings().gateway.port == 81


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_regular_file_is_refused_at_once(
    project: Path, make: Callable[[Path], None]
) -> None:
    make(project / "serving_config" / "vlserve.yaml")
    with pytest.raises(SettingsError, match=r"vlserve\.yaml is not a regular file"):
        load_settings()


@pytest.mark.parametrize(
    ("target", "folder"),
    [("vlserve.yaml", False), ("nowhere", False), ("serving_config", True), ("nowhere", True)],
)
def test_a_link_that_leads_nowhere_does_not_mean_the_defaults(
    project: Path, target: str, folder: bool
) -> None:
    place = project / "serving_config"
    if folder:
        place.rmdir()
        place.symlink_to(target)
    else:
        (place / "vlserve.yaml").symlink_to(target)
    with pytest.raises(SettingsError, match=r"vlserve\.yaml cannot be read"):
        load_settings()


def test_a_file_in_the_place_of_the_folder_does_not_either(project: Path) -> None:
    (project / "serving_config").rmdir()
    (project / "serving_config").touch()
    with pytest.raises(SettingsError, match=r"vlserve\.yaml cannot be read: Not a directory"):
        load_settings()


def test_a_state_dir_that_is_a_loop_of_links_is_named(project: Path) -> None:
    (project / "state").symlink_to("state")
    write(project, "state_dir: state")
    with pytest.raises(SettingsError, match=r"state_dir .*loop"):
        load_settings()


def test_merges_are_read_and_cost_no_more_than_their_limit(project: Path) -> None:
    write(project, "gateway: &gateway {port: 81}\ncontrol: {<<: *gateway, tick_s: 3}")
    assert (load_settings().control.port, load_settings().control.tick_s) == (81, 3)
    lines = ["k0: &k0 {a: 1}"]
    lines += [f"k{n}: &k{n} {{<<: [*k{n - 1}, *k{n - 1}]}}" for n in range(1, 60)]
    write(project, "\n".join(lines))
    with pytest.raises(SettingsError, match="merges bring more than 10000 entries"):
        load_settings()


def test_a_section_without_entries_keeps_its_defaults(project: Path) -> None:
    write(project, "gateway:\nengine: {workers: 3}\n")
    assert load_settings().gateway.port == 8080


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("secret", ("secret",)),
        ("one,two", ("one", "two")),
        (" one , two ,", ("one", "two")),
        ('["one", "with, comma"]', ("one", "with, comma")),
        ("{brace}", ("{brace}",)),
        ("", ()),
    ],
)
def test_keys_come_as_a_plain_string(
    project: Path, monkeypatch: pytest.MonkeyPatch, value: str, keys: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VLSERVE_GATEWAY__API_KEYS", value)
    assert load_settings().gateway.api_keys == keys


@pytest.mark.parametrize("form", ["{0},{1}", " {0} , {1} ,", '["{0}", "{1}"]'])
def test_other_lists_come_as_a_plain_string_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    hashes, urls = ("a" * 64, "b" * 64), ("https://models.example/team/", "file:///srv/archives/")
    monkeypatch.setenv("VLSERVE_TRUST__PICKLE", form.format(*hashes))
    monkeypatch.setenv("VLSERVE_CONTROL__ALLOWED_URLS", form.format(*urls))

    settings = load_settings()

    assert settings.trust.pickle == hashes
    assert settings.control.allowed_urls == urls


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLSERVE_GATEWAY__API_KEYS", '["one"'),
        ("VLSERVE_GATEWAY", "secret"),
        ("VLSERVE_GATEWAY", "[]"),
        ("VLSERVE_ENGINE", "[" * 100_000),
        ("vlserve_control", "{"),
        ("VLSERVE_GATEWAY__PORT", "eighty"),
        ("VLSERVE_GATEWAY__PORT", ""),
        ("VLSERVE_GATEWAY__PORT__X", "1"),
        ("VLSERVE_GATEWAY__PROT", "1"),
        ("VLSERVE_GATEWAY__HOST", "no address"),
        ("VLSERVE_GATEWAY", '{"port": "x"}'),
        ("VLSERVE_ENGINE__WORKERS", "9" * 5000),
        ("VLSERVE_STATE_DIR", ""),
    ],
)
def test_a_variable_that_cannot_work_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert variable in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


def test_the_port_of_the_metrics_is_read_under_its_earlier_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was Envoy's admin page until 0.1.0: settings that people wrote then go on working."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serving_config").mkdir()
    file = tmp_path / "serving_config" / "vlserve.yaml"
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    file.write_text("gateway: {admin_port: 1234}\n", encoding="utf-8")
    assert load_settings().gateway.metrics_port == 1234
    monkeypatch.setenv("VLSERVE_GATEWAY__ADMIN_PORT", "1235")
    assert load_settings().gateway.metrics_port == 1235
    monkeypatch.setenv("VLSERVE_GATEWAY__METRICS_PORT", "1236")
    assert load_settings().gateway.metrics_port == 1236


def test_by_default_the_neighbours_of_what_hangs_are_answered_in_time() -> None:
    assert Settings().doubts() == []
    engine = EngineSettings(response_timeout_s=40)
    (doubt,) = Settings(engine=engine).doubts()
    assert "gateway.timeout_s to 60" in doubt
    assert Settings(engine=engine, gateway=GatewaySettings(timeout_s=60)).doubts() == []


def test_a_suspect_and_its_batch_take_no_longer_than_that() -> None:
    whole, alone = (limit_of(30, alone=alone) for alone in (False, True))
    assert whole + alone < NEIGHBOURS_IN_TIME * 30


def test_workers_are_as_many_as_the_process_may_use_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    monkeypatch.setattr("os.cpu_count", lambda: 48)
    assert EngineSettings().workers == 1


def test_on_triton_a_batch_may_wait_for_nothing_and_on_torchserve_it_then_waits_as_by_default(
    project: Path,
) -> None:
    write(project, "engine: {kind: triton, max_batch_delay_ms: 0}")
    engine = load_settings().engine
    assert engine.max_batch_delay_ms == 0
    assert engine.on("torchserve") == EngineSettings(kind="torchserve")
    write(project, "engine: {kind: both, max_batch_delay_ms: 0}")
    with pytest.raises(SettingsError, match="max_batch_delay_ms"):
        load_settings()
