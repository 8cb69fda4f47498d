"""An unpacked archive's own code, in whichever server: (what is shown, text) in, JSON bodies out.

Imports nothing beside the standard library and the archive, so that every server's environment can
load it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH_SIZE = 8
DELAY_S = 0.001
"""How long a batch waits to be filled."""


class Answering:
    """One warm pipeline of one thread. ``folder``: the unpacked archive, whose frozen runtime comes
    before any other copy of it."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        from vlserve.runtime.folder import open_folder

        self._pipeline = open_folder(folder, threads=1, frozen=True)
        self._pipeline.warm_up(BATCH_SIZE)
        self.manifest = self._pipeline.manifest
        self._shown = "image" if self.manifest.image is not None else "features"

    def __call__(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """Files and UTF-8 texts -> the answers' JSON. RuntimeError when one has none."""
        from vlserve.runtime.body import read_request, write_body
        from vlserve.runtime.types import ItemError

        forms: list[dict[str, Any]] = [{self._shown: file, "text": text} for file, text in items]
        result = self._pipeline.run([read_request(form, "bench") for form in forms])
        for answer in result.answers:
            if isinstance(answer, ItemError):
                raise RuntimeError(f"{answer.code}: {answer.message}")
        return [write_body(self.manifest, "bench", text) for text in result.texts]
