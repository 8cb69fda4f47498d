"""What a user may do with rollouts: start, pause, resume, promote, abort, and see the latest."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus, VersionRecord
from vlserve.control.judge import JudgeState, Policy, Standing, decide, load_policy
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.rollouts.active import RolloutContext, unreadable
from vlserve.control.rollouts.evaluation import begin
from vlserve.control.rollouts.loop import RolloutLoop
from vlserve.control.rollouts.report import RolloutReport, report, report_unreadable
from vlserve.control.rollouts.state import RolloutState, StateUnreadable
from vlserve.control.store.ledger import Ledger
from vlserve.errors import NoRelease, NotReady, ReleaseUnderWay


class RolloutService:
    """Thread-safe. Every method raises children of VlserveError."""

    def __init__(
        self,
        context: RolloutContext,
        loop: RolloutLoop,
        lifecycle: Lifecycle,
        operations: Operations,
        policy_file: Path,
    ) -> None:
        self._ledger = context.ledger
        self._store = context.store
        self._steps = context.steps
        self._health = context.health
        self._logs = context.logs
        self._trust = context.trust
        self._loop = loop
        self._lifecycle = lifecycle
        self._operations = operations
        self._policy_file = policy_file

    def policy(self) -> Policy:
        """Return what rollout.yaml says now. SettingsError."""
        return load_policy(self._policy_file)

    def start(self, model: str, version: int, changes: Mapping[str, Any]) -> RolloutReport:
        """Start the rollout of ``version``; its first step is in force when this returns.

        Args:
            changes: entries of rollout.yaml for this rollout alone.

        Raises:
            SettingsError: a policy that cannot work.
            ReleaseUnderWay: the model has a rollout under way.
            NotReady: the version cannot serve, or there is no other one to compare it with.
        """
        policy = load_policy(self._policy_file, changes)
        with self._operations.on((model, version)):
            candidate = self._ledger.version(model, version)
            stable = self._stable(model, version)
            logged = all(each.manifest.can("answer_log") for each in (candidate, stable))
            if policy.shadow_percent and not logged:
                raise NotReady(
                    f"{model} {stable.version} or {version} was packed before answers were logged, "
                    "so a shadow has nothing to compare: release without --shadow"
                )
            judge = JudgeState.start(
                policy,
                shadow=policy.shadow_percent > 0,
                has_tags=logged and bool(candidate.manifest.labels and stable.manifest.labels),
                salt=secrets.token_hex(16),
            )
            self._lifecycle.make_ready(candidate)
            with self._loop.lock:
                self.refuse_if_under_way(model)
                state = begin(judge, self._logs, self._health.starts())
                rollout = self._steps.start(model, version, stable.version, state)
                return self._report(rollout, state)

    def latest(self, model: str) -> RolloutReport:
        """Return the rollout under way, or the last one. NoRelease if there was none."""
        self._ledger.model(model)
        with self._loop.lock:
            record = self._store.latest(model)
            if record is None:
                raise NoRelease(f"{model} was never released in steps")
            rollout = self._steps.in_force(record)
            state = self._loop.state(rollout)
            if isinstance(state, StateUnreadable):
                return report_of_unreadable(self._ledger, rollout, state)
            return self._report(rollout, state)

    def pause(self, model: str) -> RolloutReport:
        """Keep the weight; an alarm still takes the candidate back."""
        return self._set_status(model, RolloutStatus.PAUSED, "paused")

    def resume(self, model: str) -> RolloutReport:
        """Go on after a pause."""
        return self._set_status(model, RolloutStatus.RUNNING, "resumed")

    def promote(self, model: str) -> RolloutReport:
        """Give the candidate all traffic, whatever the judge still waits for. NotReady if it is
        not healthy, or a shadow that is not trusted. Needs no state of the judge."""
        candidate = self._ledger.version(model, self._under_way(model).candidate)
        objection = self._trust.objection(candidate)
        if objection:
            raise NotReady(f"{model} {candidate.version} gets no traffic: {objection}")
        self._lifecycle.check_healthy(candidate)
        with self._loop.lock:
            rollout = self._under_way(model)
            self._steps.promote(rollout, self._loop.state(rollout), by="user")
            return self.latest(model)

    def abort(self, model: str) -> RolloutReport:
        """Give stable all traffic again. NotReady if it is not healthy. Needs no state of the
        judge, and no ledger that can be written. GatewaySilent where the gateway does not answer:
        it gets the change as soon as it does."""
        if self._steps.go_on_back(model):
            return self.latest(model)
        stable = self._ledger.version(model, self._under_way(model).stable)
        self._lifecycle.check_way_back(stable)
        with self._loop.lock:
            rollout = self._under_way(model)
            reason = self._steps.take_back(rollout, self._loop.state(rollout), by="user")
            return replace(self.latest(model), unrecorded=reason)

    def refuse_if_under_way(self, model: str) -> None:
        """Raise ReleaseUnderWay while the model has a rollout under way."""
        rollout = self.under_way(model)
        if rollout is not None:
            raise release_under_way(rollout)

    def under_way(self, model: str) -> Rollout | None:
        """Return the model's rollout under way, if there is one."""
        record = self._store.under_way(model)
        rollout = self._steps.in_force(record) if record else None
        return rollout if rollout and rollout.status.under_way else None

    def _report(self, rollout: Rollout, state: RolloutState) -> RolloutReport:
        """Return what is known; before the first tick, with what the judge waits for."""
        if state.decision is None and rollout.status.under_way:
            healthy = [
                self._health.healthy((rollout.model, version))
                for version in (rollout.stable, rollout.candidate)
            ]
            state = replace(state, decision=decide(state.judge, Standing(0.0, *healthy)))
        return report(rollout, state)

    def _set_status(self, model: str, status: RolloutStatus, kind: str) -> RolloutReport:
        with self._loop.lock:
            rollout = self._under_way(model)
            if rollout.status is not status:
                with self._ledger.transaction():
                    self._store.set_status(rollout.id, status)
                    self._ledger.record(model, rollout.candidate, kind)
            return self.latest(model)

    def _under_way(self, model: str) -> Rollout:
        self._ledger.model(model)
        rollout = self.under_way(model)
        if rollout is None:
            raise no_release(model)
        return rollout

    def _stable(self, model: str, version: int) -> VersionRecord:
        """Return the version to compare with."""
        self.refuse_if_under_way(model)
        stable = self._ledger.model(model).stable
        if stable is None:
            raise NotReady(
                f"{model} has no stable version to compare {version} with: "
                f"vlserve release {model} {version} --now"
            )
        if stable == version:
            raise NotReady(f"{model} {version} is the stable version already")
        return self._ledger.version(model, stable)


def report_of_unreadable(ledger: Ledger, rollout: Rollout, error: StateUnreadable) -> RolloutReport:
    """Return what the ledger knows of a rollout whose state cannot be read."""
    start = next(
        event
        for event in reversed(ledger.events(rollout.model))
        if event.kind == "release_started" and event.version == rollout.candidate
    )
    return report_unreadable(rollout, start.detail, unreadable(rollout, error))


def release_under_way(rollout: Rollout) -> ReleaseUnderWay:
    """Return the error of what must wait for the end of the rollout."""
    model = rollout.model
    return ReleaseUnderWay(
        f"{model} {rollout.candidate} is being released: `vlserve promote {model}` gives "
        f"it all traffic now, `vlserve abort {model}` takes it back"
    )


def no_release(model: str) -> NoRelease:
    """Return the error of who steers a rollout that is not there."""
    return NoRelease(f"{model} is not being released: begin with `vlserve release {model} VERSION`")
