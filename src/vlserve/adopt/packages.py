"""Packages that an archive's code needs and that are not installed here."""

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vlserve.adopt.source_code import Source, Sources

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Module -> what pip calls it, where the names differ."""
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def missing_modules(sources: Iterable[Source], own: Sources) -> list[str]:
    """Return the modules that the sources import and that are neither theirs nor installed."""
    names = {
        name.partition(".")[0]
        for source in sources
        for name in source.imports()
        if not own.holds(name)
    }
    return sorted(name for name in names if not _is_there(name))


def _is_there(module: str) -> bool:
    if module in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing_requirements(file: Path) -> list[str]:
    """Return the lines of a requirements.txt whose package is not installed."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.partition("#")[0].strip()
        name = _NAME.match(text)
        if name is None or text.startswith("-"):
            continue
        try:
            importlib.metadata.distribution(name[1])
        except importlib.metadata.PackageNotFoundError:
            lines.append(text)
    return lines
