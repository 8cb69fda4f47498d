import numpy as np
import pytest

from vlserve.control.judge import tags


def test_the_stability_index_is_the_textbook_sum():
    tally = tags.tally(tags.start(), ["a"] * 30 + ["b"] * 10, ["a"] * 50 + ["b"] * 50, 0.1)
    p, q = np.array([30.5, 10.5]) / 41, np.array([50.5, 50.5]) / 101
    assert tags.stability_index(tally) == pytest.approx(((p - q) * np.log(p / q)).sum())


def test_the_stability_index_of_nothing_is_zero():
    assert tags.stability_index(tags.start()) == 0


def test_the_favoured_tags_come_from_before_the_block():
    tally = tags.tally(tags.start(), ["a"] * 20, ["b"] * 20, 0.1)
    assert tally.comparison.candidate_hits == 0
    tally = tags.tally(tally, ["a", "b", "c"], ["a", "b", "b"], 0.1)
    assert tally.comparison.candidate_hits == 1
    assert tally.comparison.stable_hits == 1


def test_finds_other_answers():
    rng, tally = np.random.default_rng(0), tags.start()
    for _ in range(40):
        tally = tags.tally(
            tally, list(rng.choice(["a", "b", "c"], 5)), list(rng.choice(["b", "c", "d"], 35)), 0.1
        )
    assert tally.comparison.peak > np.log(200)


def test_tolerates_a_shift_within_the_margin():
    rng, tally = np.random.default_rng(0), tags.start()
    for _ in range(400):
        candidate = list(rng.choice(["a", "b"], 20, p=[0.59, 0.41]))
        stable = list(rng.choice(["a", "b"], 20))
        tally = tags.tally(tally, candidate, stable, 0.1)
    assert tally.comparison.peak < np.log(200)


def test_tags_beyond_the_limit_share_a_place():
    names = [str(number) for number in range(tags.MAX_TAGS + 100)]
    tally = tags.tally(tags.start(), names, names, 0.1)
    assert len(tally.names) == tally.stable.size == tags.MAX_TAGS
    assert tally.stable[-1] == 101
    again = tags.tally(tally, ["never seen"], [], 0.1)
    assert again.candidate[-1] == 102
