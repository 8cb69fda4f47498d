"""The steps of a release: each moves traffic and tells the ledger why, in one transaction."""

import time
from dataclasses import replace
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.gateway.routing import full_weight, shared_weights
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.judge import next_step
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.errors import NotReady


class RolloutSteps:
    """Callers hold the lock of releases. GatewayRefused leaves everything as it was."""

    def __init__(self, ledger: Ledger, records: RolloutStore, traffic: Traffic) -> None:
        self._ledger = ledger
        self._records = records
        self._traffic = traffic

    def start(self, model: str, candidate: int, stable: int, progress: RolloutState) -> Rollout:
        """The first step: a shadow, or the first weight."""
        judge = progress.judge
        weights = shared_weights(candidate, stable, judge.weight)
        shadow_percent = judge.policy.shadow_percent
        with self._traffic.change_weights(model, weights):
            if self._ledger.model(model).stable != stable:
                raise NotReady(f"the stable version of {model} changed meanwhile: try again")
            release = self._records.start(
                model, candidate, stable, shadow_percent, progress.to_json()
            )
            self._ledger.weigh(
                model,
                candidate,
                weights,
                "release_started",
                stable=stable,
                steps=list(judge.weights),
                **({"shadow_percent": shadow_percent} if shadow_percent else {}),
                hold_s=judge.policy.hold_s,
            )
        return release

    def advance(self, release: Rollout, progress: RolloutState) -> None:
        """To the next weight."""
        after = replace(progress, judge=next_step(progress.judge), held_s=0.0, waiting=())
        weights = shared_weights(release.candidate, release.stable, after.judge.weight)
        with self._traffic.change_weights(release.model, weights):
            self._records.save(
                release.id, step=release.step + 1, shadow_percent=0, progress=after.to_json()
            )
            self._ledger.weigh(
                release.model, release.candidate, weights, "advanced", **_why("judge", progress)
            )

    def promote(self, release: Rollout, progress: RolloutState, by: str) -> None:
        """All traffic; the candidate becomes stable."""
        weights = full_weight(release.candidate)
        with self._traffic.change_weights(release.model, weights):
            self._records.save(release.id, progress=progress.to_json())
            self._records.end(release.id, RolloutStatus.PROMOTED, keep_until=None)
            self._ledger.release(release.model, release.candidate, weights, **_why(by, progress))

    def take_back(self, release: Rollout, progress: RolloutState, by: str) -> None:
        """All traffic to stable; the candidate stays loaded for a while."""
        status = RolloutStatus.ROLLED_BACK if by == "judge" else RolloutStatus.ABORTED
        keep_until = time.time() + progress.judge.policy.keep_s
        weights = full_weight(release.stable)
        with self._traffic.change_weights(release.model, weights):
            self._records.save(release.id, progress=progress.to_json())
            self._records.end(release.id, status, keep_until)
            self._ledger.weigh(
                release.model,
                release.stable,
                weights,
                str(status),
                previous=release.candidate,
                **_why(by, progress),
            )


def _why(by: str, progress: RolloutState) -> dict[str, Any]:
    """For the ledger: who moved, and what the judge knew at that moment."""
    why: dict[str, Any] = {"by": by}
    if progress.decision is None:
        return why
    detail = dict(progress.decision.detail())
    if by != "judge":  # what the judge would have done is no reason for what a person did
        detail = {"gates": detail["gates"]}
    return why | {"held_s": round(progress.held_s, 1)} | detail
