"""A/A releases whose callers have sticky keys and habits, through the judge's public functions."""

import numpy as np

from benchmarks.release.judge_traffic import STABLE_TAGS, usual_ms
from vlserve.control.judge import (
    Batch,
    JudgeState,
    Outcome,
    Policy,
    Standing,
    Verdict,
    decide,
    next_step,
    observe,
)
from vlserve.control.judge.observation import BLOCK

CALLERS = 2000


def gates_that_alarm(policy: Policy, looks: int, rng: np.random.Generator) -> set[str]:
    """In one release of ``looks`` batches. Each caller has his own volume (Zipf), size of images,
    favourite tag and rate of failures; all that differs by version is who was sent to which."""
    state = JudgeState.start(policy)
    lot = rng.random(CALLERS)
    volume = rng.permutation(1 / np.arange(1, CALLERS + 1))
    pace = np.exp(0.3 * rng.standard_normal(CALLERS))
    favourites = rng.choice(len(STABLE_TAGS), CALLERS, p=STABLE_TAGS)
    fails = np.where(rng.random(CALLERS) < 0.01, 0.1, 0.0)
    drawn_steps = len(state.weights) - 1
    for look in range(looks):
        if look and look * drawn_steps // looks != (look - 1) * drawn_steps // looks:
            state = next_step(state)
        who = rng.choice(CALLERS, BLOCK, p=volume / volume.sum())
        likes = np.where(
            rng.random(BLOCK) < 0.6, favourites[who], rng.choice(20, BLOCK, p=STABLE_TAGS)
        )
        columns = zip(
            (lot[who] < state.weight / 100).tolist(),
            (rng.random(BLOCK) < fails[who]).tolist(),
            (pace[who] * usual_ms(rng, (1, BLOCK), look)[0]).tolist(),
            map(str, who),
            map(str, likes),
            strict=True,
        )
        state = observe(state, Batch([Outcome(*column) for column in columns]))
    figures = decide(state, Standing(0.0, True, True)).gates
    return {figure.gate for figure in figures if figure.verdict is Verdict.ALARM}
