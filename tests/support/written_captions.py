"""The original captioners' beams, greedy words and teacher-forced words out of a step graph."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from support.eager_graphs import Loaded
from support.golden_cases import Case, key_shapes
from vlserve.exporter.recipe import Recipe
from vlserve.models.keys import is_ignored
from vlserve.runtime.decoding import (
    BeamSearch,
    Cache,
    CachedStep,
    Hypothesis,
    Ids,
    beam_search,
    greedy,
    log_softmax,
)
from vlserve.runtime.types import Arrays
from vlserve.testing.eager import EagerBackend

NEVER = -1
"""As an end id: the original's greedy captions go on after the end."""


@dataclass
class RecordedStep:
    """A Step that keeps every step's log-probabilities (batch, beams, vocabulary); all 0 for a text
    that has ended before, as the original's beam search gives them."""

    step: CachedStep
    end_id: int
    seen: list[NDArray[Any]] = field(default_factory=list)

    def __call__(self, token_ids: Ids, cache: Cache) -> tuple[NDArray[Any], Cache]:
        ended = token_ids[:, :, -1] == self.end_id
        if cache:
            ended |= cache["ended"]
        inner = {name: array for name, array in cache.items() if name != "ended"}
        logits, new_cache = self.step(token_ids, inner)
        self.seen.append(np.where(ended[:, :, None], 0.0, log_softmax(logits)))
        return logits, {**new_cache, "ended": ended}

    def log_probs(self, beams: int, steps: int) -> NDArray[Any]:
        """(batch, beams, steps, vocabulary), the first step's single beam repeated; after the last
        step all have ended."""
        rows = [np.broadcast_to(x, (len(x), beams, x.shape[2])) for x in self.seen]
        rows += [np.zeros_like(rows[0])] * (steps - len(rows))
        return np.stack(rows, axis=2)


def config_of(case: Case) -> dict[str, Any]:
    sizes = case.config["hyperparameters"]
    return {
        "words": [f"word{index}" for index in range(sizes["vocab_size"])],
        "pad_id": sizes["pad_idx"],
        "start_id": sizes["bos_idx"],
        "end_id": sizes["eos_idx"],
        "heads": sizes["h"],
        "writing": {"beams": sizes["beam_size"], "max_length": 1 + sizes["beam_max_len"]},
    }


def written(case: Case, model: Loaded, memory: Arrays) -> Arrays:
    """Every output of a case that comes after the encoder."""
    options, steps = model.served.options, model.served.options["max_length"] - 1
    ids, log_probs, beam_step = beams(model, memory)
    step = recorded(model, memory, NEVER)
    hypotheses = beam_search(step, prompt(model, memory), greedy(options["max_length"], NEVER))
    words = filled(hypotheses, steps)[0][:, 0]
    over = np.maximum.accumulate(words == options["end_id"], axis=1)  # 0 with the end itself
    return {
        "xe_log_probs": teacher_forced(model, memory, case.arrays("inputs")["captions"]),
        "beam_out": ids[:, 0],
        "beam_log_probs": log_probs[:, 0],
        "beam_out_all": ids,
        "beam_log_probs_all": log_probs,
        "beam_all_log_probs": beam_step.log_probs(options["beams"], steps),
        "greedy_out": words,
        "greedy_log_probs": np.where(over[:, :, None], 0.0, step.log_probs(1, steps)[:, 0]),
    }


def beams(model: Loaded, memory: Arrays) -> tuple[Ids, NDArray[Any], RecordedStep]:
    """By the rules that stand in the archive: ids and log-probabilities (batch, beams, steps)."""
    options = model.served.options
    fields = BeamSearch.__dataclass_fields__
    rules = BeamSearch(**{name: options[name] for name in fields if name in options})
    step = recorded(model, memory, rules.end_id)
    texts = beam_search(step, prompt(model, memory), rules)
    return *filled(texts, rules.max_length - 1), step


def prompt(model: Loaded, memory: Arrays) -> Ids:
    return np.array([model.served.options["prompt_ids"]] * len(memory["memory_mask"]))


def recorded(model: Loaded, memory: Arrays, end_id: int) -> RecordedStep:
    plan = model.plans["step"]
    return RecordedStep(CachedStep(EagerBackend(plan), plan.inputs, memory), end_id)


def filled(texts: list[list[Hypothesis]], steps: int) -> tuple[Ids, NDArray[Any]]:
    """(batch, beams, steps): ids after the start, and their log-probabilities; 0 after the end."""
    ids = np.zeros((len(texts), len(texts[0]), steps), dtype=np.int64)
    log_probs = np.zeros(ids.shape)
    for item, beams in enumerate(texts):
        for beam, text in enumerate(beams):
            count = len(text.log_probs)
            ids[item, beam, :count] = text.token_ids[1:]
            log_probs[item, beam, :count] = text.log_probs
    return ids, log_probs


def teacher_forced(model: Loaded, memory: Arrays, captions: Ids) -> NDArray[np.float32]:
    """Log-probabilities (batch, tokens, vocabulary) of what follows each word."""
    decoder: Any = model.network.decoder
    with torch.inference_mode():
        memory_tensors = tuple(
            torch.from_numpy(memory[f"memory_{name}"]) for name in ("key", "value", "mask")
        )
        states, _, _ = decoder(torch.from_numpy(captions).unsqueeze(1), memory_tensors)
        log_probs: NDArray[np.float32] = F.log_softmax(decoder.logits(states[:, 0]), -1).numpy()
    return log_probs


def assert_every_key_is_loaded_or_ignored(recipe: Recipe, name: str) -> None:
    """Of a published checkpoint; and every parameter of the network is there, of its shape."""
    shapes = key_shapes(name)
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    words = [str(index) for index in range(shapes["decoder.word_emb.weight"][0])]
    config = recipe.complete_config({"words": words}, state, Path())
    with torch.device("meta"):
        names = recipe.build(config).state_dict()
    tensors = recipe.adapt(state, config)
    assert tensors.keys() == names.keys()
    assert all(tensor.shape == names[key].shape for key, tensor in tensors.items())
    patterns = sys.modules[type(recipe).__module__].IGNORED
    ignored_keys = {key for key in shapes if is_ignored(key, patterns)}
    assert tensors.keys() == shapes.keys() - ignored_keys
