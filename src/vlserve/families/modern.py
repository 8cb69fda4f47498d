"""The modern tagger's network and its config: export/modern.py."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.families.config_file import check_positions
from vlserve.models.bert import BertConfig, BertEncoder, LayersConfig
from vlserve.models.coattention import CoAttention, KeysConfig
from vlserve.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput

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
    """Tokens of a title, [CLS] and [SEP] among them."""
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    image: ImageInput
    image_encoder: EfficientNetLiteConfig = EfficientNetLiteConfig()
    second_image_encoder: EfficientNetLiteConfig | None = None
    """Its cells are as many as those of the first."""
    text: BertConfig
    text_layers: int = Field(default=1, ge=1)
    """How many of the text encoder's last layers the head sees."""
    head: Literal["fused", "linear"] = "fused"
    hidden: int = Field(default=64, ge=1)
    """Width of the two streams in co-attention."""
    heads: int = Field(default=4, ge=1)
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        check_positions(self.max_length, self.text.positions)
        if self.text_layers > self.text.layers:
            raise ValueError(f"text_layers: the text encoder has {self.text.layers}")
        sizes = {x.feature_map(self.image.height, self.image.width) for x in self.image_encoders}
        if len(sizes) > 1:
            raise ValueError("second_image_encoder has not as many cells as image_encoder")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        if len(self.vocabulary) != self.text.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} tokens, "
                f"the text encoder {self.text.vocabulary}"
            )
        return self

    @property
    def image_encoders(self) -> tuple[EfficientNetLiteConfig, ...]:
        second = self.second_image_encoder
        return (self.image_encoder,) if second is None else (self.image_encoder, second)

    @property
    def features(self) -> int:
        """Of a cell."""
        return sum(encoder.features for encoder in self.image_encoders)

    @property
    def width(self) -> int:
        """Of a piece's state."""
        return self.text_layers * self.text.hidden

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
        if config.second_image_encoder is not None:
            self.second_image = EfficientNetLite(config.second_image_encoder)
        self.text = BertEncoder(config.text)
        self.image_encoders, self.text_layers = len(config.image_encoders), config.text_layers

    def extra_repr(self) -> str:
        return f"text_layers={self.text_layers}"

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> dict[str, Tensor]:
        """image (batch, 3, height, width), text_ids and text_mask (batch, text) -> ``visual``
        (batch, cells, features), ``text_states`` (batch, text, width), the last layer's last."""
        maps = [self.image.feature_map(image)]
        if self.image_encoders > 1:
            maps.append(self.second_image.feature_map(image))
        visual = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
        last = len(self.text.layers)
        first = last - self.text_layers + 1
        states = [self.text.run(self.text.embeddings(text_ids), text_mask, (), 0, first)]
        for layer in range(first, last):
            states.append(self.text.run(states[-1], text_mask, (), layer, layer + 1))
        return {"visual": visual, "text_states": torch.cat(states, dim=2)}


class FusedHead(nn.Module):
    """What is trained, with co-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, features, hidden = config.width, config.features, config.hidden
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
        self.widths = (config.text.hidden,) * config.text_layers
        self.features = tuple(encoder.features for encoder in config.image_encoders)
        self.pieces = nn.Embedding(config.text.vocabulary, len(config.labels))
        self.classifier = nn.Linear(config.width + config.features, len(config.labels))
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
        """Return what `logits` takes, in which no weight is. The means of each layer's states and
        of each encoder's cells count by their direction, texts as much as images."""
        words = text_mask
        for token in self.no_words:
            words = words * (text_ids != token).to(words.dtype)
        texts = directions(mean_of_seen(text_states, words), self.widths)
        features = torch.cat([texts, directions(visual.mean(dim=1), self.features)], dim=1)
        return {"features": features, "text_ids": text_ids, "words": words}

    def logits(self, features: Tensor, text_ids: Tensor, words: Tensor) -> Tensor:
        """features (batch, width + features), text_ids and words (batch, text) -> logits (batch,
        labels)."""
        count = words.sum(dim=1, keepdim=True).to(features.dtype)  # (batch, 1)
        pieces = mean_of_seen(self.pieces(text_ids), words) * count.sqrt()
        logits: Tensor = self.classifier(features) + WORDS_SHARE * pieces
        return logits


HEADS: Mapping[str, type[FusedHead | LinearHead]] = {"fused": FusedHead, "linear": LinearHead}


def directions(means: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return (batch, all widths) with each part of that width as a unit vector, divided by the root
    of how many there are: as a whole they are one again."""
    parts = [F.normalize(part, dim=1) for part in torch.split(means, list(widths), dim=1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) / len(parts) ** 0.5


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
