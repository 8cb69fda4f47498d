"""Where traffic goes: the one place that tells the gateway, under one lock."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from vlserve.control.domain import Held, Instance, Key, Routing
from vlserve.control.gateway.routing import desired_routing, known_instances
from vlserve.control.ports import Engine, Gateway
from vlserve.control.store.ledger import Ledger
from vlserve.errors import EngineUnavailable, GatewayRefused


class Traffic:
    """The gateway's routing follows the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger, engine: Engine, gateway: Gateway) -> None:
        self._ledger = ledger
        self._engine = engine
        self._gateway = gateway
        self._lock = threading.RLock()
        self._known: Mapping[str, Instance] = {}
        self._held: Held = {}
        self._asked, self._answered = 0, 0
        self._in_force: Routing | None = None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Changes that the body makes to the ledger come into force at the gateway before they are
        kept: if the gateway refuses, the ledger stays as it was. GatewayRefused, or
        EngineUnavailable while no instance has been seen yet."""
        with self._lock, self._ledger.transaction():
            yield
            if not self._known:
                self.observe()
            self._apply(self._wanted())

    @contextmanager
    def move(self, model: str, weights: Mapping[int, int]) -> Iterator[None]:
        """A `change` that takes a model's traffic to ``weights``. The ledger notes beforehand that
        the gateway is about to be told so, and takes that back if it comes to nothing."""
        with self._lock:
            self._ledger.intend(model, weights)
            try:
                with self.change():
                    yield
                    self._ledger.intend(model, None)
            except BaseException:
                self._ledger.intend(model, None)
                raise

    def settle(self) -> None:
        """Once the gateway follows the ledger again: note which moves a crash had cut short."""
        with self._lock:
            for record in self._ledger.models():
                if record.intended is not None and self.is_as_wanted():
                    self._ledger.undo(record.model, record.intended)

    def apply(self, routing: Routing) -> None:
        """Put ``routing`` in force, unless the ledger has moved on since it was planned."""
        with self._lock:
            if routing == self._wanted():
                self._apply(routing)

    def is_as_wanted(self) -> bool:
        """Whether the gateway serves what the ledger wants, to the instances as they are known."""
        return self._gateway.ready() and self._in_force == self._wanted()

    def observe(self) -> Held:
        """Ask the engine what it holds. EngineUnavailable when no instance answers; what was known
        of the instances stays in force then."""
        with self._lock:
            self._asked += 1
            turn = self._asked
        # The ledger is read first: what it calls routable was loaded before the engine is asked.
        routable = {record.key for record in self._ledger.versions() if record.state.routable}
        try:
            instances, held = self._engine.instances(), self._engine.loaded()
        except EngineUnavailable:
            with self._lock:
                if turn > self._answered:
                    self._answered, self._held = turn, {}
            raise
        with self._lock:
            if turn > self._answered:  # nobody who asked later has had an answer already
                self._answered = turn
                self._known = known_instances(self._known, instances, held, routable)
                self._held = held
        return held

    @property
    def held(self) -> Held:
        """What the engine held when it was last asked; empty when it did not answer."""
        return self._held

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every instance that was ever seen, as the gateway is to reach it."""
        return tuple(self._known.values())

    def in_flight(self, keys: Iterable[Key]) -> dict[Key, int]:
        """Requests under way of each version; one that the gateway says nothing of is left out."""
        counted = {}
        for key in keys:
            with suppress(GatewayRefused):
                counted[key] = self._gateway.in_flight(*key)
        return counted

    def _wanted(self) -> Routing:
        return desired_routing(self._ledger.models(), self._ledger.versions(), self._known.values())

    def _apply(self, routing: Routing) -> None:
        self._gateway.apply(routing)
        self._in_force = routing
