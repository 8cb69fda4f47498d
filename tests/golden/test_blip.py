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
    original, sizes = case.config, case.config["hyperparameters"]
    if "vision_config" in sizes:
        return sizes | {"vocabulary": words(sizes["text_config"]["vocab_size"] - ADDED_TOKENS)}
    config = {
        "vocabulary": original["vocab"],
        "image": {"height": sizes["image_size"], "width": sizes["image_size"]},
        "vision_heads": sizes["vit"]["num_heads"],
        "vision_layer_norm_eps": sizes["vit"]["norm_eps"],
        "text_heads": sizes["med_config"]["num_attention_heads"],
        "text_layer_norm_eps": sizes["med_config"]["layer_norm_eps"],
    }
    names = {"answers": "answers", "candidates": "k_test", "prompt": "prompt"}
    config |= {ours: original[theirs] for ours, theirs in names.items() if theirs in original}
    return config


def matching(case: Case, model: Loaded, inputs: Arrays) -> Arrays:
    image = model.run("image", image=inputs.get("image", inputs.get("pixel_values")))
    text = {"text_ids": inputs["input_ids"], "text_mask": inputs["attention_mask"]}
    vectors = model.run("text", **text)["text_embedding"]
    states = torch.from_numpy(image["image_states"])
    ids, mask = (torch.from_numpy(array) for array in text.values())
    network: Any = model.network
    with torch.inference_mode():
        fused = network.text_encoder(ids, mask, (states,))
        plain_logits = network.itm_head(fused[:, 0])
        alone = network.text_encoder(ids, mask)
    outputs = {
        "itm_logits": plain_logits.numpy(),
        "itm_logits_with_enc_token": model.run(
            "fusion", image_states=image["image_states"], **text
        )["match_logits"],
        "itc_sim": image["image_embedding"] @ vectors.T,
        "image_embeds": image["image_states"],
        "text_last_hidden": alone.numpy(),
        "fusion_last_hidden": fused.numpy(),
        "image_feat": image["image_embedding"],
        "text_feat": vectors,
    }
    return outputs | interpolated(case)


def retrieval(case: Case, model: Loaded, inputs: Arrays) -> Arrays:
    image = model.run("image", image=inputs["image"])
    text = {"text_ids": inputs["input_ids"], "text_mask": inputs["attention_mask"]}
    cosine = image["image_embedding"] @ model.run("text", **text)["text_embedding"].T

    def score(images: Any, texts: Any) -> Any:
        pairs = {name: array[texts] for name, array in text.items()}
        logits = model.run("fusion", image_states=image["image_states"][images], **pairs)
        return logits["match_logits"][:, 1] + cosine[images, texts]

    return rerank(cosine, score, case.config["k_test"], inputs["txt2img"])


def answers(case: Case, model: Loaded, inputs: Arrays) -> Arrays:
    memory = model.run(
        "encoder",
        image=inputs["image"],
        text_ids=inputs["question_ids"],
        text_mask=inputs["question_mask"],
    )
    file = model.root / model.served.options["answer_ids"]
    answer_ids = np.array(json.loads(file.read_text(encoding="utf-8")))
    np.testing.assert_array_equal(answer_ids, inputs["answer_ids"])
    step = CachedStep(EagerBackend(model.plans["step"]), model.plans["step"].inputs, memory)
    ranking = rank_answers(
        step,
        lambda ids: model.run("score", answer_ids=ids, **memory)["log_prob"],
        answer_ids,
        len(inputs["image"]),
        Ranking(model.served.options["candidates"]),
    )
    start = np.full((len(inputs["image"]), 1, 1), answer_ids[0, 0])
    rules = case.config["generate"]
    # the original lets the decoder see the questions' padding when it generates
    whole_memory = memory | {"memory_mask": np.ones_like(memory["memory_mask"])}
    texts = beam_search(
        CachedStep(EagerBackend(model.plans["step"]), model.plans["step"].inputs, whole_memory),
        np.full((len(inputs["image"]), 1), rules["bos"]),
        beam_rules(rules, rules["eos"]),
    )
    return {
        "rank_max_ids": np.take_along_axis(ranking.answers, ranking.best(), axis=1)[:, 0],
        "rank_start_logits": step(start, {})[0][:, 0],
        "rank_neg_loss": ranking.log_prob,
        "rank_topk_prob": ranking.first_prob,
        "rank_topk_ids": ranking.answers,
        **best_texts(texts, rules["max_length"], rules["pad"]),
    }


def captions(case: Case, model: Loaded, inputs: Arrays) -> Arrays:
    memory = model.run("encoder", image=inputs["image"])
    prompt = np.array([model.served.options["prompt_ids"]])
    np.testing.assert_array_equal(prompt, inputs["prompt_ids"])
    rules = case.config["generate"]
    texts = beam_search(
        CachedStep(EagerBackend(model.plans["step"]), model.plans["step"].inputs, memory),
        np.repeat(prompt, len(inputs["image"]), axis=0),
        beam_rules(rules, model.served.options["end_id"]),
    )
    network: Any = model.network
    with torch.inference_mode():
        tensors = (torch.from_numpy(memory[f"memory_{name}"]) for name in ("key", "value", "mask"))
        ids = torch.from_numpy(inputs["input_ids"]).unsqueeze(1)
        mask = torch.from_numpy(inputs["attention_mask"]).unsqueeze(1)
        states, _, _ = network.text_decoder(ids, tuple(tensors), mask=mask)
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
    model, outputs = load(RECIPE, case, config_of(case), tmp_path), Arrays()
    for marker, compute in COMPUTE.items():
        if marker in inference_outputs(case):
            outputs = compute(case, model, case.arrays("inputs"))
    assert_inference_outputs(case, outputs)


def test_texts_become_the_same_ids(tmp_path: Path) -> None:
    text_cases = [case for case in CASES if "text_max_length" in case.config]
    for case in text_cases:
        assert_same_ids(case, load(RECIPE, case, config_of(case), tmp_path))
    assert text_cases


def test_questions_become_the_same_ids(tmp_path: Path) -> None:
    question_cases = [case for case in CASES if "questions" in case.config]
    for case in question_cases:
        model, inputs = load(RECIPE, case, config_of(case), tmp_path), case.arrays("inputs")
        assert model.served.text is not None
        tokenizer = load_tokenizer(model.served.text, model.root)
        questions = zip(
            case.config["questions"], inputs["question_ids"], inputs["question_mask"], strict=True
        )
        for text, ids, mask in questions:
            # the graph puts [ENC] in the place of the first
            assert tokenizer.ids(text)[1:].tolist() == ids[mask == 1][1:].tolist(), text
    assert question_cases


@pytest.mark.parametrize(
    "name",
    ["blip_itm_base", "blip_model_base_retrieval_coco", "blip_vqa_base", "blip_caption_base"],
)
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name, ADDED_TOKENS)
