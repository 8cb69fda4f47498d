"""The protocols of what the control plane drives: an engine and a gateway."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    Reply,
    Routing,
)
from vlserve.control.tuning import Serving


class Gateway(Protocol):
    """Routes requests to versions. vlserve.control.gateway.envoy implements it."""

    def apply(self, routing: Routing) -> None:
        """Put ``routing`` in force; the call returns once it is.

        Applying what is in force already costs nothing.

        Raises:
            GatewayRefused: with the gateway's own words; the old routing stays in force.
            GatewaySilent: the gateway does not say in time that it took it; likewise.
        """
        ...

    def in_flight(self, model: str, version: int) -> int:
        """Return how many requests of this version were sent and are not answered yet.

        Raises:
            GatewayRefused: the gateway does not say.
        """
        ...

    def ready(self) -> bool:
        """Return whether the gateway runs and serves the routing that was last applied."""
        ...

    def rotate_access_log(self) -> None:
        """Begin a new access log if the present one is large. Every tick calls it."""
        ...

    def start(self) -> str | None:
        """Return what tells this start of the gateway from any other, whatever the system's clock
        does; None while it does not answer."""
        ...

    def answers_clients(self) -> Reply:
        """Ask for the gateway's health as a client does, over a new connection. NONE_IN_TIME: and
        the gateway says nothing to its owner either."""
        ...

    def why_unanswered(self) -> str:
        """Return why the last question of `answers_clients` was not answered."""
        ...


class Engine(Protocol):
    """Runs versions. vlserve.control.engine.group implements it.

    Methods raise EngineUnavailable when no instance answers. With several instances, each method
    speaks for all of them.
    """

    def kinds(self) -> Mapping[str, EngineKind]:
        """Return instance name -> its kind, for every instance of the stack, whether it answers or
        not. It stays the same."""
        ...

    def instances(self) -> Sequence[Instance]:
        """Return the instances that answer now, with their current tokens."""
        ...

    def loaded(self) -> Mapping[str, Mapping[Key, LoadedVersion]]:
        """Return what each instance holds: instance name -> (model, version) -> its workers."""
        ...

    def load(
        self,
        model: str,
        version: int,
        archive: Path,
        serving: Serving | None = None,
        engine: EngineKind | None = None,
    ) -> None:
        """Load a version on every instance that lacks it, and wait for its workers.

        Args:
            serving: workers, threads and batches; None: as the engine's settings say.
            engine: the kind of instance that gets it; None: every instance does.

        Raises:
            LoadFailed: says why; nothing of the version is left in the engine.
            EngineUnavailable: no instance of this kind answers.
        """
        ...

    def unload(self, model: str, version: int, engine: EngineKind | None = None) -> None:
        """Remove a version from every instance, or from those of one kind. No request may be in
        flight; an absent version is no error."""
        ...

    def mend(self) -> None:
        """Begin to replace the workers that died, where an engine does not do so by itself; those
        that `loaded` missed when it was last asked. Every tick calls it."""
        ...

    def listens(self, name: str, timeout_s: float) -> Reply:
        """Ask the instance of this name for its models; any word is an answer."""
        ...

    def predicts(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> Reply:
        """Ask one instance for a prediction; any word is an answer, an error too."""
        ...

    def predict(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        *,
        just_loaded: bool = False,
    ) -> Mapping[str, Any]:
        """Return the answer to one JSON request on the version's own path of one instance.
        ``just_loaded``: it may be the first, which takes longest."""
        ...

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        """Send a client's request to one version on one instance, and return what it said, an error
        too."""
        ...
