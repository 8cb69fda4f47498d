import itertools

import numpy as np
import pytest

from vlserve.control.judge import sample_ratio
from vlserve.control.judge.sample_ratio import CONCENTRATION, SampleRatio


def after(*draws: tuple[int, int], weight: int = 25) -> SampleRatio:
    ratio = sample_ratio.start()
    for candidate, stable in draws:
        ratio = sample_ratio.settle(ratio, np.array(candidate), np.array(stable), weight)
    return ratio


def test_equals_betting_draw_by_draw_on_the_posterior_mean():
    labels = np.random.default_rng(0).random(300) < 0.31
    share, counts, expected = 0.25, np.array([0.0, 0.0]), 0.0
    for label in labels:
        for_candidate = (CONCENTRATION * share + counts[0]) / (CONCENTRATION + counts.sum())
        expected += np.log(for_candidate / share if label else (1 - for_candidate) / (1 - share))
        counts += [label, not label]
    ratio = after((int(labels.sum()), int((~labels).sum())))
    assert sample_ratio.log_e(ratio, 25) == pytest.approx(expected)


def test_is_worth_one_on_average_over_two_steps_of_a_release():
    total = 0.0
    for first in itertools.product((True, False), repeat=4):
        for second in itertools.product((True, False), repeat=4):
            ratio = after((sum(first), 4 - sum(first)), weight=5)
            ratio = sample_ratio.next_step(ratio, 5)
            ratio = sample_ratio.settle(ratio, np.array(sum(second)), np.array(4 - sum(second)), 50)
            likelihood = 0.05 ** sum(first) * 0.95 ** (4 - sum(first)) * 0.5**4
            total += likelihood * np.exp(sample_ratio.log_e(ratio, 50))
    assert total == pytest.approx(1.0)


def test_finds_lost_requests():
    assert after((200, 1000)).peak > np.log(200)


def test_a_right_split_raises_no_suspicion():
    assert after((250, 750), (250, 750)).peak < np.log(2)


@pytest.mark.parametrize("weight", [0, 100])
def test_nothing_is_drawn_where_one_version_has_all_the_weight(weight):
    ratio = after((0, 1000) if weight == 0 else (1000, 0), weight=weight)
    assert ratio.stable == ratio.candidate == 0
    assert sample_ratio.log_e(ratio, weight) == 0


def test_the_evidence_survives_the_step():
    before = after((200, 1000))
    ratio = sample_ratio.next_step(before, 25)
    assert ratio.peak > np.log(200)
    assert ratio.stable == 0
    assert sample_ratio.log_e(ratio, 50) == sample_ratio.log_e(before, 25)
