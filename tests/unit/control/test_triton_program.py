"""Where Triton cannot run, `up` says why, and takes TorchServe."""

import platform
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import starting, triton_program
from vlserve.stack.triton_program import (
    verified_triton_home,
    why_no_wheel_fits,
    why_triton_cannot_run,
)

Patch = pytest.MonkeyPatch


def _without_the_wheel(patch: Patch) -> None:
    patch.setattr(triton_program.importlib.util, "find_spec", lambda name: None)


def _with_an_old_glibc(patch: Patch) -> None:
    patch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))


def _with_a_static_python(patch: Patch) -> None:
    patch.setattr(sysconfig, "get_config_var", lambda name: "libpython3.11.a")


def _without_the_library(patch: Patch) -> None:
    values = {"INSTSONAME": "libpython3.11.so.1.0", "LIBDIR": "/nowhere"}
    patch.setattr(sysconfig, "get_config_var", values.get)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (_without_the_wheel, "pip install --no-deps nvidia-pytriton==0.7.0"),
        (_with_an_old_glibc, "needs glibc 2.35, this system has glibc 2.31"),
        (_with_a_static_python, "built without a shared library"),
        (_without_the_library, "/nowhere/libpython3.11.so.1.0 is missing: .* apt install"),
    ],
)
def test_up_says_why_and_takes_torchserve(
    settings: Settings, monkeypatch: Patch, machine: Callable[[Patch], None], reason: str
) -> None:
    machine(monkeypatch)
    lines: list[str] = []
    triton_settings = settings.model_copy(
        update={"engine": EngineSettings(kind="triton", workers=3)}
    )
    effective_settings = starting.with_engine_that_runs(triton_settings, lines.append)
    assert (effective_settings.engine.kind, effective_settings.engine.workers) == ("torchserve", 3)
    (line,) = lines
    assert re.search(reason, line), line


@pytest.mark.skipif(why_no_wheel_fits() is not None, reason=str(why_no_wheel_fits()))
def test_it_runs_here() -> None:
    assert why_triton_cannot_run() is None
    assert (verified_triton_home() / "bin" / "tritonserver").is_file()


def test_another_binary_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").write_bytes(b"another one")
    monkeypatch.setattr(triton_program, "triton_home", lambda: tmp_path)
    with pytest.raises(StackError, match="is not the tritonserver that this version was built for"):
        verified_triton_home()
