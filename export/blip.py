"""BLIP: match, embed and retrieve images and texts, answer questions, write captions.

    image (batch, 3, height, width) -> ViT -> image_states (batch, patches, hidden)
    match    cosine of both unit vectors; with [ENC] in front, the text encoder looks at the image
             states, and a head on its first state says whether image and text match
    answer   the same pass over the question; a decoder reads its states and ranks given answers,
             or writes one
    caption  a decoder reads the image states and writes on after the prompt

Li et al., BLIP (arXiv:2201.12086), github.com/salesforce/BLIP. Its own checkpoints and those in
transformers' layout (Salesforce/blip-*, with transformers' config.json) are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vlserve.errors import ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.text_cleaning import Kind, clean_first, cleaning, cut_after
from vlserve.exporter.wordpiece import TOKENIZER, wordpiece_input
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
from vlserve.models.decoder import TextDecoder, drop_second_names
from vlserve.models.keys import check_keys, is_ignored
from vlserve.runtime.decoding_options import Sampling
from vlserve.runtime.manifest import TensorSpec
from vlserve.training.finetune.heads import is_pretrained, of_parts
from vlserve.training.finetune.plan import VisionTextPlan

FAMILY: Final = "blip"
ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "match": ("visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head"),
    "embed": ("visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head"),
    "answer": ("visual_encoder", "text_encoder", "text_decoder"),
    "caption": ("visual_encoder", "text_decoder"),
}
IGNORED = (
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..+",  # momentum copies, for training
    r"(image|text|idx|ptr)_queue|queue_ptr",  # negatives from earlier training batches
    r"temp",  # scales the contrastive loss
    r".+\.position_ids",  # 0, 1, 2, …
)
"""Keys of checkpoints that no task needs."""
TRANSFORMERS_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (
        r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.",
        r"visual_encoder.blocks.\1.attn.qkv.",
    ),
    (
        r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.",
        r"visual_encoder.blocks.\1.attn.proj.",
    ),
    (
        r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.",
        r"visual_encoder.blocks.\1.norm\2.",
    ),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
)
"""transformers' names of the vision part -> the original ones; the text parts are called alike."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens after BERT's: in front of what a decoder writes, and of text that looks at an image."""
MAX_WORDS = 30
WORDS_OF = {"answer": 50}
"""After which the original's evaluations cut what pre_caption and pre_question have cleaned:
coco_karpathy_retrieval_eval and flickr30k_retrieval_eval in data/, and vqa_dataset.py. Then
train_retrieval.py and models/blip_vqa.py cut after 35 tokens."""
LABEL_SMOOTHING = 0.1
"""Of the decoder's training loss, by which the original ranks answers too."""


class Writing(BaseModel):
    """Rules of a beam search; lengths count every token, the prompt's and the end too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beams: int = Field(default=3, ge=1)
    max_length: int = Field(ge=2)
    min_length: int = Field(ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    sampling: Sampling | None = None
    """How captions are drawn where a request asks for it; None: none is."""


WRITING = {
    "answer": Writing(max_length=10, min_length=1),
    "caption": Writing(max_length=20, min_length=5, sampling=Sampling()),
}
"""As in the original's evaluations, and its generate with ``sample`` (models/blip.py)."""


class Config(VisionTextConfig):
    """See VisionTextConfig. ``task``: by default what the checkpoint was trained for."""

    family: Literal["blip"] = "blip"
    task: Literal["match", "embed", "answer", "caption"]
    max_length: int = 35
    max_words: int = Field(default=MAX_WORDS, ge=1)
    prompt: str = "a picture of "
    """What captions begin with, and clients do not see."""
    writing: Writing | None = None

    @model_validator(mode="after")
    def _layers_all_look_at_the_image(self) -> Self:
        for part, bert in (("encoder", self.encoder), ("decoder", self.decoder)):
            for name in ("token_types", "first_cross_layer"):
                if bert and getattr(bert, name):
                    raise ValueError(f"{part}.{name} must be 0")
        return self


class TextGraph(nn.Module):
    """The text's unit vector (batch, embedding); it looks at no image."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.text_encoder = network.text_encoder
        self.text_proj = network.text_proj

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        return parts.embed(self.text_proj, self.text_encoder(text_ids, text_mask))


class FusionGraph(nn.Module):
    """Logits (batch, 2) of not matching and matching."""

    def __init__(self, network: VisionTextNetwork, enc_id: int) -> None:
        super().__init__()
        self.text_encoder = network.text_encoder
        self.itm_head = network.itm_head
        self.enc_id = enc_id

    def forward(self, image_states: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """image_states (batch, patches, hidden), text_ids (batch, text) with [CLS] in front."""
        states = self.text_encoder(begin(text_ids, self.enc_id), text_mask, (image_states,))
        logits: Tensor = self.itm_head(states[:, 0])
        return logits


class QuestionGraph(nn.Module):
    """Image and question -> what the decoder reads of them; see layers/decoder.py."""

    def __init__(self, network: VisionTextNetwork, enc_id: int) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text_encoder = network.text_encoder
        self.text_decoder = network.text_decoder
        self.enc_id = enc_id

    def forward(
        self, image: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        memories = (self.visual_encoder(image),)
        states = self.text_encoder(begin(text_ids, self.enc_id), text_mask, memories)
        return *self.text_decoder.memory(states), text_mask.clone()


class SceneGraph(nn.Module):
    """Image -> what the decoder reads of it."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.text_decoder = network.text_decoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = self.visual_encoder(image)
        everything = torch.ones_like(states[:, :, 0], dtype=torch.int64)
        return *self.text_decoder.memory(states), everything


def begin(text_ids: Tensor, first_id: int) -> Tensor:
    """(batch, text) with another first token."""
    return torch.cat([torch.full_like(text_ids[:, :1], first_id), text_ids[:, 1:]], dim=1)


class BlipRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=tuple(PARTS),
        atol=ATOL,
        reads=(
            "model_base*.pth (salesforce/BLIP)",
            "Salesforce/blip-* (transformers)",
        ),
        reads_image_settings=True,
        golden=(
            "blip",
            "hf",
            "keys/blip_caption_base",
            "keys/blip_itm_base",
            "keys/blip_model_base_retrieval_coco",
            "keys/blip_vqa_base",
        ),
    )

    @property
    def finetuning(self) -> VisionTextPlan:
        return VisionTextPlan(
            family="blip",
            objectives=("retrieve", "answer", "caption", "pretrain"),
            parts=PARTS,
            start="[DEC]",
            smoothing=LABEL_SMOOTHING,
            tokenizer=lambda config: parts.tokenizer_of(parse(config), "$A", ADDED),
            caption=trained_caption,
        )

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        tensors = original_names(state)
        fields = from_transformers(config) if config.get("model_type") == "blip" else config
        fields = {"task": shown_task(tensors), **fields}
        task = str(fields["task"])
        fields = {"max_words": WORDS_OF.get(task, MAX_WORDS), **fields}
        whole = is_pretrained(tensors)
        own = of_parts(tensors, PARTS.get(task, ())) if whole else tensors
        full_config = parts.complete(fields, own, folder, FAMILY, PARTS)
        if whole and task == "match":  # pretraining goes on with the decoder
            caption_tensors = of_parts(tensors, PARTS["caption"])
            captions = parts.complete(
                fields | {"task": "caption"}, caption_tensors, folder, FAMILY, PARTS
            )
            full_config["decoder"] = captions["decoder"]
        for name, prefix in (("encoder", "text_encoder."), ("decoder", "text_decoder.bert.")):
            bert = full_config.get(name) or {"first_cross_layer": 0, "token_types": 0}
            first = f"{prefix}encoder.layer.0.crossattention.self.key.weight"
            types = f"{prefix}embeddings.token_type_embeddings.weight"
            check_keys(
                FAMILY,
                missing=[first] if bert["first_cross_layer"] else [],
                unexpected=[types] if bert["token_types"] else [],
            )
        return parse(full_config).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return VisionTextNetwork(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors, settings = original_names(state), parse(config)
        if is_pretrained(tensors):
            decoder = ("text_decoder",) if settings.decoder else ()
            tensors = of_parts(tensors, (*PARTS[settings.task], *decoder))
        return parts.fit_positions(tensors, settings)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        tokenizer = parts.tokenizer_of(settings, "[CLS] $A [SEP]", ADDED)
        options: dict[str, Any] = {}
        if settings.task == "match":
            options["retrieval_score"] = "match_logit + cosine"
        if settings.answers:
            options |= parts.ranking_options(settings, tokenizer, "[DEC]", assets)
        elif settings.task in WRITING:
            prompt = tokenizer.encode(settings.prompt, add_special_tokens=False).ids
            options |= {
                "tokenizer": f"assets/{TOKENIZER}",
                "prompt_ids": [tokenizer.token_to_id("[DEC]")]
                + (prompt if settings.task == "caption" else []),
                "end_id": tokenizer.token_to_id("[SEP]"),
                **(settings.writing or WRITING[settings.task]).model_dump(mode="json"),
            }
        if settings.task != "caption":  # the original cleans what is said and asked, but no answers
            kind: Kind = "question" if settings.task == "answer" else "caption"
            clean_first(tokenizer, FAMILY, kind, settings.max_words)
        text = wordpiece_input(tokenizer, settings.max_length, assets, settings.text_cleaning)
        return Served(
            task=settings.task,
            image=settings.image,
            text=None if settings.task == "caption" else text,
            labels=settings.answers,
            options=options,
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, VisionTextNetwork)
        settings, inputs = parse(config), graph_inputs(parse(config))
        if settings.task in ("match", "embed"):
            return matching_plans(network, settings, inputs)
        assert settings.decoder is not None
        encoder: nn.Module = SceneGraph(network)
        length: int | str = settings.patches
        if settings.task == "answer":
            encoder, length = QuestionGraph(network, enc_id(settings)), "text"
        decoder: TextDecoder = network.text_decoder
        memory = memory_tensors(settings.decoder, length)
        plans = {
            "encoder": GraphPlan(encoder, inputs["encoder"], memory),
            "step": step_plan(decoder, settings.decoder),
        }
        if "score" in inputs:
            pad_id = settings.vocabulary.index("[PAD]")
            plans["score"] = score_plan(decoder, settings.decoder, pad_id, LABEL_SMOOTHING)
        return plans

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        words, pad_id = len(settings.vocabulary), settings.vocabulary.index("[PAD]")
        inputs = graph_inputs(settings)[graph]
        return example_inputs(inputs, sizes, seed, words, pad_id, padded=("answer_ids",))


def matching_plans(
    network: VisionTextNetwork, config: Config, inputs: Mapping[str, tuple[TensorSpec, ...]]
) -> dict[str, GraphPlan]:
    text_vector = parts.embedding_output("text_embedding", config)
    logits = TensorSpec(name="match_logits", dtype="float32", dims=("batch", 2))
    plans = {
        "image": GraphPlan(parts.ImageGraph(network), inputs["image"], parts.image_outputs(config)),
        "text": GraphPlan(TextGraph(network), inputs["text"], (text_vector,)),
    }
    if "fusion" in inputs:
        fusion = FusionGraph(network, enc_id(config))
        plans["fusion"] = GraphPlan(fusion, inputs["fusion"], (logits,))
    return plans


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    """The inputs of each graph of the config's task."""
    image, text = parts.image_input(config), parts.text_inputs()
    if config.task in ("match", "embed"):
        inputs: dict[str, tuple[TensorSpec, ...]] = {"image": (image,), "text": text}
        if config.task == "match":
            inputs["fusion"] = (parts.image_outputs(config)[0], *text)
        return inputs
    assert config.decoder is not None
    inputs = {"encoder": (image, *text) if config.task == "answer" else (image,)}
    inputs["step"] = step_inputs(config.decoder)
    if config.answers:
        inputs["score"] = score_inputs(config.decoder)
    return inputs


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


def trained_caption(text: str) -> str:
    """What is learnt of a caption: pre_caption of coco_karpathy_train."""
    caption = cleaning(FAMILY, "caption").normalize_str(text)
    return cut_after(MAX_WORDS).normalize_str(caption)


def enc_id(config: Config) -> int:
    return len(config.vocabulary) + ADDED.index("[ENC]")


def original_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of either layout -> the original's, without the ignored ones and second names."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, original in TRANSFORMERS_NAMES:
            name = re.sub(pattern, original, name)
        if not is_ignored(name, IGNORED):
            tensors[name] = tensor
    drop_second_names(tensors, "text_decoder.")
    return tensors


def shown_task(state: Mapping[str, Tensor]) -> str:
    """What the checkpoint was trained for."""
    if any(name.startswith("itm_head.") for name in state):
        return "match"
    return "answer" if any(name.startswith("text_encoder.") for name in state) else "caption"


def from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' config.json -> ours, of which it may hold fields as well."""
    from transformers import BlipConfig

    theirs = BlipConfig(**config).to_dict()
    vision, text = theirs["vision_config"], theirs["text_config"]
    acts = {vision["hidden_act"], text["hidden_act"]}
    if acts != {"gelu"}:
        raise ExportError(f"config.json of a blip checkpoint: hidden_act is {acts}, not gelu")
    return {
        "vision_heads": vision["num_attention_heads"],
        "vision_layer_norm_eps": vision["layer_norm_eps"],
        "text_heads": text["num_attention_heads"],
        "text_layer_norm_eps": text["layer_norm_eps"],
    } | {name: config[name] for name in Config.model_fields if name in config}


RECIPE = BlipRecipe()
