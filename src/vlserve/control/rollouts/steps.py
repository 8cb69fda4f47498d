"""The steps of a rollout: each changes the weights and tells the ledger why, in one transaction."""

import time
from dataclasses import replace
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.gateway.routing import full_weight, shared_weights
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.judge import Policy, next_step
from vlserve.control.rollouts.state import KeptState, RolloutState, StateUnreadable
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.control.store.unrecorded import ChangeBack, EndOfRollout
from vlserve.errors import NotReady

KEEP_S = Policy().keep_s
"""How long a candidate that was taken back stays loaded where its own policy cannot be read."""


class RolloutSteps:
    """Callers hold the lock of the rollout loop. GatewayRefused leaves everything as it was;
    GatewaySilent too, but for what `take_back` keeps."""

    def __init__(self, ledger: Ledger, store: RolloutStore, traffic: Traffic) -> None:
        self._ledger = ledger
        self._store = store
        self._traffic = traffic

    def start(self, model: str, candidate: int, stable: int, state: RolloutState) -> Rollout:
        """Put the first step in force: a shadow, or the first weight."""
        judge = state.judge
        weights = shared_weights(candidate, stable, judge.weight)
        shadow_percent = judge.policy.shadow_percent
        with self._traffic.change_weights(model, weights):
            if self._ledger.model(model).stable != stable:
                raise NotReady(f"the stable version of {model} changed meanwhile: try again")
            rollout = self._store.start(
                model, candidate, stable, shadow_percent, state.to_json(), judge.salt
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
        return rollout

    def advance(self, rollout: Rollout, state: RolloutState) -> RolloutState:
        """Put the next weight in force; return the state with which its step begins."""
        after = replace(state, judge=next_step(state.judge), held_s=0.0, waiting=())
        weights = shared_weights(rollout.candidate, rollout.stable, after.judge.weight)
        with self._traffic.change_weights(rollout.model, weights):
            self._store.advance(rollout.id, rollout.step + 1, after.to_json())
            self._ledger.weigh(
                rollout.model, rollout.candidate, weights, "advanced", **_why("judge", state)
            )
        return after

    def promote(self, rollout: Rollout, state: KeptState, by: str) -> None:
        """Give the candidate all traffic; it becomes stable."""
        weights = full_weight(rollout.candidate)
        with self._traffic.change_weights(rollout.model, weights):
            self._save(rollout, state)
            self._store.end(rollout.id, RolloutStatus.PROMOTED, keep_until=None)
            self._ledger.release(rollout.model, rollout.candidate, weights, **_why(by, state))

    def take_back(self, rollout: Rollout, state: KeptState, by: str) -> str:
        """Give stable all traffic again; the candidate stays loaded for a while. Return why the
        ledger does not know it yet, or nothing: see `Traffic.go_back`."""
        return self._traffic.go_back(taken_back(rollout, state, by))

    def go_on_back(self, model: str) -> bool:
        """Put the end of a rollout in force that waits for the gateway; return whether one does.
        GatewaySilent."""
        change = self._traffic.go_on_back(model)
        return change is not None and change.ends is not None

    def in_force(self, rollout: Rollout) -> Rollout:
        """Return a rollout as it stands at the gateway, which the ledger may not know yet."""
        return self._traffic.unrecorded.ended(rollout)

    def _save(self, rollout: Rollout, state: KeptState) -> None:
        """Save a state; one that cannot be read stays as it is, for whoever can."""
        if isinstance(state, RolloutState):
            self._store.save_state(rollout.id, state.to_json())


def taken_back(rollout: Rollout, state: KeptState, by: str) -> ChangeBack:
    """Return the change that gives stable all traffic again."""
    ends = EndOfRollout(
        rollout.id,
        status=RolloutStatus.ABORTED if by == "user" else RolloutStatus.ROLLED_BACK,
        keep_until=time.time() + _keep_s(state),
        detail=_why(by, state),
        state_json=state.to_json() if isinstance(state, RolloutState) else "",
    )
    return ChangeBack(rollout.model, rollout.stable, rollout.candidate, ends)


def _keep_s(state: KeptState) -> float:
    return state.judge.policy.keep_s if isinstance(state, RolloutState) else KEEP_S


def _why(by: str, state: KeptState) -> dict[str, Any]:
    """Return the event's detail: who moved, and what the judge knew at that moment."""
    why: dict[str, Any] = {"by": by}
    if isinstance(state, StateUnreadable):
        return why | {"reason": f"by hand: the state of the rollout cannot be read ({state})"}
    if state.decision is None:
        return why
    detail = dict(state.decision.detail())
    if by == "user":  # what the judge would have done is no reason for what a person did
        detail = {"gates": detail["gates"]}
    return why | {"held_s": round(state.held_s, 1)} | detail
