"""A stack started from a shell whose variables, locale or folder would break it. Real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.running_stack import make_settings
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.exporter.echo import pack_echo
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack import stack as control_stack
from vlserve.stack import stopping, supervisord

HOSTILE = {
    "TS_CONFIG_FILE": "/nowhere/config.properties",
    "TS_INFERENCE_ADDRESS": "http://0.0.0.0:1",
    "LOG_LOCATION": "/nowhere",
    "METRICS_LOCATION": "/nowhere",
    "JAVA_TOOL_OPTIONS": "-Xmx1m",
    "JDK_JAVA_OPTIONS": "-Xmx1m",
    "CLASSPATH": "/nowhere",
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": "/nowhere",
    "PYTHONOPTIMIZE": "2",
    "PYTHONUTF8": "0",
    "PYTHONWARNINGS": "error",
    "ENABLE_TORCH_PROFILER": "1",
    "LOCAL_RANK": "7",
    "OMP_NUM_THREADS": "64",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
}


@pytest.fixture(params=[pytest.param("GBK", marks=pytest.mark.long), "ASCII"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables of a locale that is not UTF-8."""
    if request.param == "ASCII":
        return {"LC_ALL": "C"}
    compiler = shutil.which("localedef")
    if compiler is None:
        pytest.skip("no localedef, which makes a GBK locale")
    folder = tmp_path / "locales" / "zh_CN.GBK"
    folder.parent.mkdir()
    command = [compiler, "-i", "zh_CN", "-f", "GBK", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode > 1:
        pytest.skip("no sources of locales, of which localedef makes a GBK locale")
    return {"LOCPATH": str(folder.parent), "LC_ALL": "zh_CN.GBK"}


@pytest.fixture
def settings(engine_kind: EngineKind, tmp_path: Path) -> Iterator[Settings]:
    settings = make_settings(tmp_path / "模型 一", engine_kind)
    yield settings
    control_stack.down(settings, print)


def _vlserve(settings: Settings, words: list[str], **variables: str) -> None:
    """Run the `vlserve` of this environment as a program of its own."""
    own = {
        name: value
        for name, value in supervisord.environment(settings).items()
        if name.startswith("VLSERVE_") and name != STACK_VARIABLE
    }
    result = subprocess.run(
        [str(Path(sys.executable).parent / "vlserve"), *words],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]} | own | variables,
        cwd=settings.project_dir,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode("utf-8", "replace")


def test_nothing_of_the_shell_or_its_locale_leaks_into_a_stack(
    settings: Settings, locale: dict[str, str], tmp_path: Path
) -> None:
    for name in ("queue", "uuid", "logging", "vlserve"):  # in the folder where `up` is called
        module = settings.project_dir / f"{name}.py"
        module.write_text("raise SystemExit", encoding="utf-8")
    _vlserve(settings, ["up"], **HOSTILE, **locale)
    archive = pack_echo(tmp_path, "tagger", 1)
    _vlserve(settings, ["register", str(archive)], **HOSTILE, **locale)
    processes = stopping.processes(settings)
    assert len(processes) >= 4
    for process in processes:
        environment = process.environ()
        leaks = {
            name: environment[name] for name in HOSTILE if environment.get(name) == HOSTILE[name]
        }
        assert leaks == {}, process.name()
        assert environment["LC_ALL"] == "C.UTF-8"
    with ControlClient.of(settings) as control:
        assert control.health().status == "ok"
        assert control.release("tagger", 1).version == 1
    _vlserve(settings, ["down"], **HOSTILE, **locale)
    assert not [each for each in stopping.processes(settings) if psutil.pid_exists(each.pid)]
