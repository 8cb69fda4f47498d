"""ALBEF's graphs and rankings against salesforce/ALBEF's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers

from support.eager_graphs import (
    Loaded,
    assert_inference_outputs,
    assert_same_ids,
    load,
)
from support.golden_cases import Case, cases, key_shapes
from support.golden_retrieval import interpolated, rerank
from support.published_keys import assert_every_key_is_loaded_or_ignored
from support.training_outputs import inference_outputs
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.decoding import CachedStep, Ranking, rank_answers
from vlserve.runtime.types import Arrays
from vlserve.testing.eager import EagerBackend
from vlserve.training.finetune.heads import with_layers_for_two_images

RECIPE = load_recipe("albef", Path(__file__).parents[2] / "export")
CASES = cases("albef")
Load = Callable[..., Loaded]


def config_of(case: Case) -> dict[str, Any]:
    original, sizes = case.config, case.config["hyperparameters"]
    config = {
        "vocabulary": original["vocab"],
        "image": {"height": sizes["image_res"], "width": sizes["image_res"]},
        "vision_heads": sizes["vit"]["num_heads"],
        "vision_layer_norm_eps": sizes["vit"]["norm_eps"],
        "text_heads": sizes["bert_config"]["num_attention_heads"],
        "text_layer_norm_eps": sizes["bert_config"]["layer_norm_eps"],
    }
    if "answers" in original:
        answers = [answer.removesuffix("[SEP]") for answer in original["answers"]]
        config |= {"answers": answers, "candidates": original["k_test"]}
    return config


def texts_of(inputs: Arrays) -> Arrays:
    return {"text_ids": inputs["input_ids"], "text_mask": inputs["attention_mask"]}


def matching(case: Case, load_as: Load, inputs: Arrays) -> Arrays:
    model, text = load_as(), texts_of(inputs)
    image, words = model.run("image", image=inputs["image"]), model.run("text", **text)
    fused = model.run(
        "fusion",
        image_states=image["image_states"],
        text_states=words["text_states"],
        text_mask=text["text_mask"],
    )
    network: Any = model.network
    states = torch.from_numpy(image["image_states"])
    ids, mask = (torch.from_numpy(array) for array in text.values())
    with torch.inference_mode():
        encoder = network.text_encoder
        multi_modal = encoder(ids, mask, (states,))
        first, last = encoder.first_cross_layer, len(encoder.layers)
        text_states = torch.from_numpy(words["text_states"])
        fused_states = encoder.run(text_states, mask, (states,), first, last)
    outputs = {
        "image_embeds": image["image_states"],
        "text_embeds": words["text_states"],
        "image_feat": image["image_embedding"],
        "text_feat": words["text_embedding"],
        "sim": image["image_embedding"] @ words["text_embedding"].T,
        "fusion_last_hidden": fused_states.numpy(),
        "multi_modal_last_hidden": multi_modal.numpy(),
        "itm_logits": fused["match_logits"],
    }
    return outputs | interpolated(case)


def retrieval(case: Case, load_as: Load, inputs: Arrays) -> Arrays:
    model, text = load_as(), texts_of(inputs)
    image, words = model.run("image", image=inputs["image"]), model.run("text", **text)

    def score(images: Any, texts: Any) -> Any:
        pairs = {"text_states": words["text_states"][texts], "text_mask": text["text_mask"][texts]}
        logits = model.run("fusion", image_states=image["image_states"][images], **pairs)
        return logits["match_logits"][:, 1]

    cosine = image["image_embedding"] @ words["text_embedding"].T
    return rerank(cosine, score, case.config["k_test"], inputs["txt2img"])


def answers(case: Case, load_as: Load, inputs: Arrays) -> Arrays:
    model = load_as()
    memory = model.run(
        "encoder",
        image=inputs["image"],
        text_ids=inputs["question_ids"],
        text_mask=inputs["question_mask"],
    )
    step = CachedStep(EagerBackend(model.plans["step"]), model.plans["step"].inputs, memory)
    options = model.served.options
    ranking = rank_answers(
        step,
        lambda ids: model.run("score", answer_ids=ids, **memory)["log_prob"],
        inputs["answer_ids"],
        len(inputs["image"]),
        Ranking(options["candidates"], options["first_word_twice"]),
    )
    start = np.full((len(inputs["image"]), 1, 1), inputs["answer_ids"][0, 0])
    best = ranking.best()
    return {
        "topk_ids": np.take_along_axis(ranking.answers, best, axis=1),
        "topk_probs": np.take_along_axis(ranking.probability, best, axis=1),
        "start_logits": step(start, {})[0][:, 0],
        "answer_loss": -ranking.log_prob,
    }


def classes(case: Case, load_as: Load, inputs: Arrays) -> Arrays:
    image = inputs["image"]
    if len(image) == 2 * len(inputs["input_ids"]):  # all first images, then all second ones
        image = np.stack(np.split(image, 2), axis=1)
    return load_as().run("model", image=image, **texts_of(inputs))


def grounding(case: Case, load_as: Load, inputs: Arrays) -> Arrays:
    itm = load_as(task="ground", grad_cam="itm", grad_cam_layer=case.config["block_num_itm"])
    itc = load_as(task="ground", grad_cam="itc", grad_cam_layer=case.config["block_num_itc"])
    text = texts_of(inputs)
    results = {
        "gradcam_itm": itm.run("model", image=inputs["image"], **text)["word_maps"].mean(axis=1),
        "gradcam_itc": itc.run("model", image=inputs["image"], **text)["map"],
    }
    for item, length in enumerate(text["text_mask"].sum(axis=1)):
        alone = {name: array[item : item + 1, :length] for name, array in text.items()}
        outputs = itm.run("model", image=inputs["image"][item : item + 1], **alone)
        results[f"word_map_{item}"] = outputs["word_maps"][0]
        results[f"itm_logits_{item}"] = outputs["match_logits"]
    return results


COMPUTE: dict[str, Callable[[Case, Load, Arrays], Arrays]] = {
    "multi_modal_last_hidden": matching,
    "score_i2t": retrieval,
    "topk_ids": answers,
    "logits": classes,
    "gradcam_itm": grounding,
}
"""By an output that only this kind of case has."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_inference_output(case: Case, tmp_path: Path) -> None:
    def load_as(**options: Any) -> Loaded:
        return load(RECIPE, case, config_of(case) | options, tmp_path)

    load_as()  # also where the case has only outputs of training
    outputs = Arrays()
    for marker, compute in COMPUTE.items():
        if marker in inference_outputs(case):
            outputs = compute(case, load_as, case.arrays("inputs"))
    assert_inference_outputs(case, outputs)


def test_texts_become_the_same_ids(tmp_path: Path) -> None:
    """The cases' texts were not cleaned; that cleaning is the original's is a test of its own."""
    caption_cases = [case for case in CASES if "captions" in case.config]
    for case in caption_cases:
        model = load(RECIPE, case, config_of(case), tmp_path)
        assert model.served.text is not None
        file = str(model.root / model.served.text.file)
        tokenizer = Tokenizer.from_file(file)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.save(file)
        assert_same_ids(case, model)
    assert caption_cases


@pytest.mark.parametrize(
    "name", ["albef_pretrain", "albef_retrieval", "albef_vqa", "albef_nlvr", "albef_ve"]
)
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name)


def test_layers_for_two_images_are_those_of_the_original_s_reasoning() -> None:
    """By the names and shapes of the published checkpoints of both."""
    pretraining, reasoning = (key_shapes(f"albef_{name}") for name in ("pretrain", "nlvr"))
    state = {
        name: torch.randn(()).expand(shape)
        for name, shape in pretraining.items()
        if name.startswith("text_encoder.bert.encoder.layer.")
    }
    pair_state = with_layers_for_two_images(state)
    own = "text_encoder.encoder.layer."
    assert {name: list(x.shape) for name, x in pair_state.items()} == {
        name: shape for name, shape in reasoning.items() if name.startswith(own)
    }
    for old in range(6, 12):  # both copies of each, where Pretrain_nlvr.py puts them
        for new in (2 * old - 6, 2 * old - 5):
            weight = pair_state[f"{own}{new}.output.dense.weight"]
            assert weight is state[f"text_encoder.bert.encoder.layer.{old}.output.dense.weight"]
    assert with_layers_for_two_images(pair_state) is pair_state
