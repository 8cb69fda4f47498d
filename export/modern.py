"""Modern tagger: cover + title -> tags, by encoders that have seen millions of each. With
``task`` answer: image + question -> one of the answers that it was trained on.

    image (batch, 3, height, width) -> EfficientNet-Lite0 -> cells (batch, cells, features)
    title (batch, text)             -> MiniLM             -> states (batch, text, width)
    head ``fused``:
    cells, states -> co-attention -> a mean of each stream (batch, hidden)
    logits (batch, labels) = classifier(mean of the cells, mean of the states)
                           + fused(both means after co-attention) + mean of the pieces' own rows
    head ``linear``:
    logits (batch, labels) = classifier(mean of the cells, mean of the words' states)
                           + sum of the words' own rows, by the root of their number

EfficientNet-Lite0 knows ImageNet, MiniLM-L6 sentences; both stay as they are, and what is trained
is the head on top: ``fused`` by gradient steps, ``linear``, which cannot learn a thousand titles by
heart as easily, to the one optimum that it has. Rows of every piece's own beside the states of a
deep network are the wide part of Cheng et al., Wide & Deep (arXiv:1606.07792). Titles pass through
MiniLM's WordPiece vocabulary: what it lacks, most of Chinese among it, becomes ``[UNK]``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.errors import ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.wordpiece import read_vocabulary, wordpiece, wordpiece_input
from vlserve.families.config_file import (
    check_against_tensors,
    check_positions,
    parse_config,
    section,
    vocabulary_of,
)
from vlserve.families.examples import example_inputs
from vlserve.models.bert import BertConfig, BertEncoder, LayersConfig, bert_sizes
from vlserve.models.coattention import CoAttention, KeysConfig
from vlserve.models.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    efficientnet_lite_sizes,
)
from vlserve.models.keys import check_keys, foreign_keys
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput, TensorSpec
from vlserve.training.options import TrainOptions
from vlserve.training.plan import DataFacts
from vlserve.training.pretrained import image_weights, text_folder, text_weights

FAMILY = "modern"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""EfficientNet-Lite's own: (x - 127) / 128 of bytes."""
TEXT_HEADS = 12
"""Of MiniLM; a checkpoint does not show its heads."""
WORDS_SHARE = 0.5
"""Length of what a linear head sees of a title's words, for 1 of each mean."""


class Config(BaseModel):
    """config.json beside a checkpoint. What its tensors show may be left out there: text but its
    heads, image_encoder but its stages, hidden, pieces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["modern"] = "modern"
    task: Literal["tag", "answer"] = "tag"
    """``answer``: titles are questions, labels their answers."""
    labels: tuple[str, ...] = Field(min_length=1)
    multi_label: bool = False
    vocabulary: tuple[str, ...]
    """Tokens by id; in the file also the name of a vocab.txt beside it."""
    max_length: int = Field(ge=2)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    """Tokens of a title, [CLS] and [SEP] among them."""
    image: ImageInput
    image_encoder: EfficientNetLiteConfig = EfficientNetLiteConfig()
    text: BertConfig
    head: Literal["fused", "linear"] = "fused"
    hidden: int = Field(default=64, ge=1)
    """Width of the two streams in co-attention."""
    heads: int = Field(default=4, ge=1)
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        check_positions(self.max_length, self.text.positions)
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        if len(self.vocabulary) != self.text.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} tokens, "
                f"the text encoder {self.text.vocabulary}"
            )
        return self

    @property
    def streams(self) -> LayersConfig:
        return LayersConfig(
            hidden=self.hidden, layers=1, heads=self.heads, intermediate=self.hidden
        )


class Encoders(nn.Module):
    """What stays as it was trained elsewhere."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image = EfficientNetLite(config.image_encoder)
        self.text = BertEncoder(config.text)

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> dict[str, Tensor]:
        """image (batch, 3, height, width), text_ids and text_mask (batch, text) -> ``visual``
        (batch, cells, features), ``text_states`` (batch, text, width)."""
        visual = self.image.feature_map(image).flatten(2).transpose(1, 2)
        return {"visual": visual, "text_states": self.text(text_ids, text_mask)}


class FusedHead(nn.Module):
    """What is trained, with co-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, features, hidden = config.text.hidden, config.image_encoder.features, config.hidden
        self.title_norm = nn.LayerNorm(width)
        self.cover_norm = nn.LayerNorm(features)
        self.text = nn.Linear(width, hidden)
        self.visual = nn.Linear(features, hidden)
        self.fusion = CoAttention(config.streams, KeysConfig())
        self.fused = nn.Linear(2 * hidden, len(config.labels), bias=False)
        self.pieces = nn.Embedding(config.text.vocabulary, len(config.labels))
        self.classifier = nn.Linear(width + features, len(config.labels))
        # What could learn a thousand titles by heart starts at nothing.
        nn.init.zeros_(self.fused.weight)
        nn.init.zeros_(self.pieces.weight)

    def forward(
        self, visual: Tensor, text_states: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """visual (batch, cells, features), text_states (batch, text, width), text_ids and
        text_mask (batch, text) -> logits (batch, labels)."""
        every_cell = torch.ones_like(visual[..., 0], dtype=torch.int64)  # (batch, cells)
        words, cells = self.fusion(
            self.text(text_states), text_mask, self.visual(visual), every_cell
        )
        means = (
            self.title_norm(mean_of_seen(text_states, text_mask)),
            self.cover_norm(visual.mean(dim=1)),
        )
        fused = (mean_of_seen(words, text_mask), cells.mean(dim=1))
        pieces = mean_of_seen(self.pieces(text_ids), text_mask)
        logits: Tensor = (
            self.classifier(torch.cat(means, dim=1)) + self.fused(torch.cat(fused, dim=1)) + pieces
        )
        return logits


class LinearHead(nn.Module):
    """What is trained, without hidden layers: its regularised loss is convex."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, features = config.text.hidden, config.image_encoder.features
        self.pieces = nn.Embedding(config.text.vocabulary, len(config.labels))
        self.classifier = nn.Linear(width + features, len(config.labels))
        self.no_words = tuple(config.vocabulary.index(token) for token in ("[CLS]", "[SEP]"))
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(
        self, visual: Tensor, text_states: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """visual (batch, cells, features), text_states (batch, text, width), text_ids and
        text_mask (batch, text) -> logits (batch, labels)."""
        return self.logits(**self.constants(visual, text_states, text_ids, text_mask))

    def constants(
        self, visual: Tensor, text_states: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> dict[str, Tensor]:
        """Return what `logits` takes, in which no weight is. Each mean counts by its direction."""
        words = text_mask
        for token in self.no_words:
            words = words * (text_ids != token).to(words.dtype)
        means = (mean_of_seen(text_states, words), visual.mean(dim=1))
        features = torch.cat([F.normalize(mean, dim=1) for mean in means], dim=1)
        return {"features": features, "text_ids": text_ids, "words": words}

    def logits(self, features: Tensor, text_ids: Tensor, words: Tensor) -> Tensor:
        """features (batch, width + features), text_ids and words (batch, text) -> logits (batch,
        labels)."""
        count = words.sum(dim=1, keepdim=True).to(features.dtype)  # (batch, 1)
        pieces = mean_of_seen(self.pieces(text_ids), words) * count.sqrt()
        logits: Tensor = self.classifier(features) + WORDS_SHARE * pieces
        return logits


HEADS: Mapping[str, type[FusedHead | LinearHead]] = {"fused": FusedHead, "linear": LinearHead}


def mean_of_seen(states: Tensor, mask: Tensor) -> Tensor:
    """(batch, text, width), (batch, text) -> (batch, width)."""
    weights = mask.to(states.dtype).unsqueeze(2)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class Modern(nn.Module):
    """The tagger."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoders(config)
        self.head = HEADS[config.head](config)

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See Encoders and the heads -> logits (batch, labels)."""
        logits: Tensor = self.head(
            **self.encoder(image, text_ids, text_mask), text_ids=text_ids, text_mask=text_mask
        )
        return logits


class Options(TrainOptions):
    """Defaults suit about a thousand items."""

    task: Literal["tag", "answer"] = "tag"
    epochs: int = Field(default=10, ge=1)
    weight_decay: float = Field(default=5.0, ge=0)
    """High: a few hundred steps would not feel less."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    class_weight_power: float = Field(default=0.5, ge=0, le=1)
    augment: bool = False
    max_length: int = Field(default=48, ge=2, le=512)
    """Word pieces of a title that count."""
    head: Literal["fused", "linear"] = "fused"
    hidden: int = Field(default=64, ge=1)
    heads: int = Field(default=4, ge=1)

    @property
    def image(self) -> ImageInput:
        return ImageInput(height=self.image_height, width=self.image_width, mean=MEAN, std=STD)

    @property
    def convex(self) -> bool:
        return self.head == "linear"


class Training:
    """See vlserve.training.plan.TrainingPlan: the encoders are frozen, with the weights that two
    packages of the extra ``pretrained`` bring."""

    options = Options
    frozen = "encoder"
    trained = "head"

    def new_config(self, options: Options, facts: DataFacts) -> dict[str, Any]:
        sizes = bert_sizes(text_weights(), "")
        return {
            "family": FAMILY,
            "task": options.task,
            "labels": list(facts.labels),
            "multi_label": facts.multi_label,
            "vocabulary": read_vocabulary(text_folder() / "vocab.txt"),
            "max_length": options.max_length,
            "text_cleaning": options.text_cleaning,
            "image": options.image.model_dump(mode="json"),
            "text": {**sizes, "heads": TEXT_HEADS},
            "head": options.head,
            "hidden": options.hidden,
            "heads": options.heads,
            "training": dict(facts.training),
        }

    def pretrained(self) -> dict[str, Tensor]:
        image = {f"image.{name}": tensor for name, tensor in image_weights().items()}
        return image | {f"text.{name}": tensor for name, tensor in text_weights().items()}


class ModernRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY, tasks=("tag", "answer"), reads=("what `vlserve train modern` writes",)
    )
    training = Training()

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        try:
            facts = shown_by(state, config.get("head", "fused"))
        except KeyError as error:
            check_keys(FAMILY, [str(error.args[0])], foreign_keys(state, ("encoder.", "head.")))
            raise
        full_config = dict(config)
        for part, sizes in facts["parts"].items():
            values = section(config, part)
            check_against_tensors(values, sizes)
            full_config[part] = values | sizes
        check_against_tensors(config, facts["own"])
        full_config |= facts["own"]
        full_config["text"].setdefault("heads", TEXT_HEADS)
        full_config["vocabulary"] = vocabulary_of(config, folder)
        settings = self.parse(full_config)
        rows = state["head.classifier.weight"].shape[0]
        if len(settings.labels) != rows:
            raise ExportError(
                f"labels: config.json names {len(settings.labels)}, the checkpoint has {rows}"
            )
        return settings.model_dump(mode="json")

    def parse(self, config: Mapping[str, Any]) -> Config:
        """ExportError names each field that is missing or wrong."""
        return parse_config(Config, config, FAMILY)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Modern(self.parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = self.parse(config)
        text = wordpiece_input(
            wordpiece(settings.vocabulary), settings.max_length, assets, settings.text_cleaning
        )
        return Served(
            task=settings.task,
            image=settings.image,
            text=text,
            labels=settings.labels,
            multi_label=settings.multi_label,
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        settings = self.parse(config)
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", len(settings.labels)))
        return {"model": GraphPlan(network, graph_inputs(settings), (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = self.parse(config)
        words, pad_id = settings.text.vocabulary, settings.vocabulary.index("[PAD]")
        return example_inputs(graph_inputs(settings), sizes, seed, words, pad_id)


def graph_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """The inputs of the graph ``model``."""
    image = ("batch", 3, config.image.height, config.image.width)
    return (
        TensorSpec(name="image", dtype="float32", dims=image),
        TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
        TensorSpec(name="text_mask", dtype="int64", dims=("batch", "text")),
    )


def shown_by(state: Mapping[str, Tensor], head: str) -> dict[str, dict[str, Any]]:
    """The fields of Config that tensors show: those of its parts, and its own. KeyError for a
    tensor that a checkpoint must have."""
    own = {} if head == "linear" else {"hidden": state["head.text.weight"].shape[0]}
    parts: dict[str, Any] = {
        "text": bert_sizes(state, "encoder.text."),
        "image_encoder": efficientnet_lite_sizes(state, "encoder.image."),
    }
    return {"own": own, "parts": parts}


RECIPE = ModernRecipe()
