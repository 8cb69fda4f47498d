"""Texts that a decoder writes, and answers that it ranks: beams over the graph ``step``.

The manifest's options say how: ``prompt_ids``, ``end_id``, ``beams``, ``max_length``, and where
they are not the usual ones ``min_length``, ``length_penalty``, ``repetition_penalty`` and
``finished`` (see BeamSearch); ``sampling``, where requests may have their texts drawn (see
vlserve.runtime.decoding_options); ``tokenizer``, a tokenizer.json, or ``words``, a JSON list of
words by id, turns ids into text; with ``merge_repeats`` a word that follows itself is written once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vlserve.runtime.decoding import (
    BeamSearch,
    CachedStep,
    Hypothesis,
    Ids,
    Ranking,
    beam_search,
    rank_answers,
)
from vlserve.runtime.decoding_options import Manners, Sampling
from vlserve.runtime.errors import ArchiveUnreadable, ManifestInvalid
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.sampling import sample
from vlserve.runtime.types import Arrays, Backend, Float64Array

NO_TOKEN = -1
"""Pads texts that are shorter than others of the batch."""


class WritingOptions(BaseModel):
    """What the manifest's options say of writing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_ids: tuple[int, ...]
    end_id: int
    beams: int
    max_length: int
    min_length: int = 0
    length_penalty: float = 1.0
    finished: str = "leave"
    repetition_penalty: float = Field(default=1.0, gt=0)
    sampling: Sampling | None = None
    tokenizer: str | None = None
    words: str | None = None
    merge_repeats: bool = False


@dataclass(frozen=True)
class Written:
    """One text. ``score``: what the search ranks by, a log-probability over the length to some
    power; ``log_prob``: of all its tokens together."""

    text: str
    log_prob: float
    score: float


class Writer:
    """Writes the texts of a batch. Thread-safe."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        try:
            options = WritingOptions.model_validate(manifest.options)
            rules: BeamSearch = TypeAdapter(BeamSearch).validate_python(
                options.model_dump(include=set(BeamSearch.__dataclass_fields__))
            )
        except ValidationError as error:
            raise ManifestInvalid(f"options of a model that writes: {error}") from error
        self.beams = options.beams
        self.manners = Manners(rules, options.sampling)
        self._rules, self._prompt = rules, options.prompt_ids
        self._read = _reader(options, root)
        self._step = StepGraph(manifest, backends)

    def write(self, memory: Arrays, batch: int, manners: Float64Array | None = None) -> Arrays:
        """Return ``token_ids`` (batch, beams, tokens) after the prompt, ``log_prob`` and ``score``
        (batch, beams), best first. Where an item has fewer texts, their score is -inf.

        ``manners`` (batch, 5): how each item is written; None: as the manifest says.
        """
        hypotheses = self._hypotheses(memory, batch, manners)
        longest = max(len(text.token_ids) for texts in hypotheses for text in texts)
        token_ids = np.full((batch, self.beams, longest), NO_TOKEN, dtype=np.int64)
        log_prob = np.full((batch, self.beams), -np.inf)
        score = log_prob.copy()
        for item, texts in enumerate(hypotheses):
            for place, text in enumerate(texts):
                token_ids[item, place, : len(text.token_ids)] = text.token_ids
                log_prob[item, place] = text.log_probs.sum()
                score[item, place] = text.score
        return {"token_ids": token_ids, "log_prob": log_prob, "score": score}

    def _hypotheses(
        self, memory: Arrays, batch: int, manners: Float64Array | None
    ) -> list[list[Hypothesis]]:
        prompt = np.tile(np.array(self._prompt, dtype=np.int64), (batch, 1))
        if manners is None:
            return beam_search(self._step.of(memory), prompt, self._rules)
        of_item: dict[int, list[Hypothesis]] = {}
        for rules, items in self.manners.searches(manners):
            texts = beam_search(self._step.of(_rows(memory, items)), prompt[items], rules)
            of_item |= zip(items, texts, strict=True)
        if draws := self.manners.draws(manners):
            items = list(draws)
            step = self._step.of(_rows(memory, items))
            samples = sample(step, prompt[items], list(draws.values()))
            of_item |= {item: [text] for item, text in zip(items, samples, strict=True)}
        return [of_item[item] for item in range(batch)]

    def texts(self, outputs: Arrays, index: int) -> list[Written]:
        """Return the texts of one item, best first."""
        texts = []
        for place, score in enumerate(outputs["score"][index]):
            if np.isfinite(score):
                ids = [int(i) for i in outputs["token_ids"][index, place] if i != NO_TOKEN]
                text = self._read(_without_end(ids[len(self._prompt) :], self._rules.end_id))
                log_prob = float(outputs["log_prob"][index, place])
                texts.append(Written(text, log_prob, float(score)))
        return texts


class AnswerRanking:
    """Ranks the manifest's labels as answers; options ``answer_ids``, ``candidates`` and
    ``first_word_twice``. Thread-safe."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        options = manifest.options
        try:
            rows = json.loads((root / options["answer_ids"]).read_text(encoding="ascii"))
            self._answer_ids: Ids = np.array(rows, dtype=np.int64)
            self._rules = Ranking(
                int(options["candidates"]), bool(options.get("first_word_twice", False))
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestInvalid(f"options of a model that ranks answers: {error!r}") from error
        if len(self._answer_ids) != len(manifest.labels):
            raise ManifestInvalid("labels and the rows of answer_ids are not as many")
        self.candidates = self._rules.candidates
        self._step = StepGraph(manifest, backends)
        self._score = backends["score"]

    def rank(self, memory: Arrays, batch: int) -> Arrays:
        """Return ``answers``, places of labels, and ``probability`` of each, (batch, candidates),
        the most probable first."""

        def score(answer_ids: Ids) -> Any:
            return self._score.run({"answer_ids": answer_ids, **memory})["log_prob"]

        step = self._step.of(memory)
        ranking = rank_answers(step, score, self._answer_ids, batch, self._rules)
        order = ranking.best()
        return {
            "answers": np.take_along_axis(ranking.answers, order, axis=1),
            "probability": np.take_along_axis(ranking.probability, order, axis=1),
        }


class StepGraph:
    """The graph ``step``, for any batch's memory."""

    def __init__(self, manifest: Manifest, backends: Mapping[str, Backend]) -> None:
        if "step" not in manifest.graphs:
            raise ManifestInvalid(f"task {manifest.task} needs a graph model, or encoder and step")
        self._inputs = manifest.graphs["step"].inputs
        self._backend = backends.get("step")

    def of(self, memory: Arrays) -> CachedStep:
        assert self._backend is not None
        return CachedStep(self._backend, self._inputs, memory)


def _rows(memory: Arrays, items: Sequence[int]) -> Arrays:
    return {name: array[list(items)] for name, array in memory.items()}


def _reader(options: WritingOptions, root: Path) -> Callable[[Sequence[int]], str]:
    if options.words is not None:
        words, merge = _read_words(root / options.words), options.merge_repeats
        return lambda ids: " ".join(
            _merged(words, ids) if merge else [words[token] for token in ids]
        )
    if options.tokenizer is None:
        raise ManifestInvalid("options of a model that writes: neither tokenizer nor words")
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(root / options.tokenizer))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ArchiveUnreadable(f"tokenizer {options.tokenizer} cannot be read: {error}") from error
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _merged(words: Sequence[str], ids: Sequence[int]) -> list[str]:
    return [word for word, _ in groupby(words[token] for token in ids)]


def _read_words(file: Path) -> list[str]:
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveUnreadable(f"words {file.name} cannot be read: {error}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ArchiveUnreadable(f"words {file.name} is not a JSON list of words")
    return words


def _without_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
