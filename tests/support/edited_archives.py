"""Archives whose entry points somebody edited."""

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from support.running_stack import PROJECT
from vlserve.exporter.pack import draft_of, pack_archive
from vlserve.runtime.archive import verify_archive

ENTRY_POINTS = ("torchserve_handler.py", "triton_model.py")
"""Of each engine its own."""


def with_edited_entry_points(
    archive: Path,
    folder: Path,
    before: str,
    line: str,
    entry_points: Sequence[str] = ENTRY_POINTS,
) -> Path:
    """Pack an archive anew with ``line`` in the entry points, before the statement that begins
    with ``before``."""
    handlers = folder / "handlers"
    shutil.copytree(PROJECT / "handlers", handlers, ignore=shutil.ignore_patterns("__pycache__"))
    for name in entry_points:
        code = (handlers / name).read_text(encoding="utf-8")
        new_code = re.sub(rf"^( *){re.escape(before)}", rf"\1{line}\n\g<0>", code, flags=re.M)
        assert new_code != code
        (handlers / name).write_text(new_code, encoding="utf-8")
    with zipfile.ZipFile(archive) as zip_file:
        content = {n: zip_file.read(n) for n in zip_file.namelist() if n.startswith(("gr", "as"))}
    return pack_archive(folder, draft_of(verify_archive(archive)), content, handlers)
