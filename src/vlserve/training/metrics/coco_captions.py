"""Captions by pycocoevalcap: BLEU, METEOR, ROUGE-L and CIDEr-D as the COCO evaluation counts them.

``python -m vlserve.training.metrics.coco_captions`` reads {"candidates": [caption, ...],
"references": [[caption, ...], ...]} and writes {"corpus": {figure: value}, "each": {figure:
[value, ...]}}. It is a process of its own, because the library starts whatever ``java`` stands
first on the PATH (for METEOR and the tokenizer), and leaves its pipes open.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")

Scores = dict[str, list[float]]
"""Of each figure a value a candidate."""


def tokenized(captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return captions in lower case, tokens apart, without punctuation, by Stanford's PTB
    tokenizer. Needs Java."""
    request = {
        number: [{"caption": " ".join(caption.split())} for caption in group]
        for number, group in enumerate(captions)
    }
    tokens = PTBTokenizer().tokenize(request)
    if [len(group) for group in captions] != [len(tokens.get(number, ())) for number in request]:
        raise ValueError("the tokenizer gave back fewer captions than it was given")
    return [tokens[number] for number in request]


def overlaps(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], Scores]:
    """Return BLEU, ROUGE-L and CIDEr-D of tokenized captions: of all together, and of each."""
    texts, truth = _by_number(candidates, references)
    bleu, each_bleu = Bleu(len(BLEU)).compute_score(truth, texts, verbose=0)
    rouge, each_rouge = Rouge().compute_score(truth, texts)
    cider, each_cider = Cider().compute_score(truth, texts)
    corpus = dict(zip(BLEU, map(float, bleu), strict=True))
    corpus |= {"rouge_l": float(rouge), "cider_d": float(cider)}
    each = dict(zip(BLEU, (list(map(float, values)) for values in each_bleu), strict=True))
    return corpus, each | {"rouge_l": each_rouge.tolist(), "cider_d": each_cider.tolist()}


def meteor(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Return METEOR 1.5 of tokenized captions: of all together, and of each. Needs Java."""
    texts, truth = _by_number(candidates, references)
    score, each = Meteor().compute_score(truth, texts)
    return float(score), list(each)


class CiderD:
    """CIDEr-D with the document frequencies of a ``corpus`` of references: what a caption is worth
    in self-critical training. All captions are tokenized, words with spaces between."""

    def __init__(self, corpus: Sequence[Sequence[str]]) -> None:
        self._size = len(corpus)
        self._scorer = CiderScorer()
        self._scorer.crefs = [cook_refs(group) for group in corpus]
        self._scorer.compute_doc_freq()

    def __call__(
        self, candidates: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[float]:
        """Score each candidate against its own references."""
        scores: list[float] = []
        for start in range(0, len(candidates), self._size):
            part = slice(start, start + self._size)
            self._scorer.ctest = [cook_test(caption) for caption in candidates[part]]
            truth = [cook_refs(group) for group in references[part]]
            # the scorer takes the corpus to be as large as its list of references is long
            self._scorer.crefs = truth + [[]] * (self._size - len(truth))
            scores += map(float, self._scorer.compute_cider())
        return scores


def cider_d_by(
    corpus: Sequence[Sequence[str]],
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
) -> list[float]:
    """Return CIDEr-D of each candidate, with the document frequencies of another ``corpus``."""
    return CiderD(corpus)(candidates, references)


def _by_number(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return captions as the library's scorers take them."""
    by_number = {number: [caption] for number, caption in enumerate(candidates)}
    return by_number, {number: list(group) for number, group in enumerate(references)}


def main() -> None:
    """Score standard input on standard output."""
    request: dict[str, Any] = json.load(sys.stdin)
    references = tokenized(request["references"])
    candidates = [
        caption for (caption,) in tokenized([[caption] for caption in request["candidates"]])
    ]
    corpus, each = overlaps(candidates, references)
    corpus["meteor"], each["meteor"] = meteor(candidates, references)
    json.dump({"corpus": corpus, "each": each}, sys.stdout)


if __name__ == "__main__":
    main()
