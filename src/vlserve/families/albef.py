"""ALBEF's network, its config, and the graphs that its tasks are exported as: export/albef.py."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan
from vlserve.families import vision_text as parts
from vlserve.families.vision_text import VisionTextConfig, VisionTextNetwork
from vlserve.models.bert import BertConfig
from vlserve.models.gradcam import AttentionGradCam, free_sizes
from vlserve.runtime.manifest import TensorSpec

MAX_WORDS = 30
"""Of a text, where config.json says nothing else."""


class AlbefConfig(VisionTextConfig):
    """See VisionTextConfig. ``task``: by default what the checkpoint was trained for."""

    family: Literal["albef"] = "albef"
    task: Literal["match", "embed", "ground", "answer", "reason", "entail"]
    max_words: int = Field(default=MAX_WORDS, ge=1)
    encoder: BertConfig
    grad_cam: Literal["itm", "itc"] = "itm"
    """Of the match logit at a cross-attention, a map for each word; or of the cosine at the ViT's
    attention, one map."""
    grad_cam_layer: int = Field(default=8, ge=0)

    @model_validator(mode="after")
    def _encoder_reads_text_alone_first(self) -> Self:
        for name in ("token_types", "first_cross_layer"):
            if getattr(self.encoder, name) < 1:
                raise ValueError(f"encoder.{name} must be 1 or more")
        return self

    @model_validator(mode="after")
    def _grad_cam_layer_exists(self) -> Self:
        itm = self.grad_cam == "itm"
        first = self.encoder.first_cross_layer if itm else 0
        last = (self.encoder.layers if itm else self.vision.layers) - 1
        if self.task == "ground" and not first <= self.grad_cam_layer <= last:
            raise ValueError(f"grad_cam_layer must be from {first} to {last}")
        return self


class AlbefNetwork(VisionTextNetwork):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        if config.embedding:
            self.temp = nn.Parameter(torch.tensor(0.07))


class TextGraph(nn.Module):
    """Text before it sees an image: text_states (batch, text, hidden), and its unit vector."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.text_encoder = network.text_encoder
        self.text_proj = network.text_proj

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        text = self.text_encoder
        states = text.run(text.embeddings(text_ids), text_mask, (), 0, text.first_cross_layer)
        return states, parts.embed(self.text_proj, states)


class FusionGraph(nn.Module):
    """Logits of not matching and matching, (batch, 2). ``first``: the layer that text_states go
    into."""

    def __init__(self, network: VisionTextNetwork, first: int) -> None:
        super().__init__()
        self.text_encoder = network.text_encoder
        self.itm_head = network.itm_head
        self.first = first

    def forward(self, image_states: Tensor, text_states: Tensor, text_mask: Tensor) -> Tensor:
        text = self.text_encoder
        states = text.run(text_states, text_mask, (image_states,), self.first, len(text.layers))
        logits: Tensor = self.itm_head(states[:, 0])
        return logits


class QuestionGraph(nn.Module):
    """Image and question -> what the decoder reads of them; see layers/decoder.py."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text_encoder = network.text_encoder
        self.text_decoder = network.text_decoder

    def forward(
        self, image: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states = self.text_encoder(text_ids, text_mask, (self.visual_encoder(image),))
        return *self.text_decoder.memory(states), text_mask.clone()


class ClassifierGraph(nn.Module):
    """Image or images and a sentence -> logits (batch, classes)."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text_encoder = network.text_encoder
        self.cls_head = network.cls_head

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute logits; image is (batch, 3, height, width) or (batch, images, 3, height,
        width)."""
        images = (image,) if image.dim() == 4 else image.unbind(1)
        memories = [self.visual_encoder(pixels) for pixels in images]
        states = self.text_encoder(text_ids, text_mask, memories)
        logits: Tensor = self.cls_head(states[:, 0])
        return logits


class MatchGroundGraph(nn.Module):
    """Match logits (batch, 2), and where each word is, (batch, text, rows, columns)."""

    def __init__(
        self, network: VisionTextNetwork, config: AlbefConfig, grad_cam: nn.Module
    ) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text_encoder = network.text_encoder
        self.layer, self.grid = config.grad_cam_layer, config.grid
        self.grad_cam = grad_cam

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        states, text = self.visual_encoder(image), self.text_encoder
        before = text.run(text.embeddings(text_ids), text_mask, (states,), 0, self.layer)
        logits, cam = self.grad_cam(states, before, text_mask)
        maps = cam[..., 1:].mean(1) * text_mask.unsqueeze(2)  # (batch, text, patches)
        return logits, maps.reshape(*text_mask.shape, *self.grid)


def match_grad_cam(network: VisionTextNetwork, config: AlbefConfig) -> AttentionGradCam:
    """Return the Grad-CAM of the match logit, at a cross-attention."""
    hidden, text_hidden = config.vision.hidden, config.encoder.hidden
    batch, text = free_sizes({hidden, text_hidden, config.patches}, 2)
    example = (
        torch.zeros(batch, config.patches, hidden),
        torch.zeros(batch, text, text_hidden),
        torch.ones(batch, text, dtype=torch.int64),
    )
    layer = network.text_encoder.layers[config.grad_cam_layer]
    scorer = FusionGraph(network, config.grad_cam_layer)
    return AttentionGradCam(scorer, layer.crossattention.self.attention_map, example)


class CosineScorer(nn.Module):
    """Image tokens before the block ``first``, the text's unit vector -> cosine / temp,
    (batch, 1)."""

    def __init__(self, network: AlbefNetwork, first: int) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.vision_proj = network.vision_proj
        self.temp = network.temp
        self.first = first

    def forward(self, tokens: Tensor, text_embedding: Tensor) -> Tensor:
        states = self.visual_encoder.finish(tokens, self.first)
        cosine = (parts.embed(self.vision_proj, states) * text_embedding).sum(1, keepdim=True)
        return cosine / self.temp


class CosineGroundGraph(nn.Module):
    """Cosine / temp (batch, 1), and where the text is, (batch, rows, columns)."""

    def __init__(
        self, network: VisionTextNetwork, config: AlbefConfig, grad_cam: nn.Module
    ) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text = TextGraph(network)
        self.layer, self.grid = config.grad_cam_layer, config.grid
        self.grad_cam = grad_cam

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        _, text_embedding = self.text(text_ids, text_mask)
        tokens = self.visual_encoder.begin(image, self.layer)
        similarity, cam = self.grad_cam(tokens, text_embedding)
        return similarity, cam[:, :, 0, 1:].mean(1).reshape(image.shape[0], *self.grid)


def cosine_grad_cam(network: AlbefNetwork, config: AlbefConfig) -> AttentionGradCam:
    """Return the Grad-CAM of the cosine, at the ViT's attention."""
    hidden = config.vision.hidden
    (batch,) = free_sizes({hidden, config.patches, config.embedding}, 1)
    example = (torch.zeros(batch, config.patches, hidden), torch.zeros(batch, config.embedding))
    block = network.visual_encoder.layers[config.grad_cam_layer]
    scorer = CosineScorer(network, config.grad_cam_layer)
    return AttentionGradCam(scorer, block.attn.attention_map, example)


def ground_plan(
    network: AlbefNetwork,
    config: AlbefConfig,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> GraphPlan:
    itm = config.grad_cam == "itm"
    kind = MatchGroundGraph if itm else CosineGroundGraph
    cam = match_grad_cam(network, config) if itm else cosine_grad_cam(network, config)
    scripted_graph = kind(network, config, cam.scripted())
    return GraphPlan(kind(network, config, cam), inputs, outputs, scripted_graph)
