"""The wheel of this checkout, built once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlserve.project import FOLDERS

PROJECT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "requirements.lock")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *FOLDERS):
        shutil.copytree(PROJECT / name, source / name, ignore=ignore)
    for name in FILES:
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    process = subprocess.run(
        [*pip, *command, str(source)], capture_output=True, text=True, encoding="utf-8"
    )
    assert process.returncode == 0, process.stdout + process.stderr
    [file] = folder.glob("vlserve-*.whl")
    return file
