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
    said, sizes = case.config, case.config["hyperparameters"]
    config = {
        "vocabulary": said["vocab"],
        "image": {"height": sizes["image_res"], "width": sizes["image_res"]},
        "vision_heads": sizes["vit"]["num_heads"],
        "vision_layer_norm_eps": sizes["vit"]["norm_eps"],
        "text_heads": sizes["bert_config"]["num_attention_heads"],
        "text_layer_norm_eps": sizes["bert_config"]["layer_norm_eps"],
    }
    if "answers" in said:
        answers = [answer.removesuffix("[SEP]") for answer in said["answers"]]
        config |= {"answers": answers, "candidates": said["k_test"]}
    return config


def texts_of(given: Arrays) -> Arrays:
    return {"text_ids": given["input_ids"], "text_mask": given["attention_mask"]}


def matching(case: Case, load_as: Load, given: Arrays) -> Arrays:
    loaded, text = load_as(), texts_of(given)
    image, words = loaded.run("image", image=given["image"]), loaded.run("text", **text)
    fused = loaded.run(
        "fusion",
        image_states=image["image_states"],
        text_states=words["text_states"],
        text_mask=text["text_mask"],
    )
    network: Any = loaded.network
    states = torch.from_numpy(image["image_states"])
    ids, mask = (torch.from_numpy(array) for array in text.values())
    with torch.inference_mode():
        encoder = network.text_encoder
        multi_modal = encoder(ids, mask, (states,))
        first, last = encoder.first_cross_layer, len(encoder.layers)
        text_states = torch.from_numpy(words["text_states"])
        fused_states = encoder.run(text_states, mask, (states,), first, last)
    got = {
        "image_embeds": image["image_states"],
        "text_embeds": words["text_states"],
        "image_feat": image["image_embedding"],
        "text_feat": words["text_embedding"],
        "sim": image["image_embedding"] @ words["text_embedding"].T,
        "fusion_last_hidden": fused_states.numpy(),
        "multi_modal_last_hidden": multi_modal.numpy(),
        "itm_logits": fused["match_logits"],
    }
    return got | interpolated(case)


def retrieval(case: Case, load_as: Load, given: Arrays) -> Arrays:
    loaded, text = load_as(), texts_of(given)
    image, words = loaded.run("image", image=given["image"]), loaded.run("text", **text)

    def score(images: Any, texts: Any) -> Any:
        pairs = {"text_states": words["text_states"][texts], "text_mask": text["text_mask"][texts]}
        logits = loaded.run("fusion", image_states=image["image_states"][images], **pairs)
        return logits["match_logits"][:, 1]

    cosine = image["image_embedding"] @ words["text_embedding"].T
    return rerank(cosine, score, case.config["k_test"], given["txt2img"])


def answers(case: Case, load_as: Load, given: Arrays) -> Arrays:
    loaded = load_as()
    memory = loaded.run(
        "encoder",
        image=given["image"],
        text_ids=given["question_ids"],
        text_mask=given["question_mask"],
    )
    step = CachedStep(EagerBackend(loaded.plans["step"]), loaded.plans["step"].inputs, memory)
    options = loaded.served.options
    ranked = rank_answers(
        step,
        lambda ids: loaded.run("score", answer_ids=ids, **memory)["log_prob"],
        given["answer_ids"],
        len(given["image"]),
        Ranking(options["candidates"], options["first_word_twice"]),
    )
    start = np.full((len(given["image"]), 1, 1), given["answer_ids"][0, 0])
    best = ranked.best()
    return {
        "topk_ids": np.take_along_axis(ranked.answers, best, axis=1),
        "topk_probs": np.take_along_axis(ranked.probability, best, axis=1),
        "start_logits": step(start, {})[0][:, 0],
        "answer_loss": -ranked.log_prob,
    }


def classes(case: Case, load_as: Load, given: Arrays) -> Arrays:
    image = given["image"]
    if len(image) == 2 * len(given["input_ids"]):  # all first images, then all second ones
        image = np.stack(np.split(image, 2), axis=1)
    return load_as().run("model", image=image, **texts_of(given))


def grounding(case: Case, load_as: Load, given: Arrays) -> Arrays:
    itm = load_as(task="ground", grad_cam="itm", grad_cam_layer=case.config["block_num_itm"])
    itc = load_as(task="ground", grad_cam="itc", grad_cam_layer=case.config["block_num_itc"])
    text = texts_of(given)
    got = {
        "gradcam_itm": itm.run("model", image=given["image"], **text)["word_maps"].mean(axis=1),
        "gradcam_itc": itc.run("model", image=given["image"], **text)["map"],
    }
    for item, length in enumerate(text["text_mask"].sum(axis=1)):
        alone = {name: array[item : item + 1, :length] for name, array in text.items()}
        outputs = itm.run("model", image=given["image"][item : item + 1], **alone)
        got[f"word_map_{item}"] = outputs["word_maps"][0]
        got[f"itm_logits_{item}"] = outputs["match_logits"]
    return got


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
    got = Arrays()
    for marker, compute in COMPUTE.items():
        if marker in inference_outputs(case):
            got = compute(case, load_as, case.arrays("inputs"))
    assert_inference_outputs(case, got)


def test_texts_become_the_same_ids(tmp_path: Path) -> None:
    """The cases' texts were not cleaned; that cleaning is the original's is a test of its own."""
    found = [case for case in CASES if "captions" in case.config]
    for case in found:
        loaded = load(RECIPE, case, config_of(case), tmp_path)
        assert loaded.served.text is not None
        file = str(loaded.root / loaded.served.text.file)
        tokenizer = Tokenizer.from_file(file)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.save(file)
        assert_same_ids(case, loaded)
    assert found


@pytest.mark.parametrize(
    "name", ["albef_pretrain", "albef_retrieval", "albef_vqa", "albef_nlvr", "albef_ve"]
)
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name)


def test_layers_for_two_images_are_those_of_the_original_s_reasoning() -> None:
    """By the names and shapes of the published checkpoints of both."""
    pretrained, reasoning = (key_shapes(f"albef_{name}") for name in ("pretrain", "nlvr"))
    state = {
        name: torch.randn(()).expand(shape)
        for name, shape in pretrained.items()
        if name.startswith("text_encoder.bert.encoder.layer.")
    }
    doubled = with_layers_for_two_images(state)
    own = "text_encoder.encoder.layer."
    assert {name: list(x.shape) for name, x in doubled.items()} == {
        name: shape for name, shape in reasoning.items() if name.startswith(own)
    }
    for old in range(6, 12):  # both copies of each, where Pretrain_nlvr.py puts them
        for new in (2 * old - 6, 2 * old - 5):
            copied = doubled[f"{own}{new}.output.dense.weight"]
            assert copied is state[f"text_encoder.bert.encoder.layer.{old}.output.dense.weight"]
    assert with_layers_for_two_images(doubled) is doubled
