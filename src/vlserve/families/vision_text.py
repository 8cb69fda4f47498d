"""A vision transformer, and BERTs that look at what it sees.

Which parts a network has follows from its checkpoint: a text encoder, a text decoder, projections
to a common space with a matching head, a classifier.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.errors import ExportError
from vlserve.exporter.wordpiece import wordpiece
from vlserve.families.config_file import (
    check_against_tensors,
    check_positions,
    read_names,
    section,
    vocabulary_of,
)
from vlserve.models.bert import BertConfig, BertEncoder, bert_sizes
from vlserve.models.decoder import TextDecoder
from vlserve.models.keys import check_keys
from vlserve.models.vit import (
    VisionTransformer,
    VitConfig,
    interpolate_positions,
    patch_grid,
    vit_sizes,
)
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput, TensorSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_SIZE = 64
"""Of every published BERT and ViT; a checkpoint does not show its heads."""
ANSWERS = "answers.json"


class VisionTextConfig(BaseModel):
    """A config.json, completed. There, what the tensors show may be left out: vision, encoder,
    decoder, embedding, classes; heads are hidden / 64 unless vision_heads or text_heads says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: tuple[str, ...]
    """Tokens by id; in the file also the name of a vocab.txt beside it."""
    max_length: int = Field(ge=2)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    image: ImageInput
    vision_heads: int | None = None
    vision_layer_norm_eps: float = 1e-6
    text_heads: int | None = None
    text_layer_norm_eps: float = 1e-12
    vision: VitConfig
    encoder: BertConfig | None = None
    decoder: BertConfig | None = None
    embedding: int = Field(default=0, ge=0)
    """Size of the common space; 0: no projections and no matching head."""
    classes: int = Field(default=0, ge=0)
    """Of the classifier; 0: none."""
    answers: tuple[str, ...] = ()
    """The answers to choose from; in the file also the name of a JSON list beside it."""
    candidates: int = Field(default=128, ge=1)
    """Answers that are scored whole."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        patch = self.vision.patch
        if self.image.height % patch or self.image.width % patch:
            raise ValueError(f"image height and width must be multiples of the patch, {patch}")
        for bert in (self.encoder, self.decoder):
            if bert:
                check_positions(self.max_length, bert.positions)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.vision.patch, self.image.height, self.image.width)

    @property
    def patches(self) -> int:
        """Tokens of an image, [CLS] among them."""
        return 1 + self.grid[0] * self.grid[1]


def complete(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    folder: Path,
    family: str,
    parts_of: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return ``config`` with what the tensors show filled in, and the files that it names read.

    ``state`` has the network's names; ``parts_of`` each task are the ones that it must have, and
    no others. CheckpointMismatch where it is otherwise, or where config.json says otherwise than
    the tensors; ExportError for a task that the family does not have.
    """
    if not isinstance(config["task"], str) or config["task"] not in parts_of:
        raise ExportError(f"task {config['task']}: {family} has {', '.join(parts_of)}")
    parts = parts_of[config["task"]]
    prefixes = tuple(f"{part}." for part in parts)
    unexpected_keys = [
        name for name in state if name not in parts and not name.startswith(prefixes)
    ]
    try:
        fields = _shown(config, state, parts)
    except KeyError as error:
        check_keys(family, [str(error.args[0])], unexpected_keys)
        raise
    check_keys(family, [], unexpected_keys)
    check_against_tensors(config, fields)
    side = int((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5) * fields["vision"]["patch"]
    image = {"height": side, "width": side, "mean": CLIP_MEAN, "std": CLIP_STD}
    full_config = {**config, **fields, "image": image | section(config, "image")}
    full_config["vocabulary"] = vocabulary_of(config, folder)
    if isinstance(config.get("answers"), str):
        full_config["answers"] = read_names(folder / config["answers"], "answers")
    return full_config


def _shown(
    config: Mapping[str, Any], state: Mapping[str, Tensor], parts: Sequence[str]
) -> dict[str, Any]:
    """Return what tensors show of a config. KeyError for one that the parts must have."""
    fields: dict[str, Any] = {"vision": vit_sizes(state, "visual_encoder.")}
    if "text_encoder" in parts:
        fields["encoder"] = bert_sizes(state, "text_encoder.")
    if "text_decoder" in parts:
        fields["decoder"] = bert_sizes(state, "text_decoder.bert.")
    for name, sizes in fields.items():
        kind = "vision" if name == "vision" else "text"
        sizes["heads"] = config.get(f"{kind}_heads") or max(1, sizes["hidden"] // HEAD_SIZE)
        eps = VisionTextConfig.model_fields[f"{kind}_layer_norm_eps"].default
        sizes["layer_norm_eps"] = config.get(f"{kind}_layer_norm_eps", eps)
    if "vision_proj" in parts:
        fields["embedding"] = state["vision_proj.weight"].shape[0]
    if "cls_head" in parts:
        fields["classes"] = state["cls_head.2.weight"].shape[0]
    return fields


class VisionTextNetwork(nn.Module):
    """The parts that a checkpoint has, under their names; graphs are made of them."""

    def __init__(self, config: VisionTextConfig) -> None:
        super().__init__()
        image, hidden = config.image, config.vision.hidden
        self.visual_encoder = VisionTransformer(config.vision, image.height, image.width)
        if config.encoder:
            self.text_encoder = BertEncoder(config.encoder)
        if config.decoder:
            self.text_decoder = TextDecoder(config.decoder)
        if config.embedding and config.encoder:
            self.vision_proj = nn.Linear(hidden, config.embedding)
            self.text_proj = nn.Linear(config.encoder.hidden, config.embedding)
            self.itm_head = nn.Linear(config.encoder.hidden, 2)
        if config.classes and config.encoder:
            text = config.encoder.hidden
            self.cls_head = nn.Sequential(
                nn.Linear(text, text), nn.ReLU(), nn.Linear(text, config.classes)
            )


def fit_positions(state: dict[str, Tensor], config: VisionTextConfig) -> dict[str, Tensor]:
    """Return ``state`` with the ViT's position embeddings for the config's image size."""
    key = "visual_encoder.pos_embed"
    if key not in state:
        return state
    return state | {key: interpolate_positions(state[key], *config.grid)}


def embed(projection: nn.Module, states: Tensor) -> Tensor:
    """Return the first token's unit vector, (batch, embedding), of states (batch, tokens,
    hidden)."""
    return F.normalize(projection(states[:, 0]), dim=-1)


class ImageGraph(nn.Module):
    """States of the patches (batch, patches, hidden) and the image's unit vector."""

    def __init__(self, network: VisionTextNetwork) -> None:
        super().__init__()
        self.visual_encoder = network.visual_encoder
        self.vision_proj = network.vision_proj

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        states = self.visual_encoder(image)
        return states, embed(self.vision_proj, states)


def image_input(config: VisionTextConfig) -> TensorSpec:
    size = (config.image.height, config.image.width)
    return TensorSpec(name="image", dtype="float32", dims=("batch", 3, *size))


def image_outputs(config: VisionTextConfig) -> tuple[TensorSpec, TensorSpec]:
    """Return the outputs of ImageGraph; the first is an input of fusion graphs."""
    dims = ("batch", config.patches, config.vision.hidden)
    states = TensorSpec(name="image_states", dtype="float32", dims=dims)
    return states, embedding_output("image_embedding", config)


def embedding_output(name: str, config: VisionTextConfig) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", dims=("batch", config.embedding))


def text_inputs() -> tuple[TensorSpec, TensorSpec]:
    """Return token ids, and 1 where they are no padding."""
    return (
        TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
        TensorSpec(name="text_mask", dtype="int64", dims=("batch", "text")),
    )


def tokenizer_of(config: VisionTextConfig, template: str, extra_tokens: Sequence[str]) -> Tokenizer:
    """Make the tokenizer. ExportError where its tokens are not as many as the checkpoint's."""
    tokenizer = wordpiece(config.vocabulary, template, extra_tokens)
    for bert in (config.encoder, config.decoder):
        if bert and bert.vocabulary != tokenizer.get_vocab_size():
            raise ExportError(
                f"the vocabulary has {tokenizer.get_vocab_size()} tokens, "
                f"the checkpoint {bert.vocabulary}"
            )
    return tokenizer


def ranking_options(
    config: VisionTextConfig, tokenizer: Tokenizer, start: str, assets: Path
) -> dict[str, Any]:
    """Write the answers' token ids, each from ``start`` to [SEP], padded to the longest,
    into ``assets``; says where they are and how many of them are scored whole. ExportError without
    answers."""
    if not config.answers:
        raise ExportError("config.json names no answers: a list, or a JSON file beside it")
    ends = tokenizer.token_to_id(start), tokenizer.token_to_id("[SEP]")
    rows = [
        [ends[0], *tokenizer.encode(answer, add_special_tokens=False).ids, ends[1]]
        for answer in config.answers
    ]
    width, pad_id = max(map(len, rows)), tokenizer.token_to_id("[PAD]")
    padded = [row + [pad_id] * (width - len(row)) for row in rows]
    (assets / ANSWERS).write_text(json.dumps(padded) + "\n", encoding="ascii")
    return {
        "answer_ids": f"assets/{ANSWERS}",
        "candidates": min(config.candidates, len(rows)),
    }
