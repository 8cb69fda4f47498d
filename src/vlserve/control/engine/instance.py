"""What each kind of engine instance does for the group: the port's words, for one process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    Reply,
)
from vlserve.control.tuning import Serving
from vlserve.settings_sections import EngineSettings

MANAGEMENT_TIMEOUT_S = 10.0


class EngineInstance(Protocol):
    """One engine process. Methods are thread-safe, and raise EngineUnavailable when it does not
    answer, unless they say otherwise."""

    name: str
    kind: EngineKind

    def confirm(self) -> None:
        """Return if it answers, and takes the tokens."""
        ...

    def instance(self) -> Instance:
        """Return how the gateway reaches it now."""
        ...

    def listens(self, timeout_s: float) -> Reply:
        """Ask for its models; any word is an answer. Raises nothing."""
        ...

    def loaded(self) -> Mapping[Key, LoadedVersion]:
        """Return the versions that it holds, with their workers."""
        ...

    def serves(self, model: str, version: int) -> bool:
        """Return whether a worker of this version is ready."""
        ...

    def load(self, model: str, version: int, archive: Path, serving: Serving | None) -> None:
        """Load a version, or wait for workers that come up already, as after a crash of this
        service. LoadFailed says why it did not come up."""
        ...

    def remove(self, model: str, version: int) -> None:
        """Take the version out, whatever state it is in, with all that was written of it."""
        ...

    def mend(self) -> None:
        """Begin to replace the workers that `loaded` missed. Raises nothing."""
        ...

    def close(self) -> None:
        """Wait for what was begun."""
        ...

    def ask(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> EngineAnswer:
        """Ask one version for a prediction. httpx.TransportError when no answer comes."""
        ...

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        """Send one version a request as the gateway does; raises as `ask`."""
        ...


def reply_of(error: httpx.TransportError) -> Reply:
    """Return what a question came to that ended with ``error``."""
    silent = isinstance(error, httpx.TimeoutException)
    return Reply.NONE_IN_TIME if silent else Reply.GONE


def json_of(response: httpx.Response) -> Any:
    """Return the JSON of an answer; None where it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def not_up_in_time(settings: EngineSettings) -> str:
    """Return why a load failed whose workers did not come up."""
    return (
        f"its {settings.workers} workers (engine.workers) were not up after "
        f"{settings.load_timeout_s:g} s (engine.load_timeout_s): fewer workers or more time help "
        "where processors or memory are short"
    )
