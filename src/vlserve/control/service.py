"""What a user may do: register, release, roll back, unload, and see status and history.

Loading and draining take seconds and run under the version's own operation; traffic moves under one
lock, for milliseconds, or tens of them where Envoy is to check a new cluster. So a rollback never
waits for a version to load.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vlserve.control.batch_jobs import BatchJobs
from vlserve.control.captures import Captures
from vlserve.control.domain import (
    EngineKind,
    Event,
    HealthCheck,
    Key,
    ModelRecord,
    ModelStatus,
    Rollout,
    StackStatus,
    State,
    Trouble,
    VersionRecord,
    VersionStatus,
)
from vlserve.control.gateway.recent_requests import ModelTraffic, RecentRequests
from vlserve.control.gateway.routing import full_weight
from vlserve.control.gateway.traffic import Traffic, traffic_moved
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.lifecycle.registration import Registrar
from vlserve.control.lifecycle.trials import Trials
from vlserve.control.lifecycle.trust import Trust
from vlserve.control.lifecycle.url_registration import UrlRegistrar
from vlserve.control.outcomes import Deletion, Registration, TrafficChange
from vlserve.control.rollouts.answer_history import AnswerHistory
from vlserve.control.rollouts.disagreements import Disagreements
from vlserve.control.rollouts.drift_watch import DriftWatch
from vlserve.control.rollouts.observations import ObservationLog
from vlserve.control.rollouts.service import RolloutService
from vlserve.control.rollouts.verdicts import Verdicts
from vlserve.control.store.kept_archives import remove_archive
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.refusals import RefusalLog
from vlserve.control.store.unrecorded import ChangeBack
from vlserve.control.transitions import rollback_target
from vlserve.control.tuning import Tuning
from vlserve.errors import (
    ControlError,
    LedgerDamaged,
    NoRelease,
    NotUnloaded,
    StillServing,
    VlserveError,
)
from vlserve.settings import Settings
from vlserve.signing.beside import SignatureFiles


class ControlService:
    """Thread-safe. Every method raises children of VlserveError."""

    def __init__(
        self,
        ledger: Ledger,
        traffic: Traffic,
        lifecycle: Lifecycle,
        operations: Operations,
        rollouts: RolloutService,
        backoff: Backoff,
        drain_timeout_s: float,
        recent: RecentRequests,
        disagreements: Disagreements,
        captures: Captures,
        batch_jobs: BatchJobs,
        answers: AnswerHistory,
        drift: DriftWatch,
        trials: Trials,
        verdicts: Verdicts,
        observations: ObservationLog,
        refusals: RefusalLog,
        trust: Trust,
        settings: Settings,
        checks: Sequence[HealthCheck] = (),
    ) -> None:
        self._ledger = ledger
        self._traffic = traffic
        self._lifecycle = lifecycle
        self._operations = operations
        self._registrar = Registrar(ledger, lifecycle, operations, traffic.placement, trust)
        self.by_url = UrlRegistrar(ledger, self._registrar, settings)
        self.rollouts = rollouts
        self._backoff = backoff
        self._drain_timeout_s = drain_timeout_s
        self._recent = recent
        self.disagreements = disagreements
        self.captures = captures
        self.batch_jobs = batch_jobs
        self.answers = answers
        self.drift = drift
        self.trials = trials
        self.verdicts = verdicts
        self.observations = observations
        self.refusals = refusals
        self._trust = trust
        self._checks = (self._engine_and_gateway, self._versions, *checks)

    @property
    def incoming(self) -> Path:
        """Where an archive is written before it is registered."""
        return self._registrar.incoming

    def room_for(self, size: int) -> AbstractContextManager[Path]:
        """Give a name for an archive that comes in: see `Registrar.room_for`."""
        return self._registrar.room_for(size)

    def refuse_engine(self, engine: EngineKind | None) -> None:
        """Raise EngineNotRun where the stack does not run this engine."""
        self._traffic.placement.refuse_unknown(engine)

    def register(
        self,
        archive: Path,
        name: str = "",
        tuning: Tuning | None = None,
        engine: EngineKind | None = None,
        files: SignatureFiles | None = None,
    ) -> Registration:
        """Verify, keep, load and probe an archive: see `Registrar.register`."""
        return self._registrar.register(archive, name, tuning, engine, files)

    def release(self, model: str, version: int) -> TrafficChange:
        """Give ``version`` all traffic of ``model``, in force at the gateway when this returns.

        The version before stays loaded. A retired version is loaded first.

        Raises:
            NotReady: the version cannot serve.
            ReleaseUnderWay: the model has a rollout under way.
        """
        with self._operations.on((model, version)):
            record = self._ledger.version(model, version)
            current = self._ledger.model(model)
            self.rollouts.refuse_if_under_way(model)
            if current.stable == version and current.weights == full_weight(version):
                before = next(iter(current.earlier), None)
                return TrafficChange(model, version, before, already_released=True)
            self._lifecycle.make_ready(record)
            with self._traffic.change_weights(model, full_weight(version)):
                self.rollouts.refuse_if_under_way(model)
                previous = self._ledger.model(model).stable
                self._ledger.release(model, version, full_weight(version))
        return TrafficChange(model, version, previous)

    def rollback(self, model: str, version: int | None = None) -> TrafficChange:
        """Give all traffic back to the stable version before, or to the earlier one ``version``.

        It is in force when this returns, also where the ledger takes no change: it is told later
        then. A rollout under way is aborted, whether or not its state can be read.

        Raises:
            NothingToRollBackTo: there is no such earlier version.
            NotReady: that version is not healthy.
            GatewaySilent: the gateway does not answer; it gets the change as soon as it does.
        """
        open_change = self._traffic.go_on_back(model)
        if open_change is not None and version in (None, open_change.version):
            return TrafficChange(model, open_change.version, open_change.previous)
        under_way = self.rollouts.under_way(model)
        if under_way is not None and version in (None, under_way.stable):
            return self._abort(under_way)
        self.rollouts.refuse_if_under_way(model)
        if version is not None:
            self._ledger.version(model, version)
        stack = self._traffic.model(model).stack
        target = rollback_target(model, stack, version)
        change = ChangeBack(model, target, previous=stack[-1])
        reason = self._go_back(self._ledger.version(model, target), change)
        return TrafficChange(model, target, change.previous, unrecorded=reason)

    def _abort(self, rollout: Rollout) -> TrafficChange:
        model = rollout.model
        change = TrafficChange(model, rollout.stable, rollout.candidate)
        try:
            report = self.rollouts.abort(model)
        except NoRelease:  # it ended meanwhile
            in_force = self._traffic.model(model)
            if in_force.weights == full_weight(rollout.stable):
                return change
            raise traffic_moved(model) from None
        return replace(change, unrecorded=report.unrecorded)

    def _go_back(self, record: VersionRecord, change: ChangeBack) -> str:
        """Put a change back to the version of ``record`` in force, see `Traffic.go_back`."""
        if record.state.routable:  # it serves: nothing that is done to it meanwhile is waited for
            try:
                self._lifecycle.check_way_back(record)
                return self._traffic.go_back(change)
            except ControlError:
                if self._ledger.version(*record.key).state.routable:
                    raise  # else its unload began meanwhile: wait for that, and load it again
        with self._operations.on(record.key):
            self._lifecycle.make_ready(self._ledger.version(*record.key))
            return self._traffic.go_back(change)

    def goes_back_at_once(self, model: str, version: int | None = None) -> bool:
        """Return whether a rollback moves traffic, or is refused, without waiting for a load."""
        try:
            stack = self._traffic.model(model).stack
            target = self._ledger.version(model, rollback_target(model, stack, version))
        except ControlError:
            return True
        return target.state.routable or self.rollouts.under_way(model) is not None

    def unload(self, model: str, version: int) -> VersionRecord:
        """Close the version's path, wait for its requests, and take it out of the engine.

        Its archive stays. The version is still draining afterwards where requests were under way
        after the drain timeout.

        Raises:
            StillServing: the version has weight.
            ReleaseUnderWay: a rollout of the version is under way.
        """
        with self._operations.on((model, version)):
            record = self._ledger.version(model, version)
            under_way = self.rollouts.under_way(model)
            if under_way is not None and version in (under_way.candidate, under_way.stable):
                self.rollouts.refuse_if_under_way(model)
            self._refuse_to_unload_what_serves(model, version)
            if record.state is State.READY:
                try:
                    record = self._lifecycle.start_draining(record)
                except ControlError:
                    self._refuse_to_unload_what_serves(model, version)  # it got traffic meanwhile
                    raise
            if record.state is State.DRAINING:
                record = self._lifecycle.finish_draining(record, self._drain_timeout_s)
        return record

    def _refuse_to_unload_what_serves(self, model: str, version: int) -> None:
        states = (self._ledger.model(model), self._traffic.model(model))
        if any(state.weights.get(version) for state in states):
            raise StillServing(
                f"{model} {version} has traffic: release another version or roll back first"
            )

    def delete(self, model: str, version: int) -> Deletion:
        """Remove the archive of a version that is out of the engine for good. Its number stays
        taken; to register the same archive again puts it back.

        Raises:
            NotUnloaded: the version is neither retired nor failed.
        """
        with self._operations.on((model, version)):
            record = self._ledger.version(model, version)
            if not record.state.out:
                raise NotUnloaded(
                    f"{model} {version} is {record.state}, and only retired and failed versions "
                    f"are deleted: `vlserve unload {model} {version}` first"
                )
            # Before the ledger, which a full disk hinders.
            freed_bytes = remove_archive(record.archive)
            if record.state is not State.DELETED:
                record = self._ledger.move(model, version, State.DELETED, "deleted")
        earlier = self._ledger.model(model).earlier
        return Deletion(model, version, record.state, freed_bytes, next(iter(earlier), None))

    def is_loaded(self, model: str, version: int) -> bool:
        """Return whether traffic moves to the version without a wait for its load, or for what is
        done to it at this moment; also where there is no such version."""
        record = self._ledger.find(model, version)
        if record is None:
            return True
        return record.state.routable and record.key not in self._operations.running()

    def models(self) -> list[ModelStatus]:
        """Return every model with its versions."""
        return [self._status(record) for record in self._traffic.models()]

    def model(self, model: str) -> ModelStatus:
        """Return one model with its versions. ModelNotFound."""
        return self._status(self._traffic.model(model))

    def traffic(self) -> Mapping[str, ModelTraffic]:
        """Return the figures of the last minutes: model -> its requests."""
        return self._recent.figures()

    def registered_by(self, model: str, version: int) -> str:
        """Return who registered a version, as he called himself; empty where it is not known."""
        return self._ledger.registered_by(model, version)

    def history(self, model: str, newest: int = -1) -> list[Event]:
        """Return what happened to a model, and what named keys were refused on it, oldest first:
        the ``newest`` events, or all (-1). ModelNotFound."""
        refusals = [refusal.event() for refusal in self.refusals.kept(model)]
        events = sorted([*self.changes(model, newest), *refusals], key=lambda event: event.at)
        return events if newest < 0 else events[len(events) - min(newest, len(events)) :]

    def changes(self, model: str, newest: int = -1) -> list[Event]:
        """Return what happened to a model, as `history`, without refusals. ModelNotFound."""
        return self._ledger.events(model, newest)

    def health(self) -> StackStatus:
        """Return what the last tick saw of the engine and the gateway, and what the checks find."""
        # Read before the checks: a tick in between must not hide why there is none.
        instances = tuple(sorted(self._traffic.held))
        troubles = tuple(
            dict.fromkeys(trouble for check in self._checks for trouble in _found(check))
        )
        return StackStatus(
            status="; ".join(trouble.message for trouble in troubles) or "ok",
            engine_instances=instances,
            gateway_ready=all(trouble.check != "gateway" for trouble in troubles),
            restoring=tuple(f"{model} {version}" for model, version in self._lacking()),
            troubles=troubles,
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        try:
            return tuple(self._trust.warnings())
        except VlserveError:  # a check tells of it
            return ()

    def _engine_and_gateway(self) -> Iterator[Trouble]:
        if not self._traffic.held:
            yield Trouble("engine", "no engine instance answers", passing=True)
        else:
            names = {instance.name for instance in self._traffic.instances}
            for name in sorted(self._traffic.placement.kinds.keys() - names):
                yield Trouble("engine", f"{name} has not answered yet: it starts", passing=True)
        if not self._traffic.is_as_wanted():
            message = "the gateway does not serve the routing that is wanted"
            yield Trouble("gateway", message, passing=True)

    def _versions(self) -> Iterator[Trouble]:
        gaps = self._lacking()
        losses = [key for key in gaps if self._backoff.needs_help(key)]
        for model, version in losses:
            reason = self._backoff.reason((model, version))
            yield Trouble("versions", f"{model} {version} cannot be loaded again: {reason}")
        names = ", ".join(
            f"{model} {version}" for model, version in gaps if (model, version) not in losses
        )
        if names:
            yield Trouble("versions", f"being loaded again: {names}", passing=True)
        for record in self._ledger.versions():
            if record.state.routable and record.key not in gaps and not record.archive.exists():
                yield Trouble(
                    "versions",
                    f"{record.archive} is gone: {record.model} {record.version} serves until the "
                    f"engine restarts; `vlserve register` of the same {record.archive.name} puts "
                    "it back",
                )

    def _lacking(self) -> list[Key]:
        """Return the versions that an instance is to get back."""
        return sorted(frozenset[Key]().union(*(each.lacks for each in self._traffic.instances)))

    def _status(self, record: ModelRecord) -> ModelStatus:
        holdings, placement = self._traffic.held, self._traffic.placement
        versions = tuple(
            VersionStatus(
                **vars(version)
                | {
                    "reason": version.reason or self._backoff.reason(version.key),
                    "engine": placement.engine_of(version),
                },
                weight=record.weights.get(version.version, 0),
                workers_ready={
                    name: holding[version.key].workers_ready
                    for name, holding in holdings.items()
                    if version.key in holding
                },
                pending=sum(
                    holding[version.key].pending
                    for holding in holdings.values()
                    if version.key in holding
                ),
                instead_of=placement.instead_of(version),
            )
            for version in self._ledger.versions(record.model)
        )
        return ModelStatus(**vars(record), versions=versions)


def _found(check: HealthCheck) -> Iterator[Trouble]:
    """Yield what a check finds; a check that cannot look has found that."""
    try:
        yield from check()
    except VlserveError as error:
        yield Trouble("ledger" if isinstance(error, LedgerDamaged) else "control", str(error))
    except OSError as error:  # of a file that is being replaced, or on a disk that fails
        file = f"{error.filename}: " if error.filename else ""
        yield Trouble("control", f"{file}{error.strerror or error}")
