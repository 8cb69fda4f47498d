"""The words of a user for releases in steps: start, pause, resume, abort, promote, look."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus, VersionRecord
from vlserve.control.judge import JudgeState, load_policy
from vlserve.control.lifecycle.lifecycle import Lifecycle, Operations
from vlserve.control.rollouts.describe import rollout_view
from vlserve.control.rollouts.evaluation import Logs, begin
from vlserve.control.rollouts.loop import RolloutLoop, StackHealth
from vlserve.control.rollouts.steps import RolloutSteps
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.errors import NoRelease, NotReady, ReleaseUnderWay

_ANSWER_LOG = "vlserve/runtime/answer_log.py"


class RolloutService:
    """Thread-safe. Every method raises children of VlserveError."""

    def __init__(
        self,
        ledger: Ledger,
        records: RolloutStore,
        steps: RolloutSteps,
        loop: RolloutLoop,
        stack_health: StackHealth,
        lifecycle: Lifecycle,
        operations: Operations,
        logs: Logs,
        policy_file: Path,
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._steps = steps
        self._loop = loop
        self._stack_health = stack_health
        self._lifecycle = lifecycle
        self._operations = operations
        self._logs = logs
        self._policy_file = policy_file

    def start(self, model: str, version: int, changes: Mapping[str, Any]) -> RolloutView:
        """Begin to release ``version``; its first step is in force when this returns. ``changes``:
        entries of rollout.yaml for this release alone.

        SettingsError: a policy that cannot work; ReleaseUnderWay; NotReady: the version cannot
        serve, or there is no other one to compare it with.
        """
        policy = load_policy(self._policy_file, changes)
        with self._operations.on((model, version)):
            candidate = self._ledger.version(model, version)
            stable = self._stable(model, version)
            logged = all(_ANSWER_LOG in each.manifest.files for each in (candidate, stable))
            if policy.shadow_percent and not logged:
                raise NotReady(
                    f"{model} {stable.version} or {version} was packed before answers were logged, "
                    "so a shadow has nothing to compare: release without --shadow"
                )
            judge = JudgeState.start(
                policy,
                shadow=policy.shadow_percent > 0,
                has_tags=logged and bool(candidate.manifest.labels and stable.manifest.labels),
            )
            self._lifecycle.make_ready(candidate)
            with self._loop.lock:
                self.refuse_if_under_way(model)
                progress = begin(judge, self._logs, self._stack_health.starts())
                release = self._steps.start(model, version, stable.version, progress)
                return rollout_view(release, progress)

    def latest(self, model: str) -> RolloutView:
        """The release under way, or the last one. NoRelease if there was none."""
        self._ledger.model(model)
        with self._loop.lock:
            release = self._records.latest(model)
            if release is None:
                raise NoRelease(f"{model} was never released in steps")
            return rollout_view(release, self._loop.progress(release))

    def pause(self, model: str) -> RolloutView:
        """Keep the weight; an alarm still takes the release back."""
        return self._set(model, RolloutStatus.PAUSED, "paused")

    def resume(self, model: str) -> RolloutView:
        return self._set(model, RolloutStatus.RUNNING, "resumed")

    def promote(self, model: str) -> RolloutView:
        """All traffic to the candidate, whatever the judge still waits for."""
        self._check_healthy(model, self._under_way(model).candidate)
        with self._loop.lock:
            release = self._under_way(model)
            self._steps.promote(release, self._loop.progress(release), by="user")
            return self.latest(model)

    def abort(self, model: str) -> RolloutView:
        """All traffic back to stable. NotReady if that is not healthy."""
        self._check_healthy(model, self._under_way(model).stable)
        with self._loop.lock:
            release = self._under_way(model)
            self._steps.take_back(release, self._loop.progress(release), by="user")
            return self.latest(model)

    def refuse_if_under_way(self, model: str) -> None:
        """ReleaseUnderWay while the model is being released in steps."""
        release = self._records.under_way(model)
        if release is not None:
            raise ReleaseUnderWay(
                f"{model} {release.candidate} is being released: `vlserve promote {model}` gives "
                f"it all traffic now, `vlserve abort {model}` takes it back"
            )

    def under_way(self, model: str) -> Rollout | None:
        return self._records.under_way(model)

    def _set(self, model: str, status: RolloutStatus, kind: str) -> RolloutView:
        with self._loop.lock:
            release = self._under_way(model)
            if release.status is not status:
                with self._ledger.transaction():
                    self._records.save(release.id, status=status)
                    self._ledger.record(model, release.candidate, kind)
            return self.latest(model)

    def _check_healthy(self, model: str, version: int) -> None:
        self._lifecycle.check_healthy(self._ledger.version(model, version))

    def _under_way(self, model: str) -> Rollout:
        self._ledger.model(model)
        release = self._records.under_way(model)
        if release is None:
            raise NoRelease(
                f"{model} is not being released: begin with `vlserve release {model} VERSION`"
            )
        return release

    def _stable(self, model: str, version: int) -> VersionRecord:
        """The version to compare with."""
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
