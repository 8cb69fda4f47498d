"""One worker: TorchServe's own program, which is told five things better.

torch is imported at its first use. TorchServe imports it whatever the graph is; that is most of
what a worker costs to start (1.4 s of CPU, which a register takes away from the versions that
serve) and to keep (120 MB). Here it is imported when a TorchScript graph is opened, or never.

Bodies are read here (bodies.py). The gateway lets TorchServe take them for plain bytes, because its
own parser is most of what it does for a request: ten times what it takes here.

A request that kills its worker is found and refused here (crash_notes.py).

Threads are the version's own. TorchServe gives the workers of all versions one environment.

How it ends is said in a file and on stderr (last_words.py), which names the cause where a version
does not load.
"""

import json
import os
import runpy
import sys
from collections.abc import MutableMapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType

from vlserve_worker.last_words import FOLDER, last_words, tell_failed_loads
from vlserve_worker.service import install_filter, open_filter
from vlserve_worker.v2.batch import served_by


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


def served_version(folder: Path) -> tuple[str, int]:
    """Return model and version of the unpacked archive in ``folder``."""
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    return manifest["model"]["modelName"], int(manifest["model"]["modelVersion"])


def take_threads(model: str, version: int, environment: MutableMapping[str, str]) -> None:
    """Put the number that the control service wrote for this version into the instance's folder
    into ``environment``."""
    if "ENGINE_DIR" not in environment:
        return
    file = Path(environment["ENGINE_DIR"]) / "threads" / f"{model}-{version}"
    if file.is_file():
        threads = file.read_text(encoding="utf-8").strip()
        environment.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)


if __name__ == "__main__":
    served = served_version(Path.cwd())  # TorchServe starts a worker in its model's folder
    take_threads(*served, os.environ)
    sys.meta_path.insert(0, TorchAtFirstUse)
    from ts.model_loader import TsModelLoader
    from ts.service import Service

    engine_dir, lone_threads = os.environ.get("ENGINE_DIR"), os.environ.get("LONE_THREADS", "1")
    requests = open_filter(*served, engine_dir, Path.cwd(), int(lone_threads))
    install_filter(Service, requests, served_by(Path.cwd()))
    if engine_dir is not None:
        tell_failed_loads(TsModelLoader, Path(engine_dir, FOLDER, "-".join(map(str, served))))
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as for any program that Python is given
    with last_words():
        runpy.run_path(sys.argv[0], run_name="__main__")
