"""An unpacked archive, opened as a Pipeline by whichever engine serves it."""

from pathlib import Path

import vlserve.runtime
from vlserve.runtime.archive import check_folder
from vlserve.runtime.backend import open_backend
from vlserve.runtime.errors import ArchiveTampered
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import load_task


def open_folder(folder: Path, threads: int = 1, *, frozen: bool = False) -> Pipeline:
    """Check every file of an unpacked archive again and load its graphs and task.

    ``frozen`` asserts that the code running now is the archive's own copy. Raises ArchiveError.
    """
    folder = folder.resolve()
    if frozen:
        _assert_own_runtime(folder)
    manifest = check_folder(folder)
    task = load_task(folder / "handlers" / f"{manifest.task}.py")
    backends = {
        name: open_backend(graph, folder, threads) for name, graph in manifest.graphs.items()
    }
    return Pipeline(manifest, task(manifest, folder, backends))


def _assert_own_runtime(folder: Path) -> None:
    runtime = Path(vlserve.runtime.__file__).resolve().parent
    if runtime != folder / "vlserve" / "runtime":
        raise ArchiveTampered(
            f"vlserve.runtime was imported from {runtime}, not from the archive in {folder}: "
            "put the folder first on the path and leave PYTHONPATH unset in serving processes"
        )
