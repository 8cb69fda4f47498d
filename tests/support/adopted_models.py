"""Archives of legacy_exchanges.py on a stack: adopted, registered and released when they are first
asked for, because each takes seconds."""

from pathlib import Path
from typing import Any

import httpx

from support.legacy_exchanges import ENVELOPES, PROBES, Call, legacy_archives
from vlserve.adopt.adoption import Adoption, Wishes, adopt
from vlserve.testing import RunningStack


class AdoptedModels:
    """The models of one test file, whose names begin with ``prefix``."""

    def __init__(self, stack: RunningStack, folder: Path, prefix: str) -> None:
        self._stack = stack
        self._folder = folder
        self._prefix = prefix
        self._archives = legacy_archives(folder)
        self._adopted: dict[str, Adoption] = {}

    def __getitem__(self, former: str) -> Adoption:
        """Return the archive of this former name, as its clients know it, served."""
        if former not in self._adopted:
            archive, envelope = self._archives[former], ENVELOPES.get(former)
            self._adopted[former] = self.add(former, archive, envelope=envelope)
        return self._adopted[former]

    def ask(self, call: Call) -> httpx.Response:
        """Send a call to its model, by the name that it has here."""
        path = f"/predictions/{self[call.model].model}{call.tail}"
        return self._stack.http.post(path, content=call.body, headers=call.all_headers)

    def post(self, model: str, body: bytes, content_type: str = "text/plain") -> httpx.Response:
        """Send a body to a model."""
        return self._stack.http.post(
            f"/predictions/{model}", content=body, headers={"content-type": content_type}
        )

    def add(self, former: str, archive: Path, probe: str | None = None, **wishes: Any) -> Adoption:
        """Serve another archive. ``probe``: the body of its probe. ``wishes``: of `Wishes`."""
        requests = self._folder / f"{former}.json"
        requests.write_text(probe or PROBES.get(former, '{"a": 1}'), encoding="utf-8")
        own = {"name": f"{self._prefix}-{former.lower()}", "requests": requests, **wishes}
        adoption = adopt(archive, self._folder, Wishes(**own))
        self._stack.control.register(adoption.archive)
        self._stack.control.release(adoption.model, adoption.version)
        return adoption
