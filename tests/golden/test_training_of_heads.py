"""Classification, answers, captions and masks: losses and gradients against the originals'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_albef
import test_blip
import test_m2
import test_s2
import test_vilbert
import torch
from torch import Tensor
from torch.nn import functional as F

from support.eager_graphs import load
from support.golden_cases import Case
from support.training_outputs import (
    assert_training_outputs,
    gradients,
    network_to_train,
    state_of,
    tensors_of,
    training_cases,
)
from support.written_captions import beams, config_of
from vlserve.families.albef import ClassifierGraph
from vlserve.models.two_stream_heads import fuse
from vlserve.training.objectives import answer, caption, classify, pretrain_regions
from vlserve.training.objectives.masking import IGNORED
from vlserve.training.objectives.momentum import follow, teacher_state
from vlserve.training.objectives.self_critical import self_critical, word_log_probs

PAD = 0
MOMENTUM = 0.995
"""Of ALBEF's answers, in models/model_vqa.py."""


@pytest.mark.parametrize(
    "case", training_cases("albef", "models/model_ve.py", "models/model_nlvr.py"), ids=str
)
def test_entailment_and_reasoning_of_albef(case: Case) -> None:
    tensors = tensors_of(case)
    network = network_to_train(test_albef.RECIPE, state_of(case), test_albef.config_of(case), case)
    image, ids = tensors["image"], tensors["input_ids"]
    if len(image) == 2 * len(ids):
        classify.share_cross_attention(network)
        image = torch.stack(image.chunk(2), dim=1)  # all first images, then all second ones
    logits = ClassifierGraph(network)(image, ids, tensors["attention_mask"])
    loss = classify.cross_entropy(logits, tensors["targets"])
    assert_training_outputs(case, {"train_loss": loss} | gradients(case, network, loss))


@pytest.mark.parametrize("case", training_cases("albef", "models/model_vqa.py"), ids=str)
def test_answers_of_albef(case: Case) -> None:
    state, config, tensors = state_of(case), test_albef.config_of(case), tensors_of(case)
    network = network_to_train(test_albef.RECIPE, state, config, case)
    slow = network_to_train(test_albef.RECIPE, teacher_state(state), config, case)
    follow(slow, network, MOMENTUM)
    with torch.no_grad():
        soft = answer_logits(slow, tensors, tensors["question_ids"])
    loss = answer.weighted_generation(
        answer_logits(network, tensors, tensors["question_ids"]),
        tensors["train_answer_ids"],
        tensors["train_weights"],
        len(tensors["image"]),
        pad_id=PAD,
        teacher_logits=soft,
        alpha=tensors["alpha"],
    )
    assert_training_outputs(case, {"train_loss": loss} | gradients(case, network, loss))


@pytest.mark.parametrize("case", training_cases("blip", "models/blip_vqa.py"), ids=str)
def test_answers_of_blip(case: Case) -> None:
    tensors = tensors_of(case)
    network = network_to_train(test_blip.RECIPE, state_of(case), test_blip.config_of(case), case)
    loss = answer.weighted_generation(
        answer_logits(network, tensors, tensors["question_ids"]),
        tensors["train_answer_ids"],
        tensors["train_weights"],
        len(tensors["image"]),
        pad_id=PAD,
        smoothing=answer.LABEL_SMOOTHING,
    )
    assert_training_outputs(case, {"train_loss": loss} | gradients(case, network, loss))


def answer_logits(network: Any, tensors: dict[str, Tensor], questions: Tensor) -> Tensor:
    memory = answer.question_memory(
        network, questions, tensors["question_mask"], tensors["image"], tensors["train_n"]
    )
    ids, mask = tensors["train_answer_ids"], tensors["train_answer_mask"]
    return answer.answer_logits(network.text_decoder, ids, mask, memory)


@pytest.mark.parametrize("case", training_cases("blip", "models/blip.py"), ids=str)
def test_captions_of_blip(case: Case) -> None:
    tensors = tensors_of(case)
    network = network_to_train(test_blip.RECIPE, state_of(case), test_blip.config_of(case), case)
    states = network.visual_encoder(tensors["image"])
    everything = torch.ones(states.shape[:2], dtype=torch.int64)
    memory = (*network.text_decoder.memory(states), everything)
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    text_states, _, _ = network.text_decoder(ids.unsqueeze(1), memory, mask=mask.unsqueeze(1))
    logits = network.text_decoder.logits(text_states)[:, 0]
    prompt = case.config["prompt_length"]
    loss = caption.prompted_loss(logits, ids, mask, prompt, answer.LABEL_SMOOTHING)
    assert_training_outputs(case, {"loss_lm": loss} | gradients(case, network, loss))


@pytest.mark.parametrize("case", training_cases("vilbert", "BertForMultiModalPreTraining"), ids=str)
def test_pretraining_of_vilbert(case: Case, tmp_path: Path) -> None:
    model = test_vilbert.load_as(case, tmp_path)
    network: Any = model.network.double().requires_grad_(True)
    pretrain_regions.tie_words(network)
    inputs, types = test_vilbert.given_to(model, case)
    tensors = tensors_of(case)
    bert, cls = network.bert, network.cls
    text = bert.encoder.text_alone(bert.embeddings(inputs["text_ids"], types), inputs["text_mask"])
    regions = bert.v_embeddings(inputs["visual"].double(), inputs["boxes"].double())
    text, visual = bert.encoder.join(text, inputs["text_mask"], regions, inputs["visual_mask"])
    fusion = case.config["hyperparameters"]["fusion_method"]
    pooled = fuse(bert.t_pooler(text), bert.v_pooler(visual), fusion)
    labels = tensors["masked_lm_labels"]
    losses = {
        "masked_lm_loss": pretrain_regions.masked_words(
            cls.predictions(text), labels.masked_fill(labels == -1, IGNORED)
        ),
        "masked_img_loss": pretrain_regions.masked_regions(
            cls.imagePredictions(visual)[:, 1:],  # the first is the whole image
            tensors["image_target"],
            tensors["image_label"],
            "features" if case.config["hyperparameters"]["visual_target"] else "distribution",
        ),
        "next_sentence_loss": pretrain_regions.alignment(
            cls.bi_seq_relationship(pooled), tensors["next_sentence_label"]
        ),
    }
    loss = torch.stack(list(losses.values())).sum()
    assert_training_outputs(case, losses | gradients(case, network, loss))


CAPTIONERS = {"s2": test_s2.RECIPE, "m2": test_m2.RECIPE}


@pytest.mark.parametrize(
    "case", training_cases("s2", "Transformer") + training_cases("m2", "Transformer"), ids=str
)
def test_both_stages_of_a_captioner(case: Case, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    images = tensors["images"]
    rows = images.shape[1]
    own = {"s2": {"cells": rows}, "m2": {"max_regions": rows, "padded_to": rows}}[case.family]
    model = load(CAPTIONERS[case.family], case, config_of(case) | own, tmp_path)
    visual = {"visual": images}
    if case.family == "m2":
        visual["visual_mask"] = (images != 0).any(dim=2).to(torch.int64)
    options, pad_id = model.served.options, model.config["pad_id"]
    (start,) = options["prompt_ids"]
    arrays = {
        "visual": images.float().numpy(),
        **{k: v.numpy() for k, v in visual.items() if k != "visual"},
    }
    texts, _, _ = beams(model, model.run("encoder", **arrays))
    mask = up_to_the_end(texts, options["end_id"])
    network: Any = model.network.double().requires_grad_(True)
    memory = model.plans["encoder"].module(**visual)
    log_probs = caption.caption_log_probs(network.decoder, tensors["captions"], memory)
    first = caption.next_words(log_probs, tensors["captions"], pad_id)
    text_log_probs = word_log_probs(
        network.decoder, start, torch.from_numpy(texts), torch.from_numpy(mask), memory
    )
    second = self_critical(text_log_probs, tensors["scst_reward"])
    outputs = {"xe_loss": first, "scst_loss": second}
    outputs |= gradients(case, network, first)
    outputs |= gradients(case, network, second, kind="scst_grad.")
    assert_training_outputs(case, outputs)


def up_to_the_end(texts: Any, end_id: int) -> Any:
    ends = np.cumsum(texts == end_id, axis=2)
    return (ends - (texts == end_id) == 0).astype(np.int64)


def test_a_share_of_the_teacher_is_its_own_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.0]])
    targets, slow = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    alone = classify.distilled_cross_entropy(logits, targets, slow, 0.0)
    torch.testing.assert_close(alone, F.cross_entropy(logits, targets))
    whole = classify.distilled_cross_entropy(logits, targets, slow, 1.0)
    torch.testing.assert_close(whole, F.cross_entropy(logits, slow.softmax(1)))
