"""Where every weight change is made: the ledger and the gateway change together, under one lock."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from vlserve.control.domain import Held, Instance, Key, Routing
from vlserve.control.gateway.routing import desired_routing, known_instances
from vlserve.control.ports import Engine, Gateway
from vlserve.control.store.ledger import Ledger
from vlserve.errors import EngineUnavailable, GatewayRefused


class Traffic:
    """Keeps the gateway's routing as the ledger wants it. Thread-safe."""

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
    def change_routing(self) -> Iterator[None]:
        """Put the ledger changes of the ``with`` body in force at the gateway, then keep them.

        If the gateway refuses, the ledger stays as it was.

        Raises:
            GatewayRefused: the gateway did not take the routing.
            EngineUnavailable: no engine instance has been seen yet.
        """
        with self._lock, self._ledger.transaction():
            yield
            if not self._known:
                self.observe()
            self._apply(self._wanted())

    @contextmanager
    def change_weights(self, model: str, weights: Mapping[int, int]) -> Iterator[None]:
        """Take a model's traffic to ``weights``, which the ``with`` body writes into the ledger.

        As `change_routing`. Beforehand the ledger notes which weights the gateway is about to get,
        so that a crash in between is known afterwards; the note goes if the change fails.
        """
        with self._lock:
            self._ledger.intend(model, weights)
            try:
                with self.change_routing():
                    yield
                    self._ledger.intend(model, None)
            except BaseException:
                self._ledger.intend(model, None)
                raise

    def settle(self) -> None:
        """Record the weight changes that a crash cut short, once the gateway follows the ledger."""
        with self._lock:
            for record in self._ledger.models():
                if record.intended is not None and self.is_as_wanted():
                    self._ledger.undo(record.model, record.intended)

    def apply(self, routing: Routing) -> None:
        """Put ``routing`` in force, unless the ledger has changed since it was planned."""
        with self._lock:
            if routing == self._wanted():
                self._apply(routing)

    def is_as_wanted(self) -> bool:
        """Return whether the gateway serves what the ledger wants, to the known instances."""
        return self._gateway.ready() and self._in_force == self._wanted()

    def observe(self) -> Held:
        """Ask the engine which versions its instances hold.

        Raises:
            EngineUnavailable: no instance answers; what was known of the instances stays in force.
        """
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
            if turn > self._answered:  # no later question has been answered already
                self._answered = turn
                self._known = known_instances(self._known, instances, held, routable)
                self._held = held
        return held

    @property
    def held(self) -> Held:
        """What the engine held when it last answered; empty when it did not answer last time."""
        return self._held

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every instance that was ever seen, as the gateway is to reach it."""
        return tuple(self._known.values())

    def in_flight(self, keys: Iterable[Key]) -> dict[Key, int]:
        """Return the requests under way of each version, without those that the gateway does not
        tell."""
        counts = {}
        for key in keys:
            with suppress(GatewayRefused):
                counts[key] = self._gateway.in_flight(*key)
        return counts

    def _wanted(self) -> Routing:
        return desired_routing(self._ledger.models(), self._ledger.versions(), self._known.values())

    def _apply(self, routing: Routing) -> None:
        self._gateway.apply(routing)
        self._in_force = routing
