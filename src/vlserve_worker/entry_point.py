"""What an archive answers with, where a program of ours runs it: its triton_model.py.

TorchServe itself starts torchserve_handler.py, which does the same.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

ENTRY_POINT = "triton_model"
"""The module in an archive."""


def entry_point(archive: Path) -> Any:
    """Return the class TritonModel of an unpacked archive, whose folder stands first on
    ``sys.path``; that which is installed, for an archive that was packed without one. Imports the
    archive's runtime."""
    own = (archive / f"{ENTRY_POINT}.py").is_file()
    return import_module(ENTRY_POINT if own else "vlserve_worker.earlier_archives").TritonModel
