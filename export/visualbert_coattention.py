"""VisualBERT with co-attention: answers questions about images, tags image and text.

    text (batch, text) -> embeddings ------\\  co-attention: each reads the other once, keeps its
    visual features -> projected, embedded -/  own length, plus what it was, normalised
    -> one BERT over both, as in VisualBERT -> states (batch, text + regions, hidden)
    answer   the state of the token before [SEP] -> logits (batch, answers)
    tag      the pooled state of [CLS] -> logits (batch, labels)

Attention to visual tokens, in the co-attention and in every layer after it, is to all of them
(``full``), to means of chunks (``chunk``), or to one of each chunk (``sparse``); see
layers/coattention.py. The variants have the same parameters: those of VisualBERT under the same
names, and ``visual_bert.coattention.*``.

Li et al., VisualBERT (arXiv:1908.03557); Lu et al., ViLBERT (arXiv:1908.02265).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vlserve.exporter.recipe import Spec
from vlserve.families.single_stream import (
    TASKS,
    SingleStreamConfig,
    SingleStreamRecipe,
    text_input,
)
from vlserve.models.coattention import CoAttention, JointEncoder, KeysConfig
from vlserve.training.finetune.regions.plans import SingleStreamPlan
from vlserve.training.single_stream import SingleStreamTraining

ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
IGNORED = (r".+\.position_ids",)  # 0, 1, 2, …
"""Keys of checkpoints that no task needs."""
VISUAL_TYPE, VISUAL_POSITION = 1, 0
"""As in VisualBERT."""
INITIAL_STD = 0.02


class Config(SingleStreamConfig):
    """See SingleStreamConfig."""

    family: Literal["visualbert_coattention"] = "visualbert_coattention"
    task: Literal["answer", "tag"]
    keys: KeysConfig = KeysConfig()


class Embeddings(nn.Module):
    """VisualBERT's, each stream apart."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.encoder
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.hidden)
        self.token_type_embeddings = nn.Embedding(sizes.token_types, sizes.hidden)
        self.visual_token_type_embeddings = nn.Embedding(sizes.token_types, sizes.hidden)
        self.visual_position_embeddings = nn.Embedding(sizes.positions, sizes.hidden)
        self.visual_projection = nn.Linear(config.visual_dim, sizes.hidden)
        self.LayerNorm = nn.LayerNorm(sizes.hidden, sizes.layer_norm_eps)

    def of_text(self, ids: Tensor) -> Tensor:
        """(batch, text) -> (batch, text, hidden); every token is of type 0."""
        positions = self.position_embeddings(torch.arange(ids.shape[1], device=ids.device))
        x = self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0]
        embedded: Tensor = self.LayerNorm(x)
        return embedded

    def of_visual(self, visual: Tensor) -> Tensor:
        """(batch, regions, dim) -> (batch, regions, hidden)."""
        place = self.visual_position_embeddings.weight[VISUAL_POSITION]
        kind = self.visual_token_type_embeddings.weight[VISUAL_TYPE]
        embedded: Tensor = self.LayerNorm(self.visual_projection(visual) + place + kind)
        return embedded


class Pooler(nn.Module):
    """The first state -> (batch, hidden)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.dense(states[:, 0]))


class CoAttentionTrunk(nn.Module):
    """Embeddings, co-attention, joint encoder, pooler; called like transformers' own model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.coattention = CoAttention(config.encoder, config.keys)
        self.encoder = JointEncoder(config.encoder, config.keys)
        self.pooler = Pooler(config.encoder.hidden)
        self.apply(initialise)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_embeds: Tensor,
        visual_attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(batch, text) twice, (batch, regions, dim), (batch, regions) -> states (batch, text +
        regions, hidden), pooled (batch, hidden)."""
        masks = attention_mask, visual_attention_mask
        text = self.embeddings.of_text(input_ids)
        visual = self.embeddings.of_visual(visual_embeds)
        text, visual = self.coattention(text, masks[0], visual, masks[1])
        states = self.encoder(text, masks[0], visual, masks[1])
        return states, self.pooler(states)


def initialise(module: nn.Module) -> None:
    """As BERT begins its training."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class CoAttentionRecipe(SingleStreamRecipe):
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family="visualbert_coattention",
        tasks=TASKS,
        atol=ATOL,
        reads=("what `vlserve train visualbert_coattention` writes",),
    )
    training = SingleStreamTraining("visualbert_coattention")
    config_type = Config
    ignored = IGNORED

    @property
    def finetuning(self) -> SingleStreamPlan:
        return SingleStreamPlan(lambda config, assets: text_input(self.parse(config), assets))

    def trunk(self, config: Config) -> nn.Module:
        return CoAttentionTrunk(config)


RECIPE = CoAttentionRecipe()
