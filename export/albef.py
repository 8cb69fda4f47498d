"""ALBEF: match, embed and retrieve, answer, reason over two images, entail, ground.

    image (batch, 3, height, width) -> ViT -> image_states (batch, patches, hidden)
    text (batch, text) -> BERT layers below the fusion layer -> text_states, which look at no image
    fusion = the layers from there on, with cross-attention to the image states

    match    cosine of both unit vectors; a head on fusion's first state: match or not
    answer   a decoder reads the fused question and ranks given answers
    reason   two images, which fusion's layers look at in turn: is the sentence true of them?
    entail   contradiction, neutral or entailment
    ground   Grad-CAM of the match, or of the cosine: where in the image the text is

Li et al., Align before Fuse (arXiv:2107.07651), github.com/salesforce/ALBEF.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.text_cleaning import clean_first
from vlserve.exporter.wordpiece import wordpiece_input
from vlserve.families import vision_text as parts
from vlserve.families.config_file import parse_config
from vlserve.families.decoder_graphs import (
    memory_tensors,
    score_inputs,
    score_plan,
    step_inputs,
    step_plan,
)
from vlserve.families.examples import example_inputs
from vlserve.families.vision_text import VisionTextConfig, VisionTextNetwork
from vlserve.models.bert import BertConfig
from vlserve.models.decoder import drop_second_names
from vlserve.models.gradcam import AttentionGradCam, free_sizes
from vlserve.models.keys import check_keys, is_ignored
from vlserve.runtime.manifest import TensorSpec

FAMILY = "albef"
ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
_RETRIEVAL = ("visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head", "temp")
PARTS: Mapping[str, tuple[str, ...]] = {
    "match": _RETRIEVAL,
    "embed": _RETRIEVAL,
    "ground": _RETRIEVAL,
    "answer": ("visual_encoder", "text_encoder", "text_decoder"),
    "reason": ("visual_encoder", "text_encoder", "cls_head"),
    "entail": ("visual_encoder", "text_encoder", "cls_head"),
}
IGNORED = (
    # momentum copies, for training
    r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|cls_head)_m\..+",
    r"(image|text|idx)_queue|queue_ptr",  # negatives from earlier training batches
    r"text_encoder\.cls\..+",  # predicts masked words, in pretraining
    r".+\.position_ids",  # 0, 1, 2, …
)
"""Keys of checkpoints that no task needs."""
LABELS = {
    "reason": ("false", "true"),
    "entail": ("contradiction", "neutral", "entailment"),
}
"""In the order of the classifier's rows."""
IMAGES = 2
"""That a sentence of the task reason is about."""


class Config(VisionTextConfig):
    """See VisionTextConfig. ``task``: by default what the checkpoint was trained for."""

    family: Literal["albef"] = "albef"
    task: Literal["match", "embed", "ground", "answer", "reason", "entail"]
    max_length: int = 30
    encoder: BertConfig
    grad_cam: Literal["itm", "itc"] = "itm"
    """Of the match logit at a cross-attention, a map for each word; or of the cosine at the ViT's
    attention, one map."""
    grad_cam_layer: int = Field(default=8, ge=0)

    @model_validator(mode="after")
    def _grad_cam_layer_exists(self) -> Self:
        itm = self.grad_cam == "itm"
        first = self.encoder.first_cross_layer if itm else 0
        last = (self.encoder.layers if itm else self.vision.layers) - 1
        if self.task == "ground" and not first <= self.grad_cam_layer <= last:
            raise ValueError(f"grad_cam_layer must be from {first} to {last}")
        return self


class AlbefNetwork(VisionTextNetwork):
    def __init__(self, config: Config) -> None:
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
        """image (batch, 3, height, width), or (batch, images, 3, height, width)."""
        images = (image,) if image.dim() == 4 else image.unbind(1)
        memories = [self.visual_encoder(one) for one in images]
        states = self.text_encoder(text_ids, text_mask, memories)
        logits: Tensor = self.cls_head(states[:, 0])
        return logits


class MatchGroundGraph(nn.Module):
    """Match logits (batch, 2), and where each word is, (batch, text, rows, columns)."""

    def __init__(self, network: VisionTextNetwork, config: Config, grad_cam: nn.Module) -> None:
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


def match_grad_cam(network: VisionTextNetwork, config: Config) -> AttentionGradCam:
    """Of the match logit, at a cross-attention."""
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

    def __init__(self, network: VisionTextNetwork, config: Config, grad_cam: nn.Module) -> None:
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


def cosine_grad_cam(network: AlbefNetwork, config: Config) -> AttentionGradCam:
    """Of the cosine, at the ViT's attention."""
    hidden = config.vision.hidden
    (batch,) = free_sizes({hidden, config.patches, config.embedding}, 1)
    example = (torch.zeros(batch, config.patches, hidden), torch.zeros(batch, config.embedding))
    block = network.visual_encoder.layers[config.grad_cam_layer]
    scorer = CosineScorer(network, config.grad_cam_layer)
    return AttentionGradCam(scorer, block.attn.attention_map, example)


def ground_plan(
    network: AlbefNetwork,
    config: Config,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> GraphPlan:
    itm = config.grad_cam == "itm"
    kind = MatchGroundGraph if itm else CosineGroundGraph
    cam = match_grad_cam(network, config) if itm else cosine_grad_cam(network, config)
    traced = kind(network, config, cam.scripted())
    return GraphPlan(kind(network, config, cam), inputs, outputs, traced)


class AlbefRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=tuple(PARTS),
        atol=ATOL,
        reads=("ALBEF.pth and its fine-tuned ones (salesforce/ALBEF)",),
        reads_image_settings=True,
        golden=(
            "albef",
            "keys/albef_pretrain",
            "keys/albef_retrieval",
            "keys/albef_vqa",
            "keys/albef_nlvr",
            "keys/albef_ve",
        ),
    )

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        named = own_names(state)
        given = {"task": shown_task(named), **config}
        completed = parts.complete(given, named, folder, FAMILY, PARTS)
        first = "text_encoder.encoder.layer.0.crossattention.self.key.weight"
        types = "text_encoder.embeddings.token_type_embeddings.weight"
        encoder = completed["encoder"]
        check_keys(
            FAMILY,
            missing=[] if encoder["token_types"] else [types],
            unexpected=[] if encoder["first_cross_layer"] else [first],
        )
        return parse(completed).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return AlbefNetwork(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return parts.fit_positions(own_names(state), parse(config))

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        parsed = parse(config)
        tokenizer = parts.tokenizer_of(parsed, "[CLS] $A", added=())
        options: dict[str, Any] = {}
        if parsed.task == "match":
            options["retrieval_score"] = "match_logit"
        if parsed.task == "answer":
            options = parts.ranking_options(parsed, tokenizer, "[CLS]", assets)
            options["first_word_twice"] = True
        # the original cleans what is asked and said of an image, but not its answers
        clean_first(tokenizer, "question" if parsed.task == "answer" else "caption")
        text = wordpiece_input(tokenizer, parsed.max_length, assets, parsed.text_cleaning)
        labels = LABELS.get(parsed.task, parsed.answers)
        return Served(
            task=parsed.task, image=parsed.image, text=text, labels=labels, options=options
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, AlbefNetwork)
        parsed = parse(config)
        inputs, outputs = graph_inputs(parsed), graph_outputs(parsed)
        if parsed.task == "answer":
            assert parsed.decoder is not None
            decoder, pad_id = network.text_decoder, parsed.vocabulary.index("[PAD]")
            encoder = GraphPlan(QuestionGraph(network), inputs["encoder"], outputs["encoder"])
            return {
                "encoder": encoder,
                "step": step_plan(decoder, parsed.decoder),
                "score": score_plan(decoder, parsed.decoder, pad_id),
            }
        if parsed.task == "ground":
            return {"model": ground_plan(network, parsed, inputs["model"], outputs["model"])}
        modules: dict[str, nn.Module] = {}
        if parsed.task in ("match", "embed"):
            modules = {"image": parts.ImageGraph(network), "text": TextGraph(network)}
        if parsed.task == "match":
            modules["fusion"] = FusionGraph(network, parsed.encoder.first_cross_layer)
        if parsed.task in ("reason", "entail"):
            modules["model"] = ClassifierGraph(network)
        return {
            name: GraphPlan(module, inputs[name], outputs[name]) for name, module in modules.items()
        }

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        parsed = parse(config)
        words, pad_id = len(parsed.vocabulary), parsed.vocabulary.index("[PAD]")
        inputs = graph_inputs(parsed)[graph]
        return example_inputs(inputs, sizes, seed, words, pad_id, padded=("answer_ids",))


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    """The inputs of each graph of the config's task."""
    image, text = parts.image_input(config), parts.text_inputs()
    if config.task in ("match", "embed"):
        inputs: dict[str, tuple[TensorSpec, ...]] = {"image": (image,), "text": text}
        if config.task == "match":
            states, _ = graph_outputs(config)["text"]
            inputs["fusion"] = (parts.image_outputs(config)[0], states, text[1])
        return inputs
    if config.task == "answer":
        assert config.decoder is not None
        return {
            "encoder": (image, *text),
            "step": step_inputs(config.decoder),
            "score": score_inputs(config.decoder),
        }
    if config.task == "reason":
        dims = ("batch", IMAGES, *image.dims[1:])
        image = TensorSpec(name="image", dtype="float32", dims=dims)
    return {"model": (image, *text)}


def graph_outputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    """The outputs of each graph of the config's task, but of the decoder's."""

    def floats(name: str, *dims: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", dims=("batch", *dims))

    if config.task in ("match", "embed"):
        text_states = floats("text_states", "text", config.encoder.hidden)
        return {
            "image": parts.image_outputs(config),
            "text": (text_states, parts.embedding_output("text_embedding", config)),
            "fusion": (floats("match_logits", 2),),
        }
    if config.task == "answer":
        assert config.decoder is not None
        return {"encoder": memory_tensors(config.decoder, "text")}
    if config.task == "ground":
        if config.grad_cam == "itm":
            maps = floats("word_maps", "text", *config.grid)
            return {"model": (floats("match_logits", 2), maps)}
        return {"model": (floats("similarity", 1), floats("map", *config.grid))}
    return {"model": (floats("logits", config.classes),)}


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the ignored keys, the decoder's second names, and pretraining's ``bert.``."""
    named = {
        name.replace("text_encoder.bert.", "text_encoder.", 1): tensor
        for name, tensor in state.items()
        if not is_ignored(name, IGNORED)
    }
    drop_second_names(named, "text_decoder.")
    return named


def shown_task(state: Mapping[str, Tensor]) -> str:
    """What the checkpoint was trained for."""
    if any(name.startswith("text_decoder.") for name in state):
        return "answer"
    classifier = state.get("cls_head.2.weight")
    if classifier is None:
        return "match"
    return "reason" if classifier.shape[0] == len(LABELS["reason"]) else "entail"


RECIPE = AlbefRecipe()
