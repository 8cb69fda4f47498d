"""The reconcile loop: compare the ledger with the engine and the gateway, and mend what differs."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vlserve.control.domain import Key, State
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.ports import Engine, Gateway
from vlserve.control.reconcile import plan as planning
from vlserve.control.reconcile.plan import Action, Load, Remove, Restore, Retire, Route
from vlserve.control.store.ledger import Ledger
from vlserve.control.troubles import TroubleLog
from vlserve.errors import EngineUnavailable, LoadFailed, VlserveError

_MAX_BACKOFF_S = 60.0
_AT_ONCE = 2  # a load that hangs must not keep the other models waiting

logger = logging.getLogger(__name__)


class Backoff:
    """Knows when a failed action on a version is tried again: after 2, 4, 8, … 60 s. Thread-safe:
    the tick reads while the pool writes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures: dict[Key, tuple[int, float, str]] = {}
        self._unloadable: set[Key] = set()

    def failed(self, key: Key, reason: str, unloadable: bool = False) -> bool:
        """Note a failure; return whether it is the first, or has another reason than the last.

        Args:
            unloadable: the version itself is what failed, not the engine.
        """
        with self._lock:
            (self._unloadable.add if unloadable else self._unloadable.discard)(key)
            count, _, last = self._failures.get(key, (0, 0.0, None))
            delay_s = min(2.0 ** (count + 1), _MAX_BACKOFF_S)
            self._failures[key] = (count + 1, self._now() + delay_s, reason)
        return reason != last

    def succeeded(self, key: Key) -> None:
        with self._lock:
            self._failures.pop(key, None)
            self._unloadable.discard(key)

    def unloadable(self) -> frozenset[Key]:
        """Return the versions that could not be loaded at the last try."""
        with self._lock:
            return frozenset(self._unloadable)

    def waiting(self) -> frozenset[Key]:
        with self._lock:
            now = self._now()
            return frozenset(key for key, (_, due, _) in self._failures.items() if due > now)


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
        ledger = planning.LedgerView(
            models=self._traffic.models(),
            versions=self._ledger.versions(),
            running=self._operations.running() | frozenset(self._submitted),
            waiting=self._backoff.waiting(),
        )
        draining = {each.key for each in ledger.versions if each.state is State.DRAINING}
        leaving = draining | (planning.unwanted(ledger.versions, engine.held) if engine else set())
        gateway = planning.GatewayView(self._traffic.instances, self._traffic.in_flight(leaving))
        actions = planning.plan(ledger, engine, gateway)
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
            held = self._traffic.observe()
        except EngineUnavailable as error:
            self._log.note("engine", str(error))
            return None
        self._log.note("engine", "")
        return planning.EngineView(held)

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
        return record is None or record.state in (State.FAILED, State.RETIRED)

    def _do(self, action: Action) -> None:
        match action:
            case Load(record):
                self._lifecycle.load(record)
            case Restore(record):
                self._lifecycle.restore(record)
            case Retire(record):
                self._lifecycle.finish_draining(record, timeout_s=0.0)
            case Remove(model, version):
                self._engine.unload(model, version)

    def _report(self, key: Key, action: Action, error: Exception) -> None:
        """Record a failed action as an event where it is news, and log it always."""
        doing = type(action).__name__.lower()
        if isinstance(error, VlserveError):
            logger.warning("%s %s %s: %s", doing, *key, error)
        else:
            logger.exception("%s %s %s", doing, *key, exc_info=error)
        news = self._backoff.failed(key, str(error), isinstance(error, LoadFailed))
        recorded = isinstance(action, Load) and isinstance(error, LoadFailed)  # by the load itself
        if news and not recorded and self._ledger.find(*key) is not None:
            self._ledger.record(*key, f"{doing}_failed", reason=str(error))


def _key(action: Load | Restore | Retire | Remove) -> Key:
    return (action.model, action.version) if isinstance(action, Remove) else action.record.key
