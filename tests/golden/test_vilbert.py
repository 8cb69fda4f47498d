"""ViLBERT's network and graphs against vilbert-multi-task's and vilbert_beta's numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.eager_graphs import Loaded, assert_inference_outputs, load
from support.golden_cases import Case, assert_close, cases
from support.published_keys import assert_every_key_is_loaded_or_ignored, words
from support.training_outputs import inference_outputs
from vlserve.exporter.recipe import load_recipe
from vlserve.models.two_stream_heads import fuse
from vlserve.runtime.types import Arrays

RECIPE = load_recipe("vilbert", Path(__file__).parents[2] / "export")
CASES = cases("vilbert")
NAMES = {"input_ids": "input_txt", "image_feat": "input_imgs"}
"""How pretraining's cases call inputs -> how the others do."""
PRETRAINING = {
    "linguisic_prediction": "prediction_scores_t",
    "vision_prediction": "prediction_scores_v",
    "alignment": "seq_relationship_score",
}


def config_of(case: Case) -> dict[str, Any]:
    """The original's own config.json, and what it leaves to others."""
    sizes = case.config["hyperparameters"]
    return {
        **sizes,
        "vocabulary": words(sizes["vocab_size"]),
        "max_length": sizes["max_position_embeddings"],
        "answers": [f"answer{row}" for row in range(case.config.get("num_labels", 3129))],
    }


def load_as(case: Case, root: Path, **options: Any) -> Loaded:
    return load(RECIPE, case, config_of(case) | options, root)


def given_to(model: Loaded, case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """The graphs' inputs, and the token types, which graphs do not take."""
    tensors = {
        NAMES.get(name, name): torch.from_numpy(x) for name, x in case.arrays("inputs").items()
    }
    ids, mask, types = tensors["input_txt"], tensors["attention_mask"], tensors["token_type_ids"]
    if model.config["task_tokens"]:
        task = model.network.get_parameter("bert.embeddings.word_embeddings.weight").shape[0]
        task_ids = task + tensors["task_ids"]
        ids, types = (
            torch.cat([x[:, :1], extra, x[:, 1:]], dim=1)
            for x, extra in ((ids, task_ids), (types, torch.zeros_like(task_ids)))
        )
        mask = torch.cat([torch.ones_like(task_ids), mask], dim=1)
    inputs = {
        "text_ids": ids,
        "text_mask": mask,
        "visual": tensors["input_imgs"],
        "visual_mask": tensors["image_attention_mask"],
        "boxes": tensors["image_loc"],
    }
    return inputs, types


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """What each module put out last."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def watched(encoder: Any) -> dict[str, nn.Module]:
    """Modules whose outputs the originals return as well."""
    maps = {f"attn_t_{i}": x.attention.self.attention_map for i, x in enumerate(encoder.layer)}
    maps |= {f"attn_v_{i}": x.attention.self.attention_map for i, x in enumerate(encoder.v_layer)}
    for index, layer in enumerate(encoder.c_layer):
        maps[f"attn_c_{index}_text_to_vision"] = layer.biattention.text_to_visual
        maps[f"attn_c_{index}_vision_to_text"] = layer.biattention.visual_to_text
        maps[f"connection_{index}"] = layer
    return maps


@torch.inference_mode()
def compute(network: Any, inputs: Mapping[str, Tensor], types: Tensor, fusion: Any) -> Arrays:
    """Everything that vilbert-multi-task puts out, as far as the checkpoint has it."""
    bert, cls = network.bert, network.cls
    with recorded(watched(bert.encoder)) as layer_outputs:
        embedded = bert.embeddings(inputs["text_ids"], types)
        states = bert.encoder.text_alone(embedded, inputs["text_mask"])
        regions = bert.v_embeddings(inputs["visual"], inputs["boxes"])
        text, visual = bert.encoder.join(
            states, inputs["text_mask"], regions, inputs["visual_mask"]
        )
    pooled_t, pooled_v = bert.t_pooler(text), bert.v_pooler(visual)
    pooled = fuse(pooled_t, pooled_v, fusion)
    outputs = {
        "sequence_output_t": text,
        "sequence_output_v": visual,
        "pooled_output_t": pooled_t,
        "pooled_output_v": pooled_v,
        "linguisic_prediction": cls.predictions(text),
        "vision_prediction": cls.imagePredictions(visual),
        "alignment": cls.bi_seq_relationship(pooled),
    }
    head_inputs = {
        "vil_prediction": pooled,
        "vil_prediction_gqa": pooled,
        "vil_logit": pooled,
        "vil_tri_prediction": pooled,
        "linguisic_logit": text,
        "vision_logit": visual,
    }
    outputs |= {
        name: getattr(network, name)(x) for name, x in head_inputs.items() if hasattr(network, name)
    }
    if "vision_logit" in outputs:
        outputs["vision_logit"] += (1.0 - inputs["visual_mask"].unsqueeze(2)) * -10000.0
    if hasattr(network, "vil_binary_prediction") and len(pooled) % 2 == 0:
        outputs["vil_binary_prediction"] = network.vil_binary_prediction(
            pooled.reshape(len(pooled) // 2, -1)
        )
    for name, output in layer_outputs.items():
        if name.startswith("connection"):
            outputs[f"{name}_t"], outputs[f"{name}_v"] = output
        else:
            outputs[name] = output
    return {name: x.numpy() for name, x in outputs.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_inference_output(case: Case, tmp_path: Path) -> None:
    model = load_as(case, tmp_path)
    fusion = case.config["hyperparameters"]["fusion_method"]
    inputs, types = given_to(model, case)
    outputs = compute(model.network, inputs, types, fusion)
    fewer = {name: x[:-1] for name, x in inputs.items()}
    odd = compute(model.network, fewer, types[:-1], fusion)
    # the originals put out the alignment where there is no head for pairs, or no pair
    outputs.setdefault("vil_binary_prediction", outputs["alignment"])
    outputs["vil_binary_prediction_odd_batch"] = odd.get("vil_binary_prediction", odd["alignment"])
    outputs |= {theirs: outputs[name] for name, theirs in PRETRAINING.items()}
    assert_inference_outputs(case, outputs)


HEADS = {
    "answer": ("vil_prediction", "logits"),
    "entail": ("vil_tri_prediction", "logits"),
    "ground": ("vision_logit", "region_scores"),
    "match": ("vil_logit", "match_logits"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_graphs_of_every_task_put_out_their_heads(case: Case, tmp_path: Path) -> None:
    """Over texts of type 0, as requests are."""
    tasks = []
    for task in shown_tasks(case):
        model = load_as(case, tmp_path, task=task)
        fusion = case.config["hyperparameters"]["fusion_method"]
        inputs, types = given_to(model, case)
        if task == "reason":
            even = len(types) // 2 * 2
            inputs, types = {name: x[:even] for name, x in inputs.items()}, types[:even]
            for name in ("text_ids", "text_mask"):  # one text for both images
                inputs[name] = inputs[name][::2].repeat_interleave(2, 0)
        expected = compute(model.network, inputs, torch.zeros_like(types), fusion)
        arrays = {name: x.numpy() for name, x in inputs.items()}
        if task == "match":
            text = {name: arrays.pop(name) for name in ("text_ids", "text_mask")}
            arrays |= model.run("text", **text) | {"text_mask": text["text_mask"]}
            values = model.run("fusion", **arrays)["match_logits"]
            alignment = expected["alignment"]
            reference = expected.get("vil_logit", alignment[:, :1] - alignment[:, 1:])
        elif task == "reason":
            pairs = {
                name: x[::2] if name.startswith("text") else x.reshape(-1, 2, *x.shape[1:])
                for name, x in arrays.items()
            }
            values, reference = (
                model.run("model", **pairs)["logits"],
                expected["vil_binary_prediction"],
            )
        else:
            head, output = HEADS[task]
            values = model.run("model", **arrays)[output]
            reference = expected[head].reshape(values.shape)
        assert_close(values, reference, f"{case}: {task}")
        tasks.append(task)
    assert tasks


def shown_tasks(case: Case) -> list[str]:
    """Those whose head the original put out."""
    outputs = inference_outputs(case)
    tasks = [task for task, (head, _) in HEADS.items() if head in outputs]
    if "vil_tri_prediction" in outputs:
        tasks.append("reason")
    return tasks or ["match"]


@pytest.mark.parametrize(
    "name",
    [
        "vilbert_12in1_multi_task",
        "vilbert_beta_pretrain",
        "vilbert_beta_vqa",
        "vilbert_multitask_dynamic_attention",
        "vilbert_multitask_no_task_tokens",
        "vilbert_pretrain_mt",
    ],
)
def test_every_key_of_a_published_checkpoint_is_loaded_or_ignored(name: str) -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, name)
