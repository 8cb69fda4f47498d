"""A wheel that is not the one of its lock stops `make serve` before it is installed."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
WHEEL = "pinned_thing-1.0-py3-none-any.whl"


def write_wheel(file: Path) -> None:
    about = "pinned_thing-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("pinned_thing.py", "VALUE = 1\n")
        members.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: pinned-thing\nVersion: 1.0\n"
        )
        members.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        members.writestr(f"{about}/RECORD", "")


def make_environment(folder: Path) -> None:
    """Make a virtual environment with this one's pip: `python -m venv` unpacks and compiles its
    own, which takes 6 s of processor time."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/*/site-packages")
    shutil.copytree(Path(sysconfig.get_path("purelib"), "pip"), packages / "pip")
    program = folder / "bin" / "pip"
    program.write_text('#!/bin/sh\nexec "${0%/*}/python" -m pip "$@"\n', encoding="utf-8")
    program.chmod(0o755)


@pytest.mark.parametrize("lock_name", ["requirements.lock", "cpu.lock"])
@pytest.mark.parametrize("tampered", [False, True])
def test_a_changed_byte_stops_make_serve(tmp_path: Path, tampered: bool, lock_name: str) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / WHEEL
    write_wheel(wheel)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if tampered:
        content = wheel.read_bytes()
        wheel.write_bytes(content.replace(b"VALUE = 1", b"VALUE = 2"))
    for lock in PROJECT.glob("*.lock"):
        (tmp_path / lock.name).touch()
    absent = f"absent-thing==1.0 --hash=sha256:{64 * '0'}\n"  # as PyTorch's CPU build may be
    (tmp_path / "cpu.lock").write_text(absent, encoding="utf-8")
    requirement = f"pinned-thing==1.0 --hash=sha256:{sha256}\n"
    (tmp_path / lock_name).write_text(requirement, encoding="utf-8")
    for name in ("Makefile", "setup.py"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "pyproject.toml").touch()
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    make_environment(tmp_path / ".venv")
    process = subprocess.run(
        ["make", "serve", "PYTHON=true"],  # which has the environment already
        cwd=tmp_path,
        env=own | pip,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    modules = list(tmp_path.glob(".venv/lib/*/site-packages/pinned_thing.py"))
    assert process.returncode != 0  # there is no vlserve to install here
    assert ("DO NOT MATCH THE HASHES" in process.stderr) == tampered, process.stderr
    assert bool(modules) != tampered
