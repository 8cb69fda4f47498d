"""One version, all traffic, no ledger: what `vlserve serve` keeps loaded and routed.

Like the reconcile loop, it compares what is wanted with the engine and the gateway once a tick, and
mends what differs. What is wanted never changes, so it is no ledger's but an argument.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vlserve.control import caller
from vlserve.control.domain import Held, Instance, ModelRecord, Routing, VersionRecord
from vlserve.control.gateway.routing import desired_routing, full_weight, known_instances
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.lifecycle.probes import first_answer, refuse_wrong_answers
from vlserve.control.lifecycle.warm_up import warm_up
from vlserve.control.log_rotation import rotate
from vlserve.control.placement import Placement
from vlserve.control.ports import Engine, Gateway
from vlserve.control.reconcile.liveness import pause_s
from vlserve.control.trouble_log import TroubleLog
from vlserve.errors import CallerGone, ControlError, EngineUnavailable, VlserveError

_ASK_S = 2.0
"""Between two predictions that readiness rests on."""
STARTING = "it is being loaded"
FIRST_LOAD_S = 60.0
"""How long an engine that dies of the first load is waited for."""

logger = logging.getLogger(__name__)


def routing_of(
    record: VersionRecord, instances: Iterable[Instance], placement: Placement, unready: str
) -> Routing:
    """Return the routing that gives one stable version all traffic of its model, on those of the
    instances that hold it. ``unready``: why the server is not to be called ready; empty: it is."""
    weights = full_weight(record.version)
    model = ModelRecord(record.model, weights, stack=(record.version,), salt="")
    routing = desired_routing([model], [record], instances, placement)
    return replace(routing, unready=unready)


class OneVersion:
    """Implements Versions and Instances of `vlserve.control.reconcile.liveness`. One thread ticks;
    a load and a prediction run beside it."""

    def __init__(
        self,
        record: VersionRecord,
        engine: Engine,
        gateway: Gateway,
        answers: Path,
        tick_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            record: a stable version.
            answers: the log that its handler writes, which is rotated as the gateway's.
        """
        self._record = record
        self._engine = engine
        self._gateway = gateway
        self._answers = answers
        self._tick_s = tick_s
        self._now = now
        self._placement = Placement(engine.kinds())
        self._backoff = Backoff()
        self._known: dict[str, Instance] = {}
        self._held: Held = {}
        self._wrong = STARTING
        self._leaving = ""
        self._ask_at = 0.0
        self._beside: dict[Callable[[], None], Future[None]] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="one-version")
        self._log = TroubleLog(logger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="one-version", daemon=True)

    @property
    def instances(self) -> Sequence[Instance]:
        """Return every instance that was ever seen, with whether it lacks the version."""
        return tuple(self._known.values())

    @property
    def held(self) -> Held:
        """Return what the engine held when it last answered; empty when it did not last time."""
        return self._held

    def versions(self) -> Sequence[VersionRecord]:
        return (self._record,)

    def begin(self) -> Future[None]:
        """Load the version, open its path, and warm it up: then it is ready. The future raises:

        Raises:
            LoadFailed: It does not come up, or answers wrong.
            CallerGone: `stop` was called meanwhile.
            EngineUnavailable: No instance answers, or each dies of the load.
        """
        return self._pool.submit(self._begin_to_serve)

    def start(self) -> None:
        """Tick until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking; a load under way is left to itself."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def leave(self, why: str) -> None:
        """Have readiness say no from now on, with the reason, while requests are answered still."""
        self._leaving = why
        self._route()

    def tick(self) -> None:
        """Compare once, and begin what mends the difference."""
        self._observe()
        self._route()
        if self._lacking() and not self._backoff.waiting():
            self._do_beside(self._load_again)
        if self._serving() and self._now() >= self._ask_at:
            self._do_beside(self._ask)

    def unready(self) -> str:
        """Return why the version cannot be said to answer right now; empty where it does."""
        if self._leaving:
            return self._leaving
        if not self._serving():
            return f"no engine instance has {self._record.model} loaded"
        return self._wrong

    def _begin_to_serve(self) -> None:
        self._observe()
        self._route()  # it is unavailable until it is loaded, and not unknown
        self._load_while_engine_starts()
        self._wrong = "it is being warmed up"
        self._observe()
        self._route()
        self._warm_up()
        self._wrong = ""
        self._route()

    def _load_while_engine_starts(self) -> None:
        deadline = self._now() + FIRST_LOAD_S
        while True:
            try:
                return self._load()
            except EngineUnavailable:
                if self._now() > deadline or self._stopping.wait(self._tick_s):
                    raise

    def _load(self) -> None:
        record = self._record
        with caller.working_for(self._stopping.is_set):
            self._engine.load(*record.key, record.archive, engine=record.engine)
            refuse_wrong_answers(self._engine, self._engine.instances(), record.manifest)

    def _warm_up(self) -> None:
        """Not by an adopted version, whose handler may do more than answer."""
        if not self._record.manifest.adopted:
            with suppress(ControlError):
                warm_up(self._engine, self._engine.instances(), self._record.manifest)

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            try:
                self.tick()
            except Exception:
                logger.exception("tick failed")
            self._rotate_logs()

    def _rotate_logs(self) -> None:
        try:
            self._gateway.rotate_access_log()
            rotate(self._answers)
        except OSError as error:
            self._log.note("logs", str(error))
        else:
            self._log.note("logs", "")

    def _observe(self) -> None:
        try:
            instances, holdings = self._engine.instances(), self._engine.loaded()
        except EngineUnavailable as error:
            self._held = {}
            self._log.note("engine", str(error))
            return
        self._log.note("engine", "")
        self._known = known_instances(
            self._known, instances, holdings, self.versions(), self._placement
        )
        self._held = holdings
        self._engine.mend()

    def _route(self) -> None:
        if not self._known:  # the first routing is in force
            return
        try:
            self._gateway.apply(
                routing_of(self._record, self.instances, self._placement, self.unready())
            )
        except VlserveError as error:
            self._log.note("gateway", str(error))
        else:
            self._log.note("gateway", "")
        self._log.note("readiness", self.unready())

    def _lacking(self) -> bool:
        key = self._record.key
        return any(
            key in each.lacks or not _has_workers(self._held, each.name, self._record)
            for each in self._known.values()
            if each.name in self._held
        )

    def _serving(self) -> list[Instance]:
        return [
            each
            for each in self._known.values()
            if self._record.key not in each.lacks
            and _has_workers(self._held, each.name, self._record)
        ]

    def _do_beside(self, work: Callable[[], None]) -> None:
        """Run ``work`` beside the tick, unless it runs still."""
        last = self._beside.get(work)
        if last is None or last.done():
            self._beside[work] = self._pool.submit(work)

    def _load_again(self) -> None:
        key = self._record.key
        try:
            self._load()
        except CallerGone:
            return
        except VlserveError as error:
            if self._backoff.failed(key, error):
                logger.warning("loading again: %s", error)
        except Exception:
            logger.exception("loading again")
        else:
            self._backoff.succeeded(key)
            logger.info("%s %s is loaded again", *key)

    def _ask(self) -> None:
        """Ask each instance that serves for one prediction, until one is right."""
        began = self._now()
        answers = [
            first_answer(self._engine, each, self._record.manifest) for each in self._serving()
        ]
        if "" in answers:
            self._wrong = ""
        elif None not in answers and answers:
            self._wrong = str(answers[0])
        self._ask_at = self._now() + pause_s(self._now() - began, _ASK_S)


def _has_workers(holdings: Held, instance: str, record: VersionRecord) -> bool:
    entry = holdings.get(instance, {}).get(record.key)
    return entry is not None and entry.workers_ready > 0
