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


def drawn(tensors: dict[str, Tensor]) -> Any:
    """The negatives that the original drew."""
    negatives = Negatives(tensors["neg_image_idx"], tensors["neg_text_idx"])
    return lambda _of_texts, _of_images: negatives


def pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"image": "image", "input_ids": "text_ids", "attention_mask": "text_mask"}
    return {ours: tensors[theirs] for theirs, ours in names.items()} | (
        {"ids": tensors["idx"]} if "idx" in tensors else {}
    )


def after(case: Case, result: Retrieved, queue: Queue, slow: Any) -> dict[str, Tensor]:
    """Everything but the gradients, under the case's names; of what it asks for."""
    outputs = {
        "neg_weights_t2i": result.image_weights,
        "neg_weights_i2t": result.text_weights,
        "loss_ita": result.losses["contrast"],
        "loss_itm": result.losses["match"],
        "image_queue_after": queue.images,
        "text_queue_after": queue.texts,
        "idx_queue_after": queue.ids,
        "queue_ptr_after": queue.pointer,
        "ptr_queue_after": queue.pointer,
        "vision_proj_m_weight_after": slow.vision_proj.weight,
        "text_encoder_m_word_embeddings_after": slow.text_encoder.embeddings.word_embeddings.weight,
    }
    if "words" in result.losses:
        outputs["loss_mlm"] = result.losses["words"]
    return {name: x for name, x in outputs.items() if name in training_outputs(case)}


@pytest.mark.parametrize("case", training_cases("albef", "models/model_retrieval.py"), ids=str)
def test_retrieval_of_albef(case: Case) -> None:
    state, config, tensors = state_of(case), albef_config(case), tensors_of(case)
    network = network_to_train(ALBEF_RECIPE, state, config, case)
    slow = network_to_train(ALBEF_RECIPE, teacher_state(state), config, case)
    queue = Queue.of_checkpoint(state).double()
    rules = RetrievalRules(case.config["retrieval"]["momentum"], before=ALBEF.before)
    result = retrieve(
        AlbefEncoders(network),
        AlbefEncoders(slow),
        queue,
        network.temp,
        pairs(tensors),
        rules,
        alpha=tensors["alpha"],
        draw=drawn(tensors),
    )
    outputs = after(case, result, queue, slow)
    assert_training_outputs(case, outputs | gradients(case, network, sum_of(result)))


@pytest.mark.parametrize("case", training_cases("albef", "models/model_pretrain.py"), ids=str)
def test_pretraining_of_albef(case: Case) -> None:
    state, config, tensors = state_of(case), albef_config(case), tensors_of(case)
    student, slow = (align_network(x, config, case) for x in (state, teacher_state(state)))
    queue = Queue.of_checkpoint(state).double()
    rules = RetrievalRules(case.config["retrieval"]["momentum"], bounded_temperature=True)
    result = pretrain_align(
        student,
        slow,
        queue,
        pairs(tensors),
        Masked(tensors["mlm_input_ids"], tensors["mlm_labels"]),
        rules,
        alpha=tensors["alpha"],
        draw=drawn(tensors),
    )
    outputs = after(case, result, queue, slow.network)
    ours = {name: f"network.{name}" for name, _ in student.network.named_parameters()}
    ours["text_encoder.cls.predictions.bias"] = "cls.predictions.bias"
    assert_training_outputs(case, outputs | gradients(case, student, sum_of(result), ours))


@pytest.mark.parametrize("case", training_cases("blip", "models/blip_retrieval.py"), ids=str)
def test_retrieval_of_blip(case: Case) -> None:
    state, config, tensors = state_of(case), blip_config(case), tensors_of(case)
    network = network_to_train(BLIP_RECIPE, state, config, case)
    slow = network_to_train(BLIP_RECIPE, teacher_state(state), config, case)
    queue, enc_id = Queue.of_checkpoint(state).double(), case.config["added_tokens"]["[ENC]"]
    temperature = nn.Parameter(state["temp"].double())
    rules = RetrievalRules(
        case.config["momentum"],
        bounded_temperature=BLIP.bounded_temperature,
        negatives_by_teacher=BLIP.negatives_by_teacher,
    )
    result = retrieve(
        BlipEncoders(network, enc_id),
        BlipEncoders(slow, enc_id),
        queue,
        temperature,
        pairs(tensors),
        rules,
        alpha=tensors["alpha"],
        draw=drawn(tensors),
    )
    outputs = after(case, result, queue, slow)
    network.temp = temperature
    assert_training_outputs(case, outputs | gradients(case, network, sum_of(result)))


def align_network(state: dict[str, Tensor], config: dict[str, Any], case: Case) -> AlignNetwork:
    network = network_to_train(ALBEF_RECIPE, state, config, case)
    complete_config = ALBEF_RECIPE.complete_config(config, state, case.folder)
    sizes = BertSizes.model_validate(complete_config["encoder"])
    whole = AlignNetwork(network, sizes).double()
    prefix = "text_encoder.cls."
    head = {
        name.removeprefix(prefix): x
        for name, x in state.items()
        if name.startswith(prefix) and ".decoder." not in name
    }
    whole.cls.load_state_dict(head)
    return whole


def sum_of(result: Retrieved) -> Tensor:
    return torch.stack(list(result.losses.values())).sum()
