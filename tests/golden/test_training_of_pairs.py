"""Contrast, matching and masked words: losses, gradients, queues and momentum weights of ALBEF and
BLIP."""

from typing import Any

import pytest
import torch
from test_albef import RECIPE as ALBEF_RECIPE
from test_albef import config_of as albef_config
from test_blip import RECIPE as BLIP_RECIPE
from test_blip import config_of as blip_config
from torch import Tensor, nn

from support.golden_cases import Case
from support.training_outputs import (
    assert_training_outputs,
    gradients,
    network_to_train,
    state_of,
    tensors_of,
    training_cases,
    training_outputs,
)
from vlserve.models.bert import BertConfig as BertSizes
from vlserve.training.objectives.encoders import AlbefEncoders, BlipEncoders
from vlserve.training.objectives.hard_negatives import Negatives
from vlserve.training.objectives.momentum import Queue, teacher_state
from vlserve.training.objectives.pretrain_align import AlignNetwork, Masked, pretrain_align
from vlserve.training.objectives.retrieve import ALBEF, BLIP, RetrievalRules, Retrieved, retrieve


def drawn(given: dict[str, Tensor]) -> Any:
    """The negatives that the original drew."""
    negatives = Negatives(given["neg_image_idx"], given["neg_text_idx"])
    return lambda _of_texts, _of_images: negatives


def pairs(given: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {"image": "image", "input_ids": "text_ids", "attention_mask": "text_mask"}
    return {ours: given[theirs] for theirs, ours in named.items()} | (
        {"ids": given["idx"]} if "idx" in given else {}
    )


def after(case: Case, retrieved: Retrieved, queue: Queue, slow: Any) -> dict[str, Tensor]:
    """Everything but the gradients, under the case's names; of what it asks for."""
    got = {
        "neg_weights_t2i": retrieved.image_weights,
        "neg_weights_i2t": retrieved.text_weights,
        "loss_ita": retrieved.losses["contrast"],
        "loss_itm": retrieved.losses["match"],
        "image_queue_after": queue.images,
        "text_queue_after": queue.texts,
        "idx_queue_after": queue.ids,
        "queue_ptr_after": queue.pointer,
        "ptr_queue_after": queue.pointer,
        "vision_proj_m_weight_after": slow.vision_proj.weight,
        "text_encoder_m_word_embeddings_after": slow.text_encoder.embeddings.word_embeddings.weight,
    }
    if "words" in retrieved.losses:
        got["loss_mlm"] = retrieved.losses["words"]
    return {name: x for name, x in got.items() if name in training_outputs(case)}


@pytest.mark.parametrize("case", training_cases("albef", "models/model_retrieval.py"), ids=str)
def test_retrieval_of_albef(case: Case) -> None:
    state, config, given = state_of(case), albef_config(case), tensors_of(case)
    network = network_to_train(ALBEF_RECIPE, state, config, case)
    slow = network_to_train(ALBEF_RECIPE, teacher_state(state), config, case)
    queue = Queue.of_checkpoint(state).double()
    rules = RetrievalRules(case.config["retrieval"]["momentum"], before=ALBEF.before)
    retrieved = retrieve(
        AlbefEncoders(network),
        AlbefEncoders(slow),
        queue,
        network.temp,
        pairs(given),
        rules,
        alpha=given["alpha"],
        draw=drawn(given),
    )
    got = after(case, retrieved, queue, slow)
    assert_training_outputs(case, got | gradients(case, network, sum_of(retrieved)))


@pytest.mark.parametrize("case", training_cases("albef", "models/model_pretrain.py"), ids=str)
def test_pretraining_of_albef(case: Case) -> None:
    state, config, given = state_of(case), albef_config(case), tensors_of(case)
    student, slow = (align_network(x, config, case) for x in (state, teacher_state(state)))
    queue = Queue.of_checkpoint(state).double()
    rules = RetrievalRules(case.config["retrieval"]["momentum"], bounded_temperature=True)
    retrieved = pretrain_align(
        student,
        slow,
        queue,
        pairs(given),
        Masked(given["mlm_input_ids"], given["mlm_labels"]),
        rules,
        alpha=given["alpha"],
        draw=drawn(given),
    )
    got = after(case, retrieved, queue, slow.network)
    ours = {name: f"network.{name}" for name, _ in student.network.named_parameters()}
    ours["text_encoder.cls.predictions.bias"] = "cls.predictions.bias"
    assert_training_outputs(case, got | gradients(case, student, sum_of(retrieved), ours))


@pytest.mark.parametrize("case", training_cases("blip", "models/blip_retrieval.py"), ids=str)
def test_retrieval_of_blip(case: Case) -> None:
    state, config, given = state_of(case), blip_config(case), tensors_of(case)
    network = network_to_train(BLIP_RECIPE, state, config, case)
    slow = network_to_train(BLIP_RECIPE, teacher_state(state), config, case)
    queue, enc_id = Queue.of_checkpoint(state).double(), case.config["added_tokens"]["[ENC]"]
    temperature = nn.Parameter(state["temp"].double())
    rules = RetrievalRules(
        case.config["momentum"],
        bounded_temperature=BLIP.bounded_temperature,
        negatives_by_teacher=BLIP.negatives_by_teacher,
    )
    retrieved = retrieve(
        BlipEncoders(network, enc_id),
        BlipEncoders(slow, enc_id),
        queue,
        temperature,
        pairs(given),
        rules,
        alpha=given["alpha"],
        draw=drawn(given),
    )
    got = after(case, retrieved, queue, slow)
    network.temp = temperature
    assert_training_outputs(case, got | gradients(case, network, sum_of(retrieved)))


def align_network(state: dict[str, Tensor], config: dict[str, Any], case: Case) -> AlignNetwork:
    network = network_to_train(ALBEF_RECIPE, state, config, case)
    completed = ALBEF_RECIPE.complete_config(config, state, case.folder)
    parsed = BertSizes.model_validate(completed["encoder"])
    whole = AlignNetwork(network, parsed).double()
    prefix = "text_encoder.cls."
    head = {
        name.removeprefix(prefix): x
        for name, x in state.items()
        if name.startswith(prefix) and ".decoder." not in name
    }
    whole.cls.load_state_dict(head)
    return whole


def sum_of(retrieved: Retrieved) -> Tensor:
    return torch.stack(list(retrieved.losses.values())).sum()
