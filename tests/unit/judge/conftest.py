from collections.abc import Callable

import numpy as np
import pytest

from vlserve.control.judge import Batch, JudgeState, Outcome, Policy, observe

Traffic = Callable[..., list[Outcome]]


@pytest.fixture(scope="session")
def policy() -> Policy:
    return Policy.model_validate({"weights": [5, 50, 100], "hold_s": 60})


@pytest.fixture
def traffic() -> Traffic:
    """traffic(count, weight, …) -> outcomes as the gateway would log them."""
    return seeded_traffic()


@pytest.fixture(scope="session")
def good_state(policy: Policy) -> JudgeState:
    return observe(JudgeState.start(policy), Batch(seeded_traffic()(12_000, 5)))


@pytest.fixture(scope="session")
def bad_state(policy: Policy) -> JudgeState:
    return observe(JudgeState.start(policy), Batch(seeded_traffic()(6_000, 5, fails=0.1)))


def seeded_traffic() -> Traffic:
    rng = np.random.default_rng(7)

    def outcomes(
        count: int, weight: int, fails: float = 0.001, slower: float = 1.0, tags: str = "abc"
    ) -> list[Outcome]:
        candidate = rng.random(count) < weight / 100
        failed = rng.random(count) < np.where(candidate, fails, 0.001)
        ms = rng.lognormal(3, 0.3, count) * np.where(candidate, slower, 1.0)
        tag = np.where(candidate, *(rng.choice(list(letters), count) for letters in (tags, "abc")))
        columns = (column.tolist() for column in (candidate, failed, ms, tag))
        return [
            Outcome(is_candidate, has_failed, latency_ms, None, top_tag)
            for is_candidate, has_failed, latency_ms, top_tag in zip(*columns, strict=True)
        ]

    return outcomes
