"""What Java and a worker may take of the machine's memory: the scripts that start them, run with
stand-ins for the programs."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.documents import PROJECT
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import supervisord

SCRIPTS = PROJECT / "serving_config" / "torchserve"
GREEDY = "try:\n    bytearray(1 << 30)\nexcept MemoryError:\n    print('refused')\n"


def stand_in(folder: Path, does: str) -> Path:
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    program.chmod(0o700)
    return program


def run_worker(folder: Path, does: str, **variables: str) -> str:
    """Start a worker as TorchServe does; return what its stand-in printed."""
    program = stand_in(folder, does)
    result = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "worker.sh"), "--sock-type", "unix"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(program), **variables},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "kib"), [({}, 8192 * 1024), ({"WORKER_MEMORY_MIB": "600"}, 600 * 1024)]
)
def test_a_worker_gets_the_limit_of_the_settings(
    tmp_path: Path, variables: dict[str, str], kib: int
) -> None:
    assert run_worker(tmp_path, "ulimit -d", **variables) == str(kib)


def test_what_passes_it_is_refused_and_the_worker_lives_on(tmp_path: Path) -> None:
    code = tmp_path / "greedy.py"
    code.write_text(GREEDY, encoding="utf-8")
    does = f'"{sys.executable}" "{code}"'
    assert run_worker(tmp_path, does, WORKER_MEMORY_MIB="600") == "refused"
    assert run_worker(tmp_path, does, WORKER_MEMORY_MIB="4096") == ""


def test_java_gets_its_heap_and_ends_where_it_is_full(tmp_path: Path) -> None:
    home = tmp_path / "java" / "bin"
    home.mkdir(parents=True)
    stand_in(home, 'printf "%s\\n" "$@"').rename(home / "java")
    places = {name: str(tmp_path) for name in ("ENGINE_DIR", "TS_HOME", "LOG_CONFIG")}
    result = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "start.sh")],
        env={
            "PATH": os.environ["PATH"],
            "JAVA_HOME": str(home.parent),
            "TMPDIR": str(tmp_path / "tmp"),
            "WORKER_COMMAND": "worker",
            "JAVA_HEAP_MIB": "700",
            **places,
        },
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert {"-Xmx700m", "-XX:+ExitOnOutOfMemoryError"} <= set(result.stdout.splitlines())


def test_supervisord_hands_the_settings_on(tmp_path: Path) -> None:
    engine = EngineSettings(java_heap_mib=700, worker_memory_mib=600)
    settings = Settings(project_dir=tmp_path, engine=engine)
    conf = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
    file = supervisord.write_configuration(settings, Path("/bootstrap.json"))
    conf.read(file, encoding="utf-8")
    environment = conf["program:engine-0"]["environment"]
    assert 'JAVA_HEAP_MIB="700",WORKER_MEMORY_MIB="600"' in environment
