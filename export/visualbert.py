"""VisualBERT: answers questions about images, tags image and text.

    text (batch, text) and visual features (batch, regions, dim) -> embeddings, one after the other
    -> one BERT over both -> states (batch, text + regions, hidden)
    answer   the state of the token before [SEP] -> logits (batch, answers)
    tag      the pooled state of [CLS] -> logits (batch, labels)

Visual features come with the request (of regions, or of a grid's cells), or from a ResNet that
config.json names. All have the visual position 0 and the visual token type 1.

Li et al., VisualBERT (arXiv:1908.03557). The network is transformers' VisualBertModel; checkpoints
are transformers' (uclanlp/visualbert-*), with its config.json, or MMF's (families/mmf.py). Those of
pretraining are read too, heads and all; nothing answers requests by them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.recipe import Spec
from vlserve.families.mmf import transformers_names
from vlserve.families.single_stream import (
    TASKS,
    SingleStreamConfig,
    SingleStreamRecipe,
    text_input,
)
from vlserve.training.finetune.regions.plans import SingleStreamPlan
from vlserve.training.single_stream import SingleStreamTraining

ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
IGNORED = (r".+\.position_ids",)  # 0, 1, 2, …
"""Keys of checkpoints that no task needs."""
SECOND_NAMES: Mapping[str, str] = {
    "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Of parameters that pretraining's head shares; not every checkpoint has them."""


class Config(SingleStreamConfig):
    """See SingleStreamConfig."""

    family: Literal["visualbert"] = "visualbert"


def transformers_config(config: SingleStreamConfig) -> Any:
    """VisualBertConfig of the sizes."""
    from transformers import VisualBertConfig

    encoder = config.encoder
    return VisualBertConfig(
        vocab_size=encoder.vocabulary,
        hidden_size=encoder.hidden,
        visual_embedding_dim=config.visual_dim,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.intermediate,
        max_position_embeddings=encoder.positions,
        type_vocab_size=encoder.token_types,
        layer_norm_eps=encoder.layer_norm_eps,
        pad_token_id=None,
    )


class VisualBertRecipe(SingleStreamRecipe):
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family="visualbert",
        tasks=TASKS,
        atol=ATOL,
        reads=(
            "uclanlp/visualbert-* (transformers), pretraining's too",
            "visual_bert of MMF, and of uclanlp/visualbert, pretraining's too",
            "what `vlserve train visualbert` writes",
        ),
        golden=(
            "visualbert",
            "keys/visualbert-vqa",
            "keys/visualbert-vqa-coco-pre",
        ),
    )
    training = SingleStreamTraining("visualbert")
    config_type = Config
    ignored = IGNORED

    @property
    def finetuning(self) -> SingleStreamPlan:
        return SingleStreamPlan(
            lambda config, assets: text_input(self.parse(config), assets),
            objectives=("answer", "tag", "pretrain"),
        )

    def trunk(self, config: SingleStreamConfig) -> nn.Module:
        from transformers import VisualBertModel

        trunk: nn.Module = VisualBertModel(transformers_config(config))
        return trunk

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        fields = {**config, "answers": config["id2label"]} if "id2label" in config else config
        return super().complete_config(config, transformers_names(state, fields), folder)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = self.parse(config)
        if settings.task != "pretrain":
            return super().build(config)
        from transformers import VisualBertForPreTraining

        network: nn.Module = VisualBertForPreTraining(transformers_config(settings))
        return network

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = super().adapt(transformers_names(state, config), config)
        return with_second_names(tensors) if self.parse(config).task == "pretrain" else tensors


def with_second_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with both names of every shared parameter. CheckpointMismatch where it has both
    and they differ."""
    copies = {second: state[name] for second, name in SECOND_NAMES.items() if name in state}
    for second, tensor in copies.items():
        if not torch.equal(state.get(second, tensor), tensor):
            raise CheckpointMismatch(f"{second} must be {SECOND_NAMES[second]}, but differs")
    return state | copies


RECIPE = VisualBertRecipe()
