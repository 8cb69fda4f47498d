"""One worker: TorchServe's own program, with torch imported at its first use.

TorchServe imports torch whatever the graph is. That is most of what a worker costs to start (1.4 s
of CPU, which a register takes away from the versions that serve) and to keep (120 MB). Here it is
imported when a TorchScript graph is opened, or never.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType


class TorchAtFirstUse(PathFinder):
    """Finds torch, and leaves its import to whoever first asks it for something."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target) if fullname == "torch" else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, TorchAtFirstUse)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as for any program that Python is given
    runpy.run_path(sys.argv[0], run_name="__main__")
