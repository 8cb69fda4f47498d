"""Whether each engine instance answers, and the gateway its clients: a process id is not life.

Each instance is asked for its models every 2 s, and for one prediction of what it serves, seldom
enough to cost a twentieth of a worker at the most. The gateway is asked as clients ask it, over a
new connection. What takes questions and answers none is killed; supervisord starts it anew, and the
tick brings its versions back.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vlserve.control.domain import Held, Instance, Reply, State, Trouble, VersionRecord
from vlserve.control.ports import Engine, Gateway
from vlserve.control.trouble_log import TroubleLog
from vlserve.control.tuning import Serving, tuned
from vlserve.errors import StackError
from vlserve.settings_sections import EngineSettings

GATEWAY = "gateway"
LATE_S = 10.0
"""After which a prediction that was not answered is told."""
_LISTENS, _PREDICTS, _ANSWERS = "listens", "predicts", "answers"
_PERIOD_S = {_LISTENS: 2.0, _PREDICTS: 5.0, _ANSWERS: 2.0}
_SHARE = 20.0  # of the time that a prediction takes, until the next is asked for
_LISTEN_TIMEOUT_S = 5.0
_LOOK_S = 1.0
_RETRY_S = 30.0  # after a kill that failed

logger = logging.getLogger(__name__)


@dataclass
class Pulse:
    """How one question goes that is asked of one process again and again."""

    asked_at: float | None = None
    """Of the question under way."""
    silent_since: float | None = None
    """When the first question was asked since the last answer."""
    silent: int = 0
    """Questions since the last answer that got none in time."""
    due_at: float = -math.inf
    reply: Reply | None = None
    """To the last question."""

    def begin(self, now: float) -> None:
        self.asked_at = now
        if self.silent_since is None:
            self.silent_since = now

    def end(self, reply: Reply, now: float, period_s: float) -> None:
        took_s = now - (self.asked_at if self.asked_at is not None else now)
        self.asked_at, self.reply = None, reply
        self.due_at = now + (0.0 if reply is Reply.NONE_IN_TIME else pause_s(took_s, period_s))
        if reply is Reply.NONE_IN_TIME:
            self.silent += 1
        else:
            self.silent_since, self.silent = None, 0

    def waits_s(self, now: float) -> float:
        """Return how long an answer has been waited for."""
        return 0.0 if self.silent_since is None else now - self.silent_since

    def hangs(self, now: float, limit_s: float) -> bool:
        """Return whether a question ended without an answer, and none came for so long: one that is
        under way says nothing, since this service may itself have been suspended meanwhile."""
        return self.silent > 0 and self.waits_s(now) >= limit_s


def pause_s(took_s: float, at_least_s: float) -> float:
    """Return how long to wait until the next question, after one that took ``took_s``, in s."""
    return max(at_least_s, _SHARE * took_s)


def longest_wait_s(settings: EngineSettings) -> float:
    """Return the longest that an instance which lives may take for one prediction in s: a full
    queue before it, and each batch as slow as TorchServe lets it be."""
    batches = math.ceil(settings.queue_size / (settings.batch_size * settings.workers))
    return settings.response_timeout_s * (1.0 + batches)


class Versions(Protocol):
    """Says which versions there are."""

    def versions(self) -> Sequence[VersionRecord]: ...


class Instances(Protocol):
    """Says which engine instances were ever seen, and what each holds."""

    @property
    def instances(self) -> Sequence[Instance]: ...

    @property
    def held(self) -> Held: ...


class Liveness:
    """One thread looks once a second; each question runs in a thread of its own, since what hangs
    keeps its asker waiting."""

    def __init__(
        self,
        ledger: Versions,
        engine: Engine,
        gateway: Gateway,
        traffic: Instances,
        settings: EngineSettings,
        kill: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
        beside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """
        Args:
            kill: ends a program by its name, so that supervisord starts it anew; StackError where
                it cannot.
            beside: runs a function in a thread of its own.
        """
        self._ledger = ledger
        self._engine = engine
        self._gateway = gateway
        self._traffic = traffic
        self._settings = settings
        self._kill = kill
        self._now = now
        self._beside = beside or _in_a_thread
        self._lock = threading.Lock()
        self._pulses: dict[tuple[str, str], Pulse] = {}
        self._told: dict[str, str] = {}
        """Process -> what is to be said of it besides its pulses: why it could not be killed."""
        self._retry_at: dict[str, float] = {}
        self._log = TroubleLog(logger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Ask what is due, and kill what hangs."""
        for instance in self._traffic.instances:
            listens = partial(self._engine.listens, instance.name, _LISTEN_TIMEOUT_S)
            self._ask_if_due((instance.name, _LISTENS), listens)
            self._ask_if_due((instance.name, _PREDICTS), partial(self._predicts, instance))
        self._ask_if_due((GATEWAY, _ANSWERS), self._gateway.answers_clients)
        for name, reason in self._hanging():
            self._replace(name, reason)

    def troubles(self) -> Iterator[Trouble]:
        """Yield what does not answer at this moment. Implements HealthCheck."""
        with self._lock:
            pulses, remarks = dict(self._pulses), dict(self._told)
        now = self._now()
        for (name, question), pulse in sorted(pulses.items()):
            message = self._trouble(name, question, pulse, now)
            if message:
                check = "gateway" if question == _ANSWERS else "engine"
                yield Trouble(check, message + remarks.get(name, ""), passing=True)

    def _trouble(self, name: str, question: str, pulse: Pulse, now: float) -> str:
        if question == _ANSWERS and pulse.reply not in (None, Reply.ANSWERED):
            return f"the gateway does not answer its clients: {self._gateway.why_unanswered()}"
        if question == _LISTENS and pulse.reply is Reply.NONE_IN_TIME:
            return f"{name} takes questions and answers none"
        if question == _LISTENS and pulse.reply is Reply.GONE and self._traffic.held:
            return f"{name} does not answer: it is down or starting"
        if question == _PREDICTS and pulse.waits_s(now) > LATE_S:
            return f"{name} has not answered a prediction for over {LATE_S:g} s"
        return ""

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                self.look()
            except Exception:
                logger.exception("liveness")

    def _ask_if_due(self, which: tuple[str, str], ask: Callable[[], Reply]) -> None:
        with self._lock:
            pulse = self._pulses.setdefault(which, Pulse())
            if pulse.asked_at is not None or pulse.due_at > self._now():
                return
            pulse.begin(self._now())
        self._beside(partial(self._ask, which, ask))

    def _ask(self, which: tuple[str, str], ask: Callable[[], Reply]) -> None:
        try:
            reply = ask()
        except Exception:
            logger.exception("liveness of %s", which[0])
            reply = Reply.GONE
        with self._lock:
            self._pulses[which].end(reply, self._now(), _PERIOD_S[which[1]])
            if not any(self._pulses[each].silent for each in self._pulses if each[0] == which[0]):
                self._told.pop(which[0], None)

    def _predicts(self, instance: Instance) -> Reply:
        """Ask for one prediction of a version that the instance serves; answered where none is."""
        record = self._asked_of(instance)
        if record is None:
            return Reply.ANSWERED
        fields = record.manifest.probes[0].fields
        limit_s = longest_wait_s(tuned(self._settings, _serving(record)))
        reply = self._engine.predicts(instance, *record.key, fields, limit_s)
        current = self._asked_of(instance)
        if reply is Reply.NONE_IN_TIME and (current is None or current.key != record.key):
            return Reply.ANSWERED  # it was unloaded meanwhile, with what waited for it
        return reply

    def _asked_of(self, instance: Instance) -> VersionRecord | None:
        """Return the version that is asked for: one with traffic first, which nobody unloads."""
        holding = self._traffic.held.get(instance.name, {})
        records = [
            record
            for record in self._ledger.versions()
            if record.state.routable
            and record.key in holding
            and holding[record.key].workers_ready
            and record.manifest.probes
        ]
        with_traffic = [r for r in records if r.state in (State.STABLE, State.CANARY)]
        return next(iter(with_traffic or records), None)

    def _hanging(self) -> list[tuple[str, str]]:
        now, limit_s = self._now(), self._settings.hang_timeout_s
        with self._lock:
            pulses = dict(self._pulses)
        messages: dict[str, str] = {}
        for (name, question), pulse in pulses.items():
            # A prediction's own limit is far longer, and each of its questions lasts as long.
            if pulse.hangs(now, 0.0 if question == _PREDICTS else limit_s):
                messages[name] = f"no answer for {pulse.waits_s(now):.0f} s"
        return [pair for pair in messages.items() if self._retry_at.get(pair[0], now) <= now]

    def _replace(self, name: str, reason: str) -> None:
        self._retry_at[name] = self._now() + _RETRY_S
        try:
            self._kill(name)
        except StackError as error:
            with self._lock:
                self._told[name] = f"; it cannot be started anew: {error}"
            self._log.note(name, f"{reason}, and it cannot be killed: {error}")
            return
        logger.warning("%s: %s: killed, so that supervisord starts it anew", name, reason)
        with self._lock:
            for which in [which for which in self._pulses if which[0] == name]:
                if self._pulses[which].asked_at is None:
                    self._pulses[which] = Pulse(reply=Reply.GONE)


def _serving(record: VersionRecord) -> Serving | None:
    return record.tuning.serving if record.tuning else None


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="liveness-question", daemon=True).start()
