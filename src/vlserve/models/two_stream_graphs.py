"""The graphs that are made of a two-stream network: text alone, and what joins it with regions.

text_ids, text_mask   int64 (batch, text)
visual                float32 (batch, regions, dim)
visual_mask           int64 (batch, regions), 1 for a region and 0 for padding
boxes                 float32 (batch, regions, 5)
"""

from torch import Tensor, nn

from vlserve.models.attention import MASKED
from vlserve.models.two_stream import TwoStreamConfig, TwoStreamEncoder
from vlserve.models.two_stream_heads import (
    Fusion,
    Pooler,
    RegionEmbeddings,
    TokenEmbeddings,
    fuse,
)


class TwoStreamTrunk(nn.Module):
    """All but the heads, under the names of its checkpoints."""

    def __init__(
        self,
        config: TwoStreamConfig,
        words: int,
        positions: int,
        token_types: int,
        task_tokens: int,
        region_dim: int,
    ) -> None:
        super().__init__()
        text, visual = config.text.hidden, config.visual.hidden
        self.embeddings = TokenEmbeddings(words, positions, token_types, task_tokens, text)
        self.v_embeddings = RegionEmbeddings(region_dim, visual)
        self.encoder = TwoStreamEncoder(config)
        self.t_pooler = Pooler(text, config.joint_hidden)
        self.v_pooler = Pooler(visual, config.joint_hidden)


class TextGraph(nn.Module):
    """Text before it sees an image: text_states (batch, text, hidden)."""

    def __init__(self, trunk: TwoStreamTrunk) -> None:
        super().__init__()
        self.embeddings = trunk.embeddings
        self.encoder = trunk.encoder

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        return self.encoder.text_alone(self.embeddings(text_ids), text_mask)


class JointStates(nn.Module):
    """text_states and regions -> the last states of both."""

    def __init__(self, trunk: TwoStreamTrunk) -> None:
        super().__init__()
        self.v_embeddings = trunk.v_embeddings
        self.encoder = trunk.encoder

    def forward(
        self, states: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.encoder.join(states, text_mask, self.v_embeddings(visual, boxes), visual_mask)


class Pooled(nn.Module):
    """text_states and regions -> one vector of both, (batch, joint)."""

    def __init__(self, trunk: TwoStreamTrunk, fusion: Fusion) -> None:
        super().__init__()
        self.joint = JointStates(trunk)
        self.t_pooler, self.v_pooler = trunk.t_pooler, trunk.v_pooler
        self.fusion = fusion

    def forward(
        self, states: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor, boxes: Tensor
    ) -> Tensor:
        text, regions = self.joint(states, text_mask, visual, visual_mask, boxes)
        return fuse(self.t_pooler(text), self.v_pooler(regions), self.fusion)


class FusionGraph(nn.Module):
    """One logit of belonging together, (batch, 1). ``alignment``: the head has two, of belonging
    together and of not, which are one by their difference."""

    def __init__(self, pooled: Pooled, head: nn.Module, alignment: bool) -> None:
        super().__init__()
        self.pooled, self.head, self.alignment = pooled, head, alignment

    def forward(
        self,
        text_states: Tensor,
        text_mask: Tensor,
        visual: Tensor,
        visual_mask: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        logits: Tensor = self.head(self.pooled(text_states, text_mask, visual, visual_mask, boxes))
        return logits[:, :1] - logits[:, 1:] if self.alignment else logits


class ClassifierGraph(nn.Module):
    """Logits (batch, classes) of a text and the regions of an image, or of IMAGES of them."""

    def __init__(self, trunk: TwoStreamTrunk, pooled: Pooled, head: nn.Module) -> None:
        super().__init__()
        self.text = TextGraph(trunk)
        self.pooled, self.head = pooled, head

    def forward(
        self,
        text_ids: Tensor,
        text_mask: Tensor,
        visual: Tensor,
        visual_mask: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        """Compute the head's outputs; visual is (batch, regions, dim) or (batch, IMAGES, …)."""
        states = self.text(text_ids, text_mask)
        if visual.dim() == 3:
            logits: Tensor = self.head(self.pooled(states, text_mask, visual, visual_mask, boxes))
            return logits
        images = visual.shape[1]
        states = states.unsqueeze(1).expand(-1, images, -1, -1).flatten(0, 1)
        text_mask = text_mask.unsqueeze(1).expand(-1, images, -1).flatten(0, 1)
        regions = (visual.flatten(0, 1), visual_mask.flatten(0, 1), boxes.flatten(0, 1))
        pooled = self.pooled(states, text_mask, *regions)
        pairs: Tensor = self.head(pooled.reshape(-1, images * pooled.shape[1]))
        return pairs


class GroundGraph(nn.Module):
    """A score a region, (batch, regions); of what is no region far below all others."""

    def __init__(self, trunk: TwoStreamTrunk, head: nn.Module) -> None:
        super().__init__()
        self.text = TextGraph(trunk)
        self.joint = JointStates(trunk)
        self.head = head

    def forward(
        self,
        text_ids: Tensor,
        text_mask: Tensor,
        visual: Tensor,
        visual_mask: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        states = self.text(text_ids, text_mask)
        _, regions = self.joint(states, text_mask, visual, visual_mask, boxes)
        scores: Tensor = self.head(regions).squeeze(-1)
        return scores + (1.0 - visual_mask.to(scores.dtype)) * MASKED
