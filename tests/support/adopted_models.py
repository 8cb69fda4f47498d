"""Archives of legacy_exchanges.py on a stack: adopted, registered and released when they are first
asked for, because each takes seconds."""

from pathlib import Path
from typing import Any

import httpx

from support.legacy_exchanges import ENVELOPES, PROBES, Call, legacy_archives
from vlserve.adopt.adoption import Adoption, Wishes, adopt
from vlserve.testing import RunningStack

PREFIX = "moved"
"""Before the former name, in the new name of each model."""


class Adoptions:
    """Archives of ours that hold those of legacy_exchanges.py: adopted once, for every engine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives = legacy_archives(folder)
        self._adopted: dict[str, Adoption] = {}

    def __getitem__(self, former: str) -> Adoption:
        """Return the archive of this former name, as its clients know it."""
        if former not in self._adopted:
            archive, envelope = self._archives[former], ENVELOPES.get(former)
            self._adopted[former] = self.adopt(former, archive, envelope=envelope)
        return self._adopted[former]

    def adopt(self, former: str, archive: Path, **wishes: Any) -> Adoption:
        """Adopt another archive. ``wishes``: of `Wishes`."""
        requests = self._folder / f"{former}.json"
        requests.write_text(PROBES.get(former, '{"a": 1}'), encoding="utf-8")
        own = {"name": f"{PREFIX}-{former.lower()}", "requests": requests, **wishes}
        return adopt(archive, self._folder, Wishes(**own))


class AdoptedModels:
    """What a stack serves of them."""

    def __init__(self, stack: RunningStack, adoptions: Adoptions) -> None:
        self._stack = stack
        self._adoptions = adoptions
        self._served: dict[str, Adoption] = {}

    def __getitem__(self, former: str) -> Adoption:
        """Return the archive of this former name, as its clients know it, served."""
        if former not in self._served:
            self._serve(former, self._adoptions[former])
        return self._served[former]

    def ask(self, call: Call) -> httpx.Response:
        """Send a call to its model, by the name that it has here."""
        path = f"/predictions/{self[call.model].model}{call.tail}"
        return self._stack.http.post(path, content=call.body, headers=call.all_headers)

    def post(self, model: str, body: bytes, content_type: str = "text/plain") -> httpx.Response:
        """Send a body to a model."""
        return self._stack.http.post(
            f"/predictions/{model}", content=body, headers={"content-type": content_type}
        )

    def add(self, former: str, archive: Path, **wishes: Any) -> Adoption:
        """Serve another archive. ``wishes``: of `Wishes`."""
        return self._serve(former, self._adoptions.adopt(former, archive, **wishes))

    def _serve(self, former: str, adoption: Adoption) -> Adoption:
        self._stack.control.register(adoption.archive)
        self._stack.control.release(adoption.model, adoption.version)
        self._served[former] = adoption
        return adoption
