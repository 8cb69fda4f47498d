"""Which test files share a process of pytest-xdist. Imported only where the plugin is loaded."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

from support.file_order import shared


class Together(LoadFileScheduling):  # type: ignore[misc]
    """Tests of one file run in one process, and so do files that share what takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(self.config.rootpath, nodeid.partition("::")[0])


@cache
def _scope(folder: Path, file: str) -> str:
    return shared(folder / file) or file
