"""The reconcile loop: compare the ledger with the engine and the gateway, and mend what differs."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from vlserve.control.domain import Key, State
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.ports import Engine, Gateway
from vlserve.control.reconcile import plan as planning
from vlserve.control.reconcile.plan import Action, Load, Remove, Restore, Retire, Route
from vlserve.control.store.ledger import Ledger
from vlserve.control.trouble_log import TroubleLog
from vlserve.errors import EngineUnavailable, LedgerUnwritable, LoadFailed, VlserveError

_AT_ONCE = 2  # a load that hangs must not keep the other models waiting

logger = logging.getLogger(__name__)


class Reconciler:
    """One thread ticks; loads and unloads run beside it, so that a slow one delays no other."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        gateway: Gateway,
        traffic: Traffic,
        lifecycle: Lifecycle,
        operations: Operations,
        backoff: Backoff,
        tick_s: float,
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._gateway = gateway
        self._traffic = traffic
        self._lifecycle = lifecycle
        self._operations = operations
        self._tick_s = tick_s
        self._backoff = backoff
        self._submitted: set[Key] = set()
        self._log = TroubleLog(logger)
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reconcile")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking, and wait for the actions that were started."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def tick(self) -> list[Action]:
        """Compare once, start the actions that mend the difference, and return them."""
        self._traffic.keep_ready()
        engine = self._observe_engine()
        versions = self._ledger.versions()
        ledger = planning.LedgerView(
            models=self._traffic.models(),
            versions=versions,
            running=self._operations.running() | frozenset(self._submitted),
            waiting=self._backoff.waiting({each.key: each.archive for each in versions}),
        )
        departures = {each.key for each in ledger.versions if each.state is State.DRAINING}
        if engine:
            departures |= planning.unwanted(ledger.versions, engine.held)
        gateway = planning.GatewayView(self._traffic.instances, self._traffic.in_flight(departures))
        actions = planning.plan(ledger, engine, gateway, self._traffic.placement)
        for action in actions:
            self._start(action)
        return actions

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except VlserveError as error:
                self._log.note("tick", str(error))
            except Exception:
                logger.exception("tick failed")
            else:
                self._log.note("tick", "")
            self._rotate_access_log()
            self._wake.wait(self._tick_s)
            self._wake.clear()

    def _rotate_access_log(self) -> None:
        try:
            self._gateway.rotate_access_log()
        except OSError as error:
            self._log.note("access log", str(error))
        else:
            self._log.note("access log", "")

    def _observe_engine(self) -> planning.EngineView | None:
        try:
            holdings = self._traffic.observe()
        except EngineUnavailable as error:
            self._log.note("engine", str(error))
            return None
        self._log.note("engine", "")
        self._engine.mend()
        return planning.EngineView(holdings)

    def _start(self, action: Action) -> None:
        if isinstance(action, Route):
            self._route(action)
            return
        key = _key(action)
        self._submitted.add(key)
        self._pool.submit(self._run_on_version, key, action)

    def _route(self, action: Route) -> None:
        try:
            self._traffic.apply(action.routing)
            self._traffic.settle()
        except VlserveError as error:
            self._log.note("gateway", str(error))
        else:
            self._log.note("gateway", "")

    def _run_on_version(self, key: Key, action: Action) -> None:
        try:
            with self._operations.on(key):
                if self._is_still_due(key, action):
                    self._do(action)
                    logger.info("%s %s %s done", type(action).__name__, *key)
            self._backoff.succeeded(key)
        except Exception as error:
            self._report(key, action, error)
        finally:
            self._submitted.discard(key)
            self._wake.set()

    def _is_still_due(self, key: Key, action: Action) -> bool:
        """Return whether the action is still to be done: a user may have changed the version since
        the plan was made."""
        record = self._ledger.find(*key)
        if isinstance(action, Load | Restore | Retire):
            return record == action.record
        if record is not None and isinstance(action, Remove) and action.engine is not None:
            return self._traffic.placement.engine_of(record) != action.engine
        return record is None or record.state.out

    def _do(self, action: Action) -> None:
        match action:
            case Load(record):
                self._lifecycle.load(record)
            case Restore(record):
                self._lifecycle.restore(record)
            case Retire(record):
                self._lifecycle.finish_draining(record, timeout_s=0.0)
            case Remove(model, version, engine):
                self._engine.unload(model, version, engine)

    def _report(self, key: Key, action: Action, error: Exception) -> None:
        """Record a failed action as an event where it is news, and log it always."""
        verb = type(action).__name__.lower()
        if isinstance(error, VlserveError):
            logger.warning("%s %s %s: %s", verb, *key, error)
        else:
            logger.exception("%s %s %s", verb, *key, exc_info=error)
        archive = None if isinstance(action, Route | Remove) else action.record.archive
        news = self._backoff.failed(key, error, archive)
        recorded = isinstance(action, Load) and isinstance(error, LoadFailed)  # by the load itself
        if news and not recorded:
            with suppress(LedgerUnwritable):
                if self._ledger.find(*key) is not None:
                    self._ledger.record(*key, f"{verb}_failed", reason=str(error))


def _key(action: Load | Restore | Retire | Remove) -> Key:
    return (action.model, action.version) if isinstance(action, Remove) else action.record.key
