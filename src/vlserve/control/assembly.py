"""The parts of a control service, put together."""

import time
from contextlib import suppress
from dataclasses import dataclass

from vlserve.control.batch_jobs import BatchJobs
from vlserve.control.captures import CaptureExpiry, Captures
from vlserve.control.domain import Trouble
from vlserve.control.gateway.recent_requests import RecentRequests
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.archive_bytes import ArchiveBytes
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.lifecycle.trials import Trials
from vlserve.control.lifecycle.trust import Trust
from vlserve.control.named_keys import NamedKeys
from vlserve.control.ports import Engine, Gateway
from vlserve.control.reconcile.liveness import Liveness
from vlserve.control.reconcile.reconciler import Reconciler
from vlserve.control.reconcile.supervision import Supervision
from vlserve.control.rollouts.active import RolloutContext
from vlserve.control.rollouts.answer_history import AnswerHistory
from vlserve.control.rollouts.disagreements import Disagreements
from vlserve.control.rollouts.drift_watch import DriftWatch
from vlserve.control.rollouts.evaluation import Logs
from vlserve.control.rollouts.health import StackHealth
from vlserve.control.rollouts.kept_candidates import KeptCandidates
from vlserve.control.rollouts.loop import RolloutLoop
from vlserve.control.rollouts.observations import ObservationLog
from vlserve.control.rollouts.pair_log import PairLog
from vlserve.control.rollouts.service import RolloutService
from vlserve.control.rollouts.steps import RolloutSteps
from vlserve.control.rollouts.verdicts import Verdicts
from vlserve.control.service import ControlService
from vlserve.control.stage_spans import StageSpans
from vlserve.control.store.disk_space import disk_troubles
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.refusals import RefusalLog
from vlserve.control.store.release_events import ReleaseEvents
from vlserve.control.store.reserve import Reserve
from vlserve.control.store.rollouts import RolloutStore
from vlserve.control.store.unrecorded import Unrecorded
from vlserve.control.webhook import Webhook, receiver_of
from vlserve.settings import Settings
from vlserve.supervisor import Supervisor


@dataclass(frozen=True)
class Control:
    """One control service: what a user may do, and the loops beside it."""

    ledger: Ledger
    service: ControlService
    reconciler: Reconciler
    rollout_loop: RolloutLoop
    liveness: Liveness
    capture_expiry: CaptureExpiry
    named_keys: NamedKeys
    webhook: Webhook | None = None
    stage_spans: StageSpans | None = None

    def start(self) -> None:
        self.reconciler.start()
        self.rollout_loop.start()
        self.liveness.start()
        self.capture_expiry.start()
        for part in (self.webhook, self.stage_spans):
            if part:
                part.start()

    def stop(self) -> None:
        for part in (self.stage_spans, self.webhook):
            if part:
                part.stop()
        self.capture_expiry.stop()
        self.liveness.stop()
        self.rollout_loop.stop()
        self.reconciler.stop()
        self.service.refusals.flush()
        self.ledger.close()


def assemble(settings: Settings, engine: Engine, gateway: Gateway) -> Control:
    """Build a control service over ``engine`` and ``gateway``.

    Raises:
        ControlError: another control service has the model store's ledger open.
        SettingsError: the secret or the certificates of the webhook cannot be used.
    """
    receiver = receiver_of(settings)
    ledger = Ledger(settings.model_store)
    webhook = Webhook(ReleaseEvents(ledger), receiver) if receiver else None
    unrecorded_changes = Unrecorded(ledger, settings.state_dir / "unrecorded.json")
    reserves = (ledger.database.reserve, Reserve(settings.state_dir / "gateway" / "reserve"))
    for reserve in reserves:
        reserve.keep()
    traffic = Traffic(ledger, engine, gateway, unrecorded_changes, reserves)
    operations, backoff = Operations(), Backoff()
    trust = Trust(settings.trust, ledger, traffic)
    drain_timeout_s = settings.control.drain_timeout_s
    archives = ArchiveBytes(None if settings.trust.mode == "off" else settings.verified_archives)
    lifecycle = Lifecycle(ledger, engine, traffic, backoff, trust, archives, drain_timeout_s)
    tick_s = settings.control.tick_s
    captures = Captures(ledger, settings.state_dir)
    reconciler = Reconciler(
        ledger,
        engine,
        gateway,
        traffic,
        lifecycle,
        operations,
        backoff,
        tick_s,
    )
    logs = settings.state_dir / "logs"
    with suppress(OSError):  # health tells of it
        logs.mkdir(parents=True, exist_ok=True)
    store, pairs = RolloutStore(ledger), PairLog(logs / "pairs.jsonl")
    context = RolloutContext(
        ledger,
        store,
        steps=RolloutSteps(ledger, store, traffic),
        health=StackHealth(traffic, gateway, backoff.unloadable),
        logs=Logs(
            requests=logs / "access.jsonl",
            copies=logs / "shadow.jsonl",
            answers=settings.answer_log,
        ),
        pairs=pairs,
        trust=trust,
        now=time.time,
        clock=time.monotonic,
    )
    kept_candidates = KeptCandidates(
        ledger, store, lifecycle, operations, time.time, time.monotonic
    )
    rollout_loop = RolloutLoop(context, kept_candidates, tick_s)
    policy_file = settings.config_file("rollout.yaml")
    rollouts = RolloutService(context, rollout_loop, lifecycle, operations, policy_file)
    kill = Supervisor(settings).kill
    liveness = Liveness(ledger, engine, gateway, traffic, settings.engine, kill)
    folders = {"model_store": settings.model_store, "state_dir": settings.state_dir, "logs": logs}
    observations = ObservationLog(logs / "observations.jsonl")
    verdicts = Verdicts(
        ledger, rollouts, context.health, context.logs, observations.path, context.now
    )
    named_keys = NamedKeys(settings.model_store)
    answers = AnswerHistory(settings.answer_log, logs / "access.jsonl")
    service = ControlService(
        ledger,
        traffic,
        lifecycle,
        operations,
        rollouts,
        backoff,
        drain_timeout_s,
        RecentRequests(logs / "access.jsonl"),
        Disagreements(ledger, pairs),
        captures,
        BatchJobs(ledger),
        answers,
        DriftWatch(answers, settings.state_dir / "drift.json"),
        Trials(ledger, engine, traffic, settings.gateway.timeout_s),
        verdicts,
        observations,
        RefusalLog(ledger),
        trust,
        settings,
        checks=[
            lambda: disk_troubles(folders, logs),
            ledger.troubles,
            unrecorded_changes.troubles,
            *(reserve.troubles for reserve in reserves),
            liveness.troubles,
            Supervision().troubles,
            lambda: _trouble_of_keys(named_keys),
            *([webhook.troubles] if webhook else []),
        ],
    )
    expiry = CaptureExpiry(captures)
    traces = settings.traces.otlp_url
    return Control(
        ledger,
        service,
        reconciler,
        rollout_loop,
        liveness,
        expiry,
        named_keys,
        webhook,
        stage_spans=StageSpans(logs / "access.jsonl", traces) if traces else None,
    )


def _trouble_of_keys(keys: NamedKeys) -> list[Trouble]:
    """Return why no named key is in force, where there is a file of them."""
    why = keys.trouble()
    return [Trouble("keys", why)] if why else []
