"""VisualBERT against transformers' numbers, and its graph against transformers' own class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.eager_graphs import assert_inference_outputs, load
from support.golden_cases import Case, assert_close, cases
from support.published_keys import assert_every_key_is_loaded_or_ignored, words
from support.training_outputs import assert_training_outputs, training_cases
from vlserve.errors import ExportError
from vlserve.exporter.checkpoint import load_into, read_checkpoint
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.families.single_stream import before_last
from vlserve.runtime.types import Arrays
from vlserve.training.objectives.answer import soft_targets_kl

RECIPE = load_recipe("visualbert", Path(__file__).parents[2] / "export")
CASES = cases("visualbert")
ANSWERING = [case for case in CASES if case.config["source"]["class"].endswith("QuestionAnswering")]
PRETRAINING = [case for case in CASES if case.config["source"]["class"].endswith("PreTraining")]
TRUNK_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "visual_embeds",
    "visual_attention_mask",
    "visual_token_type_ids",
)


def config_of(case: Case) -> dict[str, Any]:
    """transformers' config.json, with what else an export needs."""
    sizes = case.config["hyperparameters"]
    length = case.config["inputs"]["input_ids"]["shape"][1]
    return sizes | {"vocabulary": words(sizes["vocab_size"]), "max_length": length}


def trunk_inputs(case: Case) -> dict[str, torch.Tensor]:
    arrays = case.arrays("inputs")
    return {name: torch.from_numpy(arrays[name]) for name in TRUNK_INPUTS}


def as_arrays(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_there_are_cases_of_both_kinds() -> None:
    assert ANSWERING and PRETRAINING and len(ANSWERING) + len(PRETRAINING) == len(CASES)


@pytest.mark.parametrize("case", ANSWERING, ids=str)
def test_every_inference_output_of_answering(case: Case, tmp_path: Path) -> None:
    """With the token types of the case; served texts are all of type 0."""
    network: Any = load(RECIPE, case, config_of(case), tmp_path).network
    inputs = trunk_inputs(case)
    with torch.inference_mode():
        states, pooled = network.visual_bert(**inputs)[:2]
        logits = network.cls(before_last(states, inputs["attention_mask"]))
    outputs = {"last_hidden_state": states, "pooler_output": pooled, "logits": logits}
    outputs["logits_when_labels_given"] = torch.log_softmax(logits, dim=-1)
    assert_inference_outputs(case, as_arrays(outputs))


@pytest.mark.parametrize("case", ANSWERING, ids=str)
def test_the_graph_answers_like_transformers_own_class(case: Case, tmp_path: Path) -> None:
    from transformers import VisualBertConfig, VisualBertForQuestionAnswering

    theirs = VisualBertForQuestionAnswering(VisualBertConfig(**case.config["hyperparameters"]))
    state = read_checkpoint(case.folder / "state_dict.safetensors")
    parameters = theirs.state_dict()
    load_into(theirs, {name: x for name, x in state.items() if name in parameters}, "visual_bert")
    inputs = trunk_inputs(case)
    del inputs["token_type_ids"], inputs["visual_token_type_ids"]
    with torch.inference_mode():
        expected = theirs.eval()(**inputs).logits.numpy()
    names = ("text_ids", "text_mask", "visual", "visual_mask")
    arrays = dict(zip(names, (x.numpy() for x in inputs.values()), strict=True))
    model = load(RECIPE, case, config_of(case), tmp_path)
    outputs = model.run(
        "model", **{**arrays, "visual_mask": arrays["visual_mask"].astype(np.int64)}
    )
    assert_close(outputs["logits"], expected, str(case))


@pytest.mark.parametrize(
    "case", training_cases("visualbert", "VisualBertForQuestionAnswering"), ids=str
)
def test_the_loss_of_answering(case: Case, tmp_path: Path) -> None:
    network: Any = load(RECIPE, case, config_of(case), tmp_path).network
    inputs = trunk_inputs(case)
    states = network.visual_bert(**inputs)[0]
    logits = network.cls(before_last(states, inputs["attention_mask"]))
    loss = soft_targets_kl(logits, torch.from_numpy(case.arrays("inputs")["labels"]))
    assert_training_outputs(case, {"kl_loss": loss})


@pytest.mark.parametrize("case", PRETRAINING, ids=str)
def test_every_inference_output_of_pretraining(case: Case, tmp_path: Path) -> None:
    state = read_checkpoint(case.folder / "state_dict.safetensors")
    config = RECIPE.complete_config(config_of(case), state, case.folder)
    network = load_network(RECIPE, state, config)
    inputs = trunk_inputs(case)
    tensors = {name: torch.from_numpy(x) for name, x in case.arrays("inputs").items()}
    targets = {name: tensors[name] for name in ("labels", "sentence_image_labels")}
    with torch.inference_mode():
        plain = network(**inputs, **targets)
        alignment = network(**inputs, image_text_alignment=tensors["image_text_alignment"])
    outputs = {
        "loss": plain.loss,
        "prediction_logits": plain.prediction_logits,
        "seq_relationship_logits": plain.seq_relationship_logits,
        "prediction_logits_with_alignment": alignment.prediction_logits,
        "seq_relationship_logits_with_alignment": alignment.seq_relationship_logits,
    }
    assert_inference_outputs(case, as_arrays(outputs))
    with pytest.raises(ExportError, match="no head that answers requests"):
        RECIPE.serve(config, tmp_path)


@pytest.mark.parametrize("name", ["visualbert-vqa", "visualbert-vqa-coco-pre"])
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name)
