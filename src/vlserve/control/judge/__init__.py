"""The judge of a rollout: evidence in, advance | hold | rollback out. Pure: no clock, no IO.

    policy = load_policy(settings.config_file("rollout.yaml"))
    state = JudgeState.start(policy, shadow=False, has_tags=True)
    state = observe(state, Batch(outcomes, pairs))     # each tick
    decision = decide(state, Standing(elapsed_s, stable_healthy, candidate_healthy))
    state = next_step(state)                           # after an ADVANCE is in force

docs/gray-release.md says what each gate tests and what it guarantees.
"""

from vlserve.control.judge.decision import Action, Decision, decide, objected
from vlserve.control.judge.evidence import Batch, EvidenceInvalid, Outcome, ShadowPair, Standing
from vlserve.control.judge.gates import GateResult, Verdict
from vlserve.control.judge.observation import next_step, observe
from vlserve.control.judge.policy import Policy, load_policy
from vlserve.control.judge.state import JudgeState

__all__ = [
    "Action",
    "Batch",
    "Decision",
    "EvidenceInvalid",
    "GateResult",
    "JudgeState",
    "Outcome",
    "Policy",
    "ShadowPair",
    "Standing",
    "Verdict",
    "decide",
    "load_policy",
    "next_step",
    "objected",
    "observe",
]
