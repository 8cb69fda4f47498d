"""Beam search against brute force, over a language model whose cache shows every mistake."""

import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from vlserve.runtime.decoding import (
    BeamSearch,
    CachedStep,
    Ids,
    Ranking,
    beam_search,
    greedy,
    log_softmax,
    rank_answers,
)
from vlserve.runtime.manifest import TensorSpec
from vlserve.runtime.types import Arrays

END = 2
INPUTS = (
    TensorSpec(name="token_ids", dtype="int64", dims=("batch", "beams", "tokens")),
    TensorSpec(name="past_tokens", dtype="int64", dims=("batch", "beams", "past")),
    TensorSpec(name="memory_seed", dtype="int64", dims=("batch",)),
)


class HistoryModel:
    """A graph that answers from the whole text before, which it has from its cache alone."""

    def __init__(self, words: int = 5, end_bonus: float = 0.0) -> None:
        self.words, self.end_bonus = words, end_bonus
        self.steps = 0

    def logits(self, seed: int, text: tuple[int, ...]) -> Any:
        random = np.random.default_rng(zlib.crc32(repr((seed, text)).encode()))
        logits = random.normal(size=self.words).astype(np.float32)
        logits[END] += self.end_bonus
        return logits

    def run(self, inputs: Arrays) -> Arrays:
        self.steps += 1
        assert inputs.keys() == {tensor.name for tensor in INPUTS}
        texts = np.concatenate([inputs["past_tokens"], inputs["token_ids"]], axis=2)
        logits = [
            [self.logits(int(seed), tuple(text.tolist())) for text in beams]
            for seed, beams in zip(inputs["memory_seed"], texts, strict=True)
        ]
        return {"logits": np.array(logits), "new_tokens": inputs["token_ids"]}

    def step(self, *seeds: int) -> CachedStep:
        return CachedStep(self, INPUTS, {"memory_seed": np.array(seeds)})

    def log_probs(self, seed: int, text: tuple[int, ...], prompt: int) -> list[float]:
        return [
            float(log_softmax(self.logits(seed, text[:place]))[text[place]])
            for place in range(prompt, len(text))
        ]


def every_text(words: int, prompt: tuple[int, ...], rules: BeamSearch) -> list[tuple[int, ...]]:
    """Texts that end where they may, or are as long as they can be."""
    texts = []
    for length in range(1, rules.max_length - len(prompt) + 1):
        for tail in itertools.product(range(words), repeat=length):
            total = len(prompt) + length
            ended = tail[-1] == END and total > rules.min_length
            if END not in tail[:-1] and (ended or (total == rules.max_length and tail[-1] != END)):
                texts.append(prompt + tail)
    return texts


@pytest.mark.parametrize(
    ("rule", "length_penalty"), [("leave", 1.0), ("leave", 0.0), ("stay", 0.0)]
)
@pytest.mark.parametrize("min_length", [0, 4])
def test_with_beams_for_all_the_best_texts_are_found(
    rule: Any, length_penalty: float, min_length: int
) -> None:
    model, prompt = HistoryModel(words=4, end_bonus=1.0), (0, 3)
    rules = BeamSearch(300, 6, END, min_length, length_penalty, rule)
    (hypotheses,) = beam_search(model.step(7), np.array([prompt]), rules)

    scores = {}
    for text in every_text(4, prompt, rules):
        length = len(text) - (text[-1] == END)
        scores[text] = sum(model.log_probs(7, text, len(prompt))) / length**length_penalty
    best = sorted(scores, key=lambda text: -scores[text])[:20]
    assert [tuple(hypothesis.token_ids.tolist()) for hypothesis in hypotheses[:20]] == best
    for hypothesis, text in zip(hypotheses, best, strict=False):
        np.testing.assert_allclose(hypothesis.score, scores[text])
        np.testing.assert_allclose(hypothesis.log_probs, model.log_probs(7, text, len(prompt)))


@pytest.mark.parametrize("rule", ["leave", "stay"])
def test_items_of_a_batch_do_not_touch_each_other(rule: Any) -> None:
    model = HistoryModel(words=30, end_bonus=2.5)
    rules = BeamSearch(3, 12, END, finished=rule)
    seeds = range(6)
    together = beam_search(model.step(*seeds), np.array([[0]] * 6), rules)
    assert len({len(texts[0].token_ids) for texts in together}) > 1
    for seed, texts in zip(seeds, together, strict=True):
        (alone,) = beam_search(model.step(seed), np.array([[0]]), rules)
        assert [text.token_ids.tolist() for text in texts] == [x.token_ids.tolist() for x in alone]
        np.testing.assert_array_equal(
            [text.score for text in texts], [text.score for text in alone]
        )
        assert len(texts) == 3 and texts[0].score >= texts[1].score >= texts[2].score


def test_it_stops_when_nothing_can_get_better() -> None:
    for rule in ("leave", "stay"):
        model = HistoryModel(words=20, end_bonus=30.0)
        rules = BeamSearch(2, 50, END, finished=rule)  # type: ignore[arg-type]
        ((best, *_),) = beam_search(model.step(1), np.array([[0]]), rules)
        assert best.token_ids.tolist() == [0, END] and model.steps <= 3


def test_greedy_takes_the_likeliest_at_every_step() -> None:
    model, text = HistoryModel(words=12, end_bonus=1.0), [0, 5]
    while len(text) < 9 and text[-1] != END:
        text.append(int(model.logits(3, tuple(text)).argmax()))
    ((hypothesis,),) = beam_search(model.step(3), np.array([[0, 5]]), greedy(9, END))
    assert hypothesis.token_ids.tolist() == text
    np.testing.assert_allclose(hypothesis.score, sum(model.log_probs(3, tuple(text), 2)))


def test_ties_go_to_the_smaller_id() -> None:
    def step(token_ids: Ids, cache: Any) -> Any:
        return np.zeros((*token_ids.shape[:2], 40_000), dtype=np.float32), {}

    rules = BeamSearch(3, max_length=3, end_id=39_999)
    (texts,) = beam_search(step, np.array([[1]]), rules)
    assert [text.token_ids.tolist() for text in texts] == [
        [1, 0, 0],
        [1, 0, 1],
        [1, 0, 2],
    ]


def test_answers_are_ranked_by_their_first_word_and_then_whole() -> None:
    logits = np.log(np.array([[[0.1, 0.2, 0.4, 0.3]], [[0.4, 0.3, 0.2, 0.1]]]))
    token_ids = np.array([[9, 1, 5], [9, 2, 0], [9, 0, 5], [9, 3, 0]])
    log_prob = np.log(np.array([0.3, 0.1, 0.5, 0.2]))

    def step(start: Ids, cache: Any) -> Any:
        np.testing.assert_array_equal(start, [[[9]], [[9]]])
        return logits, {}

    def score(answers: Ids) -> Any:
        place = {tuple(row): index for index, row in enumerate(token_ids.tolist())}
        return np.array(
            [[log_prob[place[tuple(row)]] for row in rows] for rows in answers.tolist()]
        )

    ranking = rank_answers(step, score, token_ids, 2, Ranking(candidates=2))
    np.testing.assert_array_equal(ranking.answers, [[1, 3], [2, 0]])
    np.testing.assert_allclose(ranking.first_prob, [[0.4, 0.3], [0.4, 0.3]])
    np.testing.assert_allclose(ranking.probability, [[1 / 3, 2 / 3], [5 / 8, 3 / 8]])
    np.testing.assert_array_equal(ranking.best(), [[1, 0], [0, 1]])
    double_ranking = rank_answers(step, score, token_ids, 2, Ranking(2, first_word_twice=True))
    np.testing.assert_allclose(double_ranking.probability, [[0.4, 0.6], [20 / 29, 9 / 29]])
