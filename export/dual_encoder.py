"""Dual encoder: images and texts as unit vectors of one space, so that a cosine says what goes
together.

    image (batch, 3, height, width) -> EfficientNet-Lite0 -> mean over cells -> projection
    text (batch, text)              -> MiniLM             -> mean over words -> projection

EfficientNet-Lite0 knows ImageNet, MiniLM-L6 sentences; both stay as they are, and what is trained
are the projections.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

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
from vlserve.models.bert import BertConfig, BertEncoder, bert_sizes
from vlserve.models.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    efficientnet_lite_sizes,
)
from vlserve.models.keys import check_keys, foreign_keys
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput, TensorSpec
from vlserve.training.options import PairOptions
from vlserve.training.pretrained import image_weights, text_folder, text_weights

FAMILY = "dual_encoder"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""EfficientNet-Lite's own: (x - 127) / 128 of bytes."""
TEXT_HEADS = 12
"""Of MiniLM; a checkpoint does not show its heads."""
MAX_SCALE = 100.0
"""As in CLIP: a lower temperature than 1 / 100 makes training unstable."""


class Config(BaseModel):
    """config.json beside a checkpoint. What its tensors show may be left out there: text but its
    heads, image_encoder but its stages, embedding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["dual_encoder"] = "dual_encoder"
    vocabulary: tuple[str, ...]
    """Tokens by id; in the file also the name of a vocab.txt beside it."""
    max_length: int = Field(ge=2)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    """Tokens of a text, [CLS] and [SEP] among them."""
    image: ImageInput
    image_encoder: EfficientNetLiteConfig = EfficientNetLiteConfig()
    text: BertConfig
    embedding: int = Field(ge=1)
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        check_positions(self.max_length, self.text.positions)
        if len(self.vocabulary) != self.text.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} tokens, "
                f"the text encoder {self.text.vocabulary}"
            )
        return self


class Encoders(nn.Module):
    """What stays as it was trained elsewhere."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image = EfficientNetLite(config.image_encoder)
        self.text = BertEncoder(config.text)

    def images(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, features)."""
        return self.image.feature_map(image).mean(dim=(2, 3))

    def texts(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """(batch, text) -> (batch, width), the mean of the states that are no padding."""
        states = self.text(text_ids, text_mask)
        mask = text_mask.to(states.dtype).unsqueeze(2)
        mean: Tensor = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return mean


class Head(nn.Module):
    """What is trained."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image = projection(config.image_encoder.features, config.embedding)
        self.text = projection(config.text.hidden, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, features: Tensor) -> Tensor:
        """(batch, features) -> (batch, embedding), unit vectors."""
        return F.normalize(self.image(features), dim=-1)

    def texts(self, features: Tensor) -> Tensor:
        """(batch, width) -> (batch, embedding), unit vectors."""
        return F.normalize(self.text(features), dim=-1)

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)


def projection(width: int, embedding: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embedding))


class DualEncoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoders(config)
        self.head = Head(config)


class ImageGraph(nn.Module):
    def __init__(self, network: DualEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.head.images(self.network.encoder.images(image))


class TextGraph(nn.Module):
    def __init__(self, network: DualEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        return self.network.head.texts(self.network.encoder.texts(text_ids, text_mask))


class Options(PairOptions):
    """Defaults suit one or two thousand images."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=2)
    weight_decay: float = Field(default=0.1, ge=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the encoders' features."""
    max_length: int = Field(default=48, ge=2, le=512)
    """Word pieces of a text that count."""
    embedding: int = Field(default=256, ge=1)

    @property
    def image(self) -> ImageInput:
        return ImageInput(height=self.image_height, width=self.image_width, mean=MEAN, std=STD)


class Training:
    """See vlserve.training.contrastive.PairPlan: the encoders have the weights that two packages of
    the extra ``pretrained`` bring."""

    options = Options

    def new_config(self, options: Options, training: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "family": FAMILY,
            "vocabulary": read_vocabulary(text_folder() / "vocab.txt"),
            "max_length": options.max_length,
            "text_cleaning": options.text_cleaning,
            "image": options.image.model_dump(mode="json"),
            "text": {**bert_sizes(text_weights(), ""), "heads": TEXT_HEADS},
            "embedding": options.embedding,
            "training": dict(training),
        }

    def pretrained(self, options: Options) -> dict[str, Tensor]:
        image = {f"image.{name}": tensor for name, tensor in image_weights().items()}
        return image | {f"text.{name}": tensor for name, tensor in text_weights().items()}


class DualEncoderRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY, tasks=("embed",), reads=("what `vlserve train dual_encoder` writes",)
    )
    training = Training()

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        try:
            embedding = state["head.image.1.weight"].shape[0]
            parts: dict[str, dict[str, Any]] = {
                "text": bert_sizes(state, "encoder.text."),
                "image_encoder": dict(efficientnet_lite_sizes(state, "encoder.image.")),
            }
        except KeyError as error:
            check_keys(FAMILY, [str(error.args[0])], foreign_keys(state, ("encoder.", "head.")))
            raise
        full_config = dict(config) | {"embedding": embedding}
        check_against_tensors(config, {"embedding": embedding})
        for part, sizes in parts.items():
            values = section(config, part)
            check_against_tensors(values, sizes)
            full_config[part] = values | sizes
        full_config["text"].setdefault("heads", TEXT_HEADS)
        full_config["vocabulary"] = vocabulary_of(config, folder)
        return parse(full_config).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return DualEncoder(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        text = wordpiece_input(
            wordpiece(settings.vocabulary), settings.max_length, assets, settings.text_cleaning
        )
        return Served(task="embed", image=settings.image, text=text)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, DualEncoder)
        settings = parse(config)
        inputs = graph_inputs(settings)
        modules = {"image": ImageGraph(network), "text": TextGraph(network)}
        return {
            name: GraphPlan(module, inputs[name], (vector(name, settings),))
            for name, module in modules.items()
        }

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        words, pad_id = settings.text.vocabulary, settings.vocabulary.index("[PAD]")
        return example_inputs(graph_inputs(settings)[graph], sizes, seed, words, pad_id)


def parse(config: Mapping[str, Any]) -> Config:
    """ExportError names each field that is missing or wrong."""
    return parse_config(Config, config, FAMILY)


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    image = ("batch", 3, config.image.height, config.image.width)
    return {
        "image": (TensorSpec(name="image", dtype="float32", dims=image),),
        "text": (
            TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
            TensorSpec(name="text_mask", dtype="int64", dims=("batch", "text")),
        ),
    }


def vector(kind: str, config: Config) -> TensorSpec:
    return TensorSpec(name=f"{kind}_embedding", dtype="float32", dims=("batch", config.embedding))


RECIPE = DualEncoderRecipe()
