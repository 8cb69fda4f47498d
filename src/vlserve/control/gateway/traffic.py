"""Where every weight change is made: the ledger and the gateway change together, under one lock."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from vlserve.control.domain import Held, Instance, Key, ModelRecord, Routing
from vlserve.control.gateway.routing import desired_routing, full_weight, known_instances
from vlserve.control.placement import Placement
from vlserve.control.ports import Engine, Gateway
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.reserve import Reserve
from vlserve.control.store.unrecorded import ChangeBack, Unrecorded
from vlserve.errors import (
    ControlError,
    EngineUnavailable,
    GatewayRefused,
    GatewaySilent,
    GatewayUnwritable,
    LedgerDamaged,
    LedgerFull,
    LedgerUnwritable,
    NotReady,
)


class Traffic:
    """Keeps the gateway's routing as the ledger wants it. Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        gateway: Gateway,
        unrecorded: Unrecorded,
        reserves: Sequence[Reserve],
    ) -> None:
        """``reserves``: what a change back may use where a disk is full."""
        self._ledger = ledger
        self._engine = engine
        self._gateway = gateway
        self._reserves = reserves
        self.unrecorded = unrecorded
        self.placement = Placement(engine.kinds())
        self._lock = threading.RLock()
        self._known: Mapping[str, Instance] = {}
        self._held: Held = {}
        self._asked, self._answered = 0, 0
        self._in_force: Routing | None = None
        self._waiting: dict[str, ChangeBack] = {}
        """Model -> a change back that the gateway is to get as soon as it answers."""

    @contextmanager
    def change_routing(self) -> Iterator[None]:
        """Put the ledger changes of the ``with`` body in force at the gateway, then keep them.

        If the gateway refuses, the ledger stays as it was.

        Raises:
            GatewayRefused: the gateway did not take the routing.
            EngineUnavailable: no engine instance has been seen yet.
        """
        with self._lock:
            before = self._in_force
            try:
                with self._ledger.transaction():
                    yield
                    if not self._known:
                        self.observe()
                    self._apply(self._wanted())
            except BaseException:
                if self._in_force != before:  # the gateway took what the ledger could not keep
                    with suppress(ControlError):
                        self._apply(self._wanted())
                raise

    @contextmanager
    def change_weights(self, model: str, weights: Mapping[int, int]) -> Iterator[None]:
        """Take a model's traffic to ``weights``, which the ``with`` body writes into the ledger.

        As `change_routing`. Beforehand the ledger notes which weights the gateway is about to get,
        so that a crash in between is known afterwards; the note goes if the change fails.

        Raises:
            LedgerUnwritable: the ledger does not take the note, or does not know yet of a change
                back of this model.
        """
        with self._lock:
            self._refuse_unrecorded(model)
            self._ledger.intend(model, weights)
            try:
                with self.change_routing():
                    yield
                    self._ledger.intend(model, None)
            except BaseException:
                with suppress(LedgerUnwritable, LedgerDamaged):  # a tick takes it away
                    self._ledger.intend(model, None)
                raise

    def go_back(self, change: ChangeBack) -> str:
        """Put a change back in force; return why the ledger does not know it yet, or nothing.

        Where a disk is full, the space is used that was set aside. Where the ledger takes no change
        for all that, the gateway is changed first, and the ledger is told at a later tick.

        Raises:
            NotReady: traffic moved meanwhile.
            GatewayRefused: the gateway did not take the routing.
            GatewaySilent: it does not answer. The change is kept, and a tick puts it in force.
        """
        with self._lock:
            try:
                return self._go_back_now(change)
            except GatewaySilent as error:
                self._keep_waiting(change)
                raise _comes(change, error) from error

    def go_on_back(self, model: str) -> ChangeBack | None:
        """Put a change back in force that waits for the gateway, and return it; None where none
        does. GatewaySilent, as before."""
        with self._lock:
            change = self._waiting.get(model)
            if change is None:
                return None
            try:
                self._apply(self._wanted())
            except GatewaySilent as error:
                raise _comes(change, error) from error
            return change

    def _keep_waiting(self, change: ChangeBack) -> None:
        """Note a change that the gateway does not take now. Every tick applies what is wanted."""
        if self.unrecorded.last_of(change.model) is not change:
            try:
                with self._ledger.transaction():
                    if not self.unrecorded.is_due(change):
                        raise traffic_moved(change.model)
                    self.unrecorded.record(change)
            except (LedgerUnwritable, LedgerDamaged) as error:
                self.unrecorded.add(change, str(error))
        self._waiting[change.model] = change

    def _go_back_now(self, change: ChangeBack) -> str:
        try:
            self._go_back(change)
        except (LedgerFull, GatewayUnwritable):
            self._give_up_reserves()
        except (LedgerUnwritable, LedgerDamaged) as error:
            return self._go_back_unrecorded(change, error)
        else:
            return ""
        try:
            self._go_back(change)
        except (LedgerUnwritable, LedgerDamaged) as error:
            return self._go_back_unrecorded(change, error)
        return ""

    def _go_back(self, change: ChangeBack) -> None:
        with self.change_weights(change.model, full_weight(change.version)):
            if not self.unrecorded.is_due(change):
                raise traffic_moved(change.model)
            self.unrecorded.record(change)

    def _go_back_unrecorded(self, change: ChangeBack, error: ControlError) -> str:
        in_force = self.model(change.model)
        if change.ends is None and in_force.stable != change.previous:
            raise traffic_moved(change.model)
        self.unrecorded.add(change, str(error))
        try:
            try:
                self._apply(self._wanted())
            except GatewayUnwritable:
                self._give_up_reserves()
                self._apply(self._wanted())
        except GatewaySilent:
            raise
        except BaseException:
            self.unrecorded.drop_last(change.model)
            raise
        return str(error)

    def _give_up_reserves(self) -> None:
        for reserve in self._reserves:
            with suppress(OSError):  # one on a read-only disk: the others may be enough
                reserve.give_up()

    def _refuse_unrecorded(self, model: str) -> None:
        self.unrecorded.tell()
        change = self.unrecorded.last_of(model)
        if change is not None:
            raise LedgerUnwritable(
                f"{model} went back to {change.version}, and the ledger does not know it yet: "
                "no other change until it does; `vlserve status` says why"
            )

    def keep_ready(self) -> None:
        """Set aside what a change back may need, and tell the ledger what it does not know. Every
        tick calls it."""
        with self._lock:
            self.unrecorded.tell()
            self.unrecorded.set_aside()
            for reserve in self._reserves:
                reserve.keep()
            with suppress(ControlError):  # health says it; changes are refused from then on
                self._ledger.database.check()

    def model(self, model: str) -> ModelRecord:
        """Return one model as the gateway is to have it. ModelNotFound."""
        return self.unrecorded.in_force(self._ledger.model(model))

    def models(self) -> list[ModelRecord]:
        """Return every model as the gateway is to have it."""
        return [self.unrecorded.in_force(record) for record in self._ledger.models()]

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
        versions = [record for record in self._ledger.versions() if record.state.routable]
        try:
            instances, holdings = self._engine.instances(), self._engine.loaded()
        except EngineUnavailable:
            with self._lock:
                if turn > self._answered:
                    self._answered, self._held = turn, {}
            raise
        with self._lock:
            if turn > self._answered:  # no later question has been answered already
                self._answered = turn
                self._known = known_instances(
                    self._known, instances, holdings, versions, self.placement
                )
                self._held = holdings
        return holdings

    @property
    def held(self) -> Held:
        """What the engine held when it last answered; empty when it did not answer last time."""
        return self._held

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every instance that was ever seen, with what it lacks of what it is to hold."""
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
        versions, instances = self._ledger.versions(), self._known.values()
        return desired_routing(self.models(), versions, instances, self.placement)

    def _apply(self, routing: Routing) -> None:
        self._gateway.apply(routing)
        self._in_force = routing
        self._waiting.clear()


def _comes(change: ChangeBack, error: GatewaySilent) -> GatewaySilent:
    return GatewaySilent(
        f"{change.model} goes back to {change.version} as soon as the gateway answers: it is "
        "noted, and nothing is to be repeated; `vlserve status` shows when the gateway serves it "
        f"({error})"
    )


def traffic_moved(model: str) -> NotReady:
    """Return what is said to who asked for a change back that another one was before."""
    return NotReady(
        f"traffic of {model} moved meanwhile: look at `vlserve history {model}`, and go back again "
        "if it is to be"
    )
