"""Text out of a decoder-step graph: beam search, greedy, and ranking of given answers.

Knows no model. A step takes the next tokens and the cache of what came before, and gives logits;
everything has the axes (batch, beams, …), so that images are decoded together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.manifest import TensorSpec
from vlserve.runtime.types import Arrays, Backend, Float64Array

Ids = NDArray[np.int64]
Cache = Mapping[str, NDArray[Any]]
"""Named arrays (batch, beams, …)."""
Step = Callable[[Ids, Cache], tuple[NDArray[Any], Cache]]
"""token_ids (batch, beams, tokens), cache -> logits of the next token (batch, beams, vocabulary),
cache with these tokens in it. The first call, with the prompt, has an empty cache and one beam."""


class CachedStep:
    """One decoder-step graph as a Step.

    The graph's inputs are ``token_ids``, ``past_*`` (whose axis called "past" grows) and whatever
    else it needs of the item, given as ``memory``; its outputs are ``logits`` and a ``new_*`` for
    every ``past_*``, which holds the given tokens alone.
    """

    def __init__(self, backend: Backend, inputs: Sequence[TensorSpec], memory: Arrays) -> None:
        self._backend = backend
        self._memory = memory
        self._past = [tensor for tensor in inputs if tensor.name.startswith("past_")]

    def __call__(self, token_ids: Ids, cache: Cache) -> tuple[NDArray[Any], Cache]:
        past = cache or {tensor.name: _empty(tensor, token_ids) for tensor in self._past}
        outputs = self._backend.run({"token_ids": token_ids, **past, **self._memory})
        next_cache = {
            tensor.name: np.concatenate(
                [past[tensor.name], outputs[tensor.name.replace("past_", "new_", 1)]],
                axis=tensor.dims.index("past"),
            )
            for tensor in self._past
        }
        return outputs["logits"], next_cache


def _empty(tensor: TensorSpec, token_ids: Ids) -> NDArray[Any]:
    batch, beams, _ = token_ids.shape
    sizes: dict[int | str, int] = {"batch": batch, "beams": beams, "past": 0}
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in tensor.dims]
    return np.zeros(shape, dtype=tensor.dtype)


@dataclass(frozen=True)
class BeamSearch:
    """Rules of a beam search. Lengths count every token, the prompt's and the end too.

    ``finished``: what becomes of a text that has ended. ``leave`` (transformers' generate): it
    leaves the beam, keeps its place among the best, and the search goes on until no text in the
    beam can beat those. ``stay`` (S2, M2): it stays in the beam with its log-probability, while
    others grow past it or not.
    ``length_penalty``: a text's score is its log-probability / its length without the end token **
    this.
    ``repetition_penalty`` (Keskar et al., CTRL, arXiv:1909.05858; as in transformers' generate):
    log-probabilities of tokens that a text holds already, the prompt's too, are multiplied by it
    before texts are ranked. With one beam it is the logits, of which those above 0 are divided.
    """

    beams: int
    max_length: int
    end_id: int
    min_length: int = 0
    length_penalty: float = 1.0
    finished: Literal["leave", "stay"] = "leave"
    repetition_penalty: float = 1.0


def greedy(max_length: int, end_id: int) -> BeamSearch:
    """Return the most likely token at every step."""
    return BeamSearch(1, max_length, end_id, length_penalty=0.0, finished="stay")


@dataclass(frozen=True)
class Hypothesis:
    """One text: token_ids (length,) from the prompt to the end token, where that was reached, the
    model's own log-probability of each token after the prompt, and what texts are ranked by."""

    token_ids: Ids
    log_probs: Float64Array
    score: float


@dataclass(frozen=True)
class _Beams:
    """Where a search stands: token_ids (batch, beams, length), log-probabilities of the tokens
    after the prompt (batch, beams, length - prompt), the sums that texts are ranked by and which
    texts have ended, both (batch, beams)."""

    token_ids: Ids
    log_probs: Float64Array
    totals: Float64Array
    ended: NDArray[np.bool_]

    @property
    def length(self) -> int:
        return int(self.token_ids.shape[2])

    def extend(self, parents: Ids, tokens: Ids, words: "_Words", end_id: int) -> "_Beams":
        """Make of beam i its parent's text and one more token; parents and tokens (batch,
        beams), ``words`` of the parents."""
        items = np.arange(len(parents))[:, None]
        log_probs = words.log_probs[items, parents, tokens]
        return _Beams(
            np.concatenate([_take(self.token_ids, parents), tokens[:, :, None]], axis=2),
            np.concatenate([_take(self.log_probs, parents), log_probs[:, :, None]], axis=2),
            _take(self.totals, parents) + words.scores[items, parents, tokens],
            _take(self.ended, parents) | (tokens == end_id),
        )


@dataclass(frozen=True)
class _Words:
    """Of every beam's next token, (batch, beams, vocabulary): the model's log-probabilities, and
    what texts are ranked by, which the rules have changed."""

    log_probs: Float64Array
    scores: Float64Array


@dataclass
class _Best:
    """The best texts of one item that are ready, at most ``size``."""

    size: int
    texts: list[Hypothesis] = field(default_factory=list)
    complete: bool = False

    def add(self, token_ids: Ids, log_probs: Float64Array, score: float) -> None:
        self.texts.append(Hypothesis(token_ids, log_probs, score))
        self.texts.sort(key=lambda text: -text.score)
        del self.texts[self.size :]

    def admits(self, score: float) -> bool:
        return len(self.texts) < self.size or self.texts[-1].score < score


def beam_search(step: Step, prompt: Ids, rules: BeamSearch) -> list[list[Hypothesis]]:
    """Search for texts after prompts (batch, tokens) of one length: each item's, best first, as
    many as beams.

    Ties go to the earlier beam, then to the smaller token id.
    """
    advance = _advance_leaving if rules.finished == "leave" else _advance_staying
    one_beam = (len(prompt), 1)
    beams = _Beams(
        *(prompt[:, None, :], np.zeros((*one_beam, 0)), np.zeros(one_beam)),
        np.zeros(one_beam, dtype=bool),
    )
    best = [_Best(rules.beams) for _ in prompt]
    logits, cache = step(beams.token_ids, {})
    while True:
        beams, parents = advance(beams, _words(logits, beams.token_ids, rules), best, rules)
        if beams.length >= rules.max_length or all(
            texts_of_item.complete for texts_of_item in best
        ):
            break
        cache = {name: _take(array, parents) for name, array in cache.items()}
        logits, cache = step(beams.token_ids[:, :, -1:], cache)
    _add_unfinished(beams, best, prompt.shape[1], rules)
    return [texts_of_item.texts for texts_of_item in best]


def _words(logits: NDArray[Any], token_ids: Ids, rules: BeamSearch) -> _Words:
    log_probs = log_softmax(logits)
    if rules.beams == 1:
        logits_now = penalise(logits.astype(np.float64), token_ids, rules.repetition_penalty)
        scores = log_softmax(logits_now)
    else:
        scores = penalise(log_probs, token_ids, rules.repetition_penalty)
    if token_ids.shape[2] < rules.min_length:
        scores = scores.copy()
        scores[:, :, rules.end_id] = -np.inf
    return _Words(log_probs, scores)


def penalise(scores: Float64Array, token_ids: Ids, penalty: float) -> Float64Array:
    """Return scores (…, vocabulary), of which those of token_ids (…, tokens) are made worse: those
    below 0 are multiplied by ``penalty``, those above divided."""
    if penalty == 1:
        return scores
    own = np.take_along_axis(scores, token_ids, axis=-1)
    result = scores.copy()
    worse = np.where(own < 0, own * penalty, own / penalty)
    np.put_along_axis(result, token_ids, worse, axis=-1)
    return result


def _advance_leaving(
    beams: _Beams, words: _Words, best: list[_Best], rules: BeamSearch
) -> tuple[_Beams, Ids]:
    """Keep the best beams. Of the 2 * beams best continuations, those that end are ready if they
    are among the first ``beams``; the first ``beams`` others go on. An item is complete when none
    can get in."""
    batch, width, vocabulary = words.scores.shape
    count = min(rules.beams, width * (vocabulary - 1))
    parents, tokens = np.zeros((2, batch, count), dtype=np.int64)
    totals = beams.totals[:, :, None] + words.scores
    norm = beams.length**rules.length_penalty
    for item, texts_of_item in enumerate(best):
        if texts_of_item.complete:
            continue
        order = _top(totals[item].ravel(), 2 * rules.beams)
        continuations = [divmod(int(place), vocabulary) for place in order]
        for beam, token in continuations[: rules.beams]:
            total = totals[item, beam, token]
            if token == rules.end_id and np.isfinite(total):
                texts_of_item.add(
                    np.append(beams.token_ids[item, beam], token),
                    np.append(beams.log_probs[item, beam], words.log_probs[item, beam, token]),
                    float(total / norm),
                )
        survivors = [pair for pair in continuations if pair[1] != rules.end_id][:count]
        parents[item], tokens[item] = np.transpose(survivors)
        texts_of_item.complete = not texts_of_item.admits(float(totals[item].max() / norm))
    return beams.extend(parents, tokens, words, rules.end_id), parents


def _advance_staying(
    beams: _Beams, words: _Words, best: list[_Best], rules: BeamSearch
) -> tuple[_Beams, Ids]:
    """Keep the ``beams`` best continuations, where a text that has ended has one: token 0
    with log-probability 0."""
    batch, width, vocabulary = words.scores.shape
    words = _Words(
        _with_one_word(words.log_probs, beams.ended),
        _with_one_word(words.scores, beams.ended),
    )
    totals = (beams.totals[:, :, None] + words.scores).reshape(batch, width * vocabulary)
    order = np.stack([_top(row, rules.beams) for row in totals])
    parents, tokens = np.divmod(order, vocabulary)
    beams = beams.extend(parents, tokens, words, rules.end_id)
    for item, texts_of_item in enumerate(best):
        texts_of_item.complete = bool(beams.ended[item].all())
    return beams, parents


def _with_one_word(scores: Float64Array, ended: NDArray[np.bool_]) -> Float64Array:
    """Return scores (batch, beams, vocabulary), of ended texts those of token 0 alone, which is
    0."""
    result = np.where(ended[:, :, None], -np.inf, scores)
    result[:, :, 0] = np.where(ended, 0.0, result[:, :, 0])
    return result


def _add_unfinished(beams: _Beams, best: list[_Best], prompt: int, rules: BeamSearch) -> None:
    """Add the texts that are still in the beam to the best, up to their end token."""
    leaves = rules.finished == "leave"
    for item, texts_of_item in enumerate(best):
        if leaves and texts_of_item.complete:
            continue
        for tokens, log_probs, total in zip(
            beams.token_ids[item], beams.log_probs[item], beams.totals[item], strict=True
        ):
            ends = np.flatnonzero(tokens[prompt:] == rules.end_id)
            count = int(ends[0]) + 1 if len(ends) else len(tokens) - prompt
            norm = (prompt + count - bool(len(ends))) ** rules.length_penalty
            texts_of_item.add(tokens[: prompt + count], log_probs[:count], float(total / norm))


def _take(array: NDArray[Any], parents: Ids) -> NDArray[Any]:
    """Return the rows of (batch, beams, …) at the parents (batch, new beams)."""
    return np.asarray(array[np.arange(len(parents))[:, None], parents])


def _top(scores: Float64Array, count: int) -> Ids:
    """Return places of the ``count`` largest, best first, of equals the first."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(scores >= least)
    return np.asarray(places[np.argsort(-scores[places], kind="stable")][:count])


def log_softmax(logits: NDArray[Any]) -> Float64Array:
    """Return log-probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True)
class Ranking:
    """Rules of a ranking: the ``candidates`` answers whose first word is the most likely are
    scored whole. ``first_word_twice``: its log-probability is added to the whole answer's, which
    holds it already (ALBEF)."""

    candidates: int
    first_word_twice: bool = False


@dataclass(frozen=True)
class RankedAnswers:
    """Per item, (batch, candidates), in the order of ``first_prob``: which answers, how likely
    their first words, their log-probability as the score graph gives it; ``probability`` over the
    candidates."""

    answers: Ids
    first_prob: Float64Array
    log_prob: Float64Array
    probability: Float64Array

    def best(self) -> Ids:
        """Return places of the candidates, the most probable first, (batch, candidates)."""
        return np.asarray(np.argsort(-self.probability, axis=1, kind="stable"))


def rank_answers(
    step: Step,
    score: Callable[[Ids], NDArray[Any]],
    token_ids: Ids,
    batch: int,
    rules: Ranking,
) -> RankedAnswers:
    """Rank answers token_ids (answers, tokens), padded at the end, all with the same start token.
    ``score``: answer_ids (batch, candidates, tokens) -> log-probability (batch, candidates)."""
    start = np.full((batch, 1, 1), token_ids[0, 0])
    logits, _ = step(start, {})
    first_log_prob = log_softmax(logits)[:, 0, token_ids[:, 1]]  # (batch, answers)
    answers = np.stack([_top(row, rules.candidates) for row in first_log_prob])
    first = np.take_along_axis(first_log_prob, answers, axis=1)
    log_prob = score(token_ids[answers]).astype(np.float64)
    total = first + log_prob if rules.first_word_twice else log_prob
    return RankedAnswers(answers, np.exp(first), log_prob, np.exp(log_softmax(total)))
