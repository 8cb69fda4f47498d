"""Text drawn word by word from the likeliest continuations: nucleus sampling.

Holtzman et al., The Curious Case of Neural Text Degeneration (arXiv:1904.09751). The order of the
steps, and what each does, is that of transformers' generate with do_sample, which BLIP calls:
repetition penalty and least length on the logits, then temperature, top k, top p.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlserve.runtime.decoding import Cache, Hypothesis, Ids, Step, log_softmax, penalise
from vlserve.runtime.types import Float64Array


@dataclass(frozen=True)
class Nucleus:
    """Rules of drawing one text. Lengths count every token, the prompt's and the end too.

    ``top_p``: the fewest of the most probable tokens that have this probability together are drawn
    from, of at most ``top_k`` (0: of all); ``temperature`` divides the logits before;
    ``repetition_penalty`` as in `vlserve.runtime.decoding.BeamSearch`; ``seed`` decides the draws.
    """

    max_length: int
    end_id: int
    min_length: int = 0
    top_p: float = 0.9
    top_k: int = 50
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


def probabilities(logits: Float64Array, token_ids: Ids, rules: Nucleus) -> Float64Array:
    """Return what the next token is drawn by, (vocabulary,), of its logits (vocabulary,) after
    token_ids (length,); 0 for tokens that are not drawn."""
    scores = penalise(logits.astype(np.float64), token_ids, rules.repetition_penalty)
    if len(token_ids) < rules.min_length:
        scores[rules.end_id] = -np.inf
    scores /= rules.temperature
    if 0 < rules.top_k < len(scores):
        least = np.partition(scores, len(scores) - rules.top_k)[len(scores) - rules.top_k]
        scores[scores < least] = -np.inf
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(np.exp(log_softmax(scores[order])))
    tail = order[:-1][below[:-1] <= 1 - rules.top_p]  # the most probable is always kept
    scores[tail] = -np.inf
    return np.asarray(np.exp(log_softmax(scores)))


def sample(step: Step, prompt: Ids, rules: Sequence[Nucleus]) -> list[Hypothesis]:
    """Draw one text an item: prompts (batch, tokens) of one length, and as many rules.

    The log-probabilities are the model's own, of before the steps that shape the draw. An item's
    text depends on none of its neighbours.
    """
    generators = [np.random.Generator(np.random.PCG64(rule.seed)) for rule in rules]
    texts = [list(map(int, row)) for row in prompt]
    log_probs: list[list[float]] = [[] for _ in prompt]
    token_ids: Ids = prompt[:, None, :]
    cache: Cache = {}
    while open_items := [item for item, text in enumerate(texts) if _goes_on(text, rules[item])]:
        logits, cache = step(token_ids, cache)
        last = np.array([[[rule.end_id]] for rule in rules])  # of texts that have ended, unread
        for item in open_items:
            ids = np.array(texts[item], dtype=np.int64)
            chances = probabilities(logits[item, 0], ids, rules[item])
            token = _drawn(chances, generators[item].random())
            texts[item].append(token)
            log_probs[item].append(float(log_softmax(logits[item, 0])[token]))
            last[item] = token
        token_ids = last
    return [
        Hypothesis(np.array(text, dtype=np.int64), np.array(probs), float(np.sum(probs)))
        for text, probs in zip(texts, log_probs, strict=True)
    ]


def _goes_on(text: Sequence[int], rules: Nucleus) -> bool:
    return len(text) < rules.max_length and text[-1] != rules.end_id


def _drawn(chances: Float64Array, at: float) -> int:
    """Return the token whose share of 0 to 1, in the order of the ids, holds ``at``."""
    ends = np.cumsum(chances)
    place = int(np.searchsorted(ends, at * ends[-1], side="right"))
    return min(place, int(np.flatnonzero(chances)[-1]))
