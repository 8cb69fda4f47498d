"""No two servers of a stack listen on one port, those derived from base_port too."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import SettingsError
from vlserve.settings import Settings
from vlserve.stack import stack
from vlserve.stack.ports import ports, refuse_equal_ports

OWN = {"gateway": {"port": 7000, "metrics_port": 7001}, "control": {"port": 7002}}
SETTINGS = [("gateway", "port"), ("gateway", "metrics_port"), ("control", "port")]


def settings_with(folder: Path, *changes: tuple[str, str, Any], **engine: Any) -> Settings:
    sections: dict[str, dict[str, Any]] = {name: dict(section) for name, section in OWN.items()}
    for section, name, value in changes:
        sections[section][name] = value
    return Settings(project_dir=folder, engine={"base_port": 7100, **engine}, **sections)  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SETTINGS, 2)))
def test_two_that_are_equal_are_both_named(
    tmp_path: Path, first: tuple[str, str], second: tuple[str, str]
) -> None:
    equal = settings_with(tmp_path, (*first, 7009), (*second, 7009))
    with pytest.raises(SettingsError) as error:
        stack.up(equal, print)
    message = str(error.value)
    assert "7009" in message and ".".join(first) in message and ".".join(second) in message
    assert not equal.state_dir.exists()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("offset", [0, 4, 10, 14])
def test_one_of_an_instances_ports_is_named_with_its_setting(
    tmp_path: Path, setting: tuple[str, str], offset: int
) -> None:
    equal = settings_with(tmp_path, (*setting, 7100 + offset), instances=2)
    beside = rf" \+ {offset}" if offset else ""
    with pytest.raises(SettingsError, match=rf"engine\.base_port{beside}, .*{setting[1]}"):
        refuse_equal_ports(equal)


def test_between_two_instances_there_is_room(tmp_path: Path) -> None:
    apart = settings_with(tmp_path, ("control", "port", 7105), instances=2)
    refuse_equal_ports(apart)
    assert len(list(ports(apart))) == 3 + 2 * 5


def test_a_port_beyond_the_last_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"65536 \(engine\.base_port \+ 3, .*does not exist"):
        refuse_equal_ports(settings_with(tmp_path, base_port=65533))


def test_one_number_on_two_addresses_is_two_ports(tmp_path: Path) -> None:
    values = (("gateway", "host", "127.0.0.2"), ("gateway", "port", 7002))
    refuse_equal_ports(settings_with(tmp_path, *values))
    with pytest.raises(SettingsError):
        every = ("gateway", "host", "0.0.0.0"), ("gateway", "api_keys", ("a-key",))
        refuse_equal_ports(settings_with(tmp_path, *every, ("gateway", "port", 7002)))
