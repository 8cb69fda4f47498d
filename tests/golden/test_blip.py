"""BLIP's graphs and decoding against salesforce/BLIP's and transformers' numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.eager_graphs import (
    Loaded,
    assert_inference_outputs,
    assert_same_ids,
    load,
)
from support.golden_cases import Case, cases
from support.golden_retrieval import interpolated, rerank
from support.published_keys import assert_every_key_is_loaded_or_ignored, words
from support.training_outputs import inference_outputs
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.decoding import (
    BeamSearch,
    CachedStep,
    Hypothesis,
    Ranking,
    beam_search,
    rank_answers,
)
from vlserve.runtime.text import load_tokenizer
from vlserve.runtime.types import Arrays
from vlserve.testing.eager import EagerBackend

RECIPE = load_recipe("blip", Path(__file__).parents[2] / "export")
ADDED_TOKENS = 2
CASES = cases("blip") + [
    case for case in cases("hf") if case.config["source"]["class"].startswith("Blip")
]


def config_of(case: Case) -> dict[str, Any]:
    said, sizes = case.config, case.config["hyperparameters"]
    if "vision_config" in sizes:
        return sizes | {"vocabulary": words(sizes["text_config"]["vocab_size"] - ADDED_TOKENS)}
    config = {
        "vocabulary": said["vocab"],
        "image": {"height": sizes["image_size"], "width": sizes["image_size"]},
        "vision_heads": sizes["vit"]["num_heads"],
        "vision_layer_norm_eps": sizes["vit"]["norm_eps"],
        "text_heads": sizes["med_config"]["num_attention_heads"],
        "text_layer_norm_eps": sizes["med_config"]["layer_norm_eps"],
    }
    named = {"answers": "answers", "candidates": "k_test", "prompt": "prompt"}
    config |= {ours: said[theirs] for ours, theirs in named.items() if theirs in said}
    return config


def matching(case: Case, loaded: Loaded, given: Arrays) -> Arrays:
    image = loaded.run("image", image=given.get("image", given.get("pixel_values")))
    text = {"text_ids": given["input_ids"], "text_mask": given["attention_mask"]}
    vectors = loaded.run("text", **text)["text_embedding"]
    states = torch.from_numpy(image["image_states"])
    ids, mask = (torch.from_numpy(array) for array in text.values())
    network: Any = loaded.network
    with torch.inference_mode():
        fused = network.text_encoder(ids, mask, (states,))
        plain_logits = network.itm_head(fused[:, 0])
        alone = network.text_encoder(ids, mask)
    got = {
        "itm_logits": plain_logits.numpy(),
        "itm_logits_with_enc_token": loaded.run(
            "fusion", image_states=image["image_states"], **text
        )["match_logits"],
        "itc_sim": image["image_embedding"] @ vectors.T,
        "image_embeds": image["image_states"],
        "text_last_hidden": alone.numpy(),
        "fusion_last_hidden": fused.numpy(),
        "image_feat": image["image_embedding"],
        "text_feat": vectors,
    }
    return got | interpolated(case)


def retrieval(case: Case, loaded: Loaded, given: Arrays) -> Arrays:
    image = loaded.run("image", image=given["image"])
    text = {"text_ids": given["input_ids"], "text_mask": given["attention_mask"]}
    cosine = image["image_embedding"] @ loaded.run("text", **text)["text_embedding"].T

    def score(images: Any, texts: Any) -> Any:
        pairs = {name: array[texts] for name, array in text.items()}
        logits = loaded.run("fusion", image_states=image["image_states"][images], **pairs)
        return logits["match_logits"][:, 1] + cosine[images, texts]

    return rerank(cosine, score, case.config["k_test"], given["txt2img"])


def answers(case: Case, loaded: Loaded, given: Arrays) -> Arrays:
    memory = loaded.run(
        "encoder",
        image=given["image"],
        text_ids=given["question_ids"],
        text_mask=given["question_mask"],
    )
    file = loaded.root / loaded.served.options["answer_ids"]
    answer_ids = np.array(json.loads(file.read_text(encoding="utf-8")))
    np.testing.assert_array_equal(answer_ids, given["answer_ids"])
    step = CachedStep(EagerBackend(loaded.plans["step"]), loaded.plans["step"].inputs, memory)
    ranked = rank_answers(
        step,
        lambda ids: loaded.run("score", answer_ids=ids, **memory)["log_prob"],
        answer_ids,
        len(given["image"]),
        Ranking(loaded.served.options["candidates"]),
    )
    start = np.full((len(given["image"]), 1, 1), answer_ids[0, 0])
    rules = case.config["generate"]
    # the original lets the decoder see the questions' padding when it generates
    unmasked = memory | {"memory_mask": np.ones_like(memory["memory_mask"])}
    texts = beam_search(
        CachedStep(EagerBackend(loaded.plans["step"]), loaded.plans["step"].inputs, unmasked),
        np.full((len(given["image"]), 1), rules["bos"]),
        beam_rules(rules, rules["eos"]),
    )
    return {
        "rank_max_ids": np.take_along_axis(ranked.answers, ranked.best(), axis=1)[:, 0],
        "rank_start_logits": step(start, {})[0][:, 0],
        "rank_neg_loss": ranked.log_prob,
        "rank_topk_prob": ranked.first_prob,
        "rank_topk_ids": ranked.answers,
        **best_texts(texts, rules["max_length"], rules["pad"]),
    }


def captions(case: Case, loaded: Loaded, given: Arrays) -> Arrays:
    memory = loaded.run("encoder", image=given["image"])
    prompt = np.array([loaded.served.options["prompt_ids"]])
    np.testing.assert_array_equal(prompt, given["prompt_ids"])
    rules = case.config["generate"]
    texts = beam_search(
        CachedStep(EagerBackend(loaded.plans["step"]), loaded.plans["step"].inputs, memory),
        np.repeat(prompt, len(given["image"]), axis=0),
        beam_rules(rules, loaded.served.options["end_id"]),
    )
    network: Any = loaded.network
    with torch.inference_mode():
        inputs = (torch.from_numpy(memory[f"memory_{name}"]) for name in ("key", "value", "mask"))
        ids = torch.from_numpy(given["input_ids"]).unsqueeze(1)
        mask = torch.from_numpy(given["attention_mask"]).unsqueeze(1)
        states, _, _ = network.text_decoder(ids, tuple(inputs), mask=mask)
        logits = network.text_decoder.logits(states)[:, 0]
    return {"logits": logits.numpy(), **best_texts(texts, rules["max_length"], 0)}


def beam_rules(rules: dict[str, int], end_id: int) -> BeamSearch:
    return BeamSearch(rules["num_beams"], rules["max_length"], end_id, rules["min_length"])


def best_texts(texts: list[list[Hypothesis]], length: int, pad_id: int) -> Arrays:
    sequences = np.full((len(texts), length), pad_id)
    for row, (best, *_) in zip(sequences, texts, strict=True):
        row[: len(best.token_ids)] = best.token_ids
    return {
        "generate_sequences": sequences,
        "generate_scores": np.array([best.score for best, *_ in texts]),
    }


COMPUTE: dict[str, Callable[[Case, Loaded, Arrays], Arrays]] = {
    "itm_logits": matching,
    "score_i2t": retrieval,
    "rank_max_ids": answers,
    "logits": captions,
}
"""By an output that only this kind of case has."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_inference_output(case: Case, tmp_path: Path) -> None:
    loaded, got = load(RECIPE, case, config_of(case), tmp_path), Arrays()
    for marker, compute in COMPUTE.items():
        if marker in inference_outputs(case):
            got = compute(case, loaded, case.arrays("inputs"))
    assert_inference_outputs(case, got)


def test_texts_become_the_same_ids(tmp_path: Path) -> None:
    found = [case for case in CASES if "text_max_length" in case.config]
    for case in found:
        assert_same_ids(case, load(RECIPE, case, config_of(case), tmp_path))
    assert found


def test_questions_become_the_same_ids(tmp_path: Path) -> None:
    found = [case for case in CASES if "questions" in case.config]
    for case in found:
        loaded, given = load(RECIPE, case, config_of(case), tmp_path), case.arrays("inputs")
        assert loaded.served.text is not None
        tokenizer = load_tokenizer(loaded.served.text, loaded.root)
        questions = zip(
            case.config["questions"], given["question_ids"], given["question_mask"], strict=True
        )
        for text, ids, mask in questions:
            # the graph puts [ENC] in the place of the first
            assert tokenizer.ids(text)[1:].tolist() == ids[mask == 1][1:].tolist(), text
    assert found


@pytest.mark.parametrize(
    "name",
    ["blip_itm_base", "blip_model_base_retrieval_coco", "blip_vqa_base", "blip_caption_base"],
)
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name, ADDED_TOKENS)
