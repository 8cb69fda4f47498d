"""Modern tagger: cover + title -> tags, by encoders that have seen millions of each. With
``task`` answer: image + question -> one of the answers that it was trained on.

    image (batch, 3, height, width) -> EfficientNet-Lite -> cells (batch, cells, features)
    title (batch, text)             -> MiniLM            -> states (batch, text, width)
    head ``fused``:
    cells, states -> co-attention -> a mean of each stream (batch, hidden)
    logits (batch, labels) = classifier(mean of the cells, mean of the states)
                           + fused(both means after co-attention) + mean of the pieces' own rows
    head ``linear``:
    logits (batch, labels) = classifier(mean of the cells, mean of the words' states)
                           + sum of the words' own rows, by the root of their number

Features of a second EfficientNet-Lite may stand beside those of the first in each cell, and the
states of several last layers of MiniLM beside each other in each piece.

EfficientNet-Lite knows ImageNet, MiniLM-L6 sentences; both stay as they are, and what is trained
is the head on top: ``fused`` by gradient steps, ``linear``, which cannot learn a thousand titles by
heart as easily, to the one optimum that it has. Rows of every piece's own beside the states of a
deep network are the wide part of Cheng et al., Wide & Deep (arXiv:1606.07792). Titles pass through
MiniLM's WordPiece vocabulary: what it lacks, most of Chinese among it, becomes ``[UNK]``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from vlserve.errors import ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.wordpiece import read_vocabulary, wordpiece, wordpiece_input
from vlserve.families.config_file import (
    check_against_tensors,
    parse_config,
    section,
    vocabulary_of,
)
from vlserve.families.examples import example_inputs
from vlserve.families.modern import Config, Modern
from vlserve.models.bert import bert_sizes
from vlserve.models.efficientnet_lite import efficientnet_lite_sizes
from vlserve.models.keys import check_keys, foreign_keys
from vlserve.runtime.manifest import ImageInput, TensorSpec
from vlserve.training.options import TrainOptions
from vlserve.training.plan import DataFacts
from vlserve.training.pretrained import (
    IMAGE_ENCODERS,
    ImageEncoder,
    image_weights,
    text_folder,
    text_weights,
)

FAMILY = "modern"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""EfficientNet-Lite's own: (x - 127) / 128 of bytes."""
TEXT_HEADS = 12
"""Of MiniLM; a checkpoint does not show its heads."""


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
    image_encoder: ImageEncoder = "efficientnet_lite0"
    second_image_encoder: ImageEncoder | None = None
    """Whose features stand beside those of the first."""
    text_layers: int = Field(default=1, ge=1, le=6)
    """Last layers of MiniLM whose states the head sees."""
    head: Literal["fused", "linear"] = "fused"
    hidden: int = Field(default=64, ge=1)
    heads: int = Field(default=4, ge=1)

    @property
    def image_encoders(self) -> dict[str, ImageEncoder]:
        """By their names in the frozen part."""
        second = self.second_image_encoder
        return {"image": self.image_encoder} | ({"second_image": second} if second else {})

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
            **{
                f"{part}_encoder": IMAGE_ENCODERS[encoder].model_dump(mode="json")
                for part, encoder in options.image_encoders.items()
            },
            "text": {**sizes, "heads": TEXT_HEADS},
            "text_layers": options.text_layers,
            "head": options.head,
            "hidden": options.hidden,
            "heads": options.heads,
            "training": dict(facts.training),
        }

    def pretrained(self, options: Options) -> dict[str, Tensor]:
        image = {
            f"{part}.{name}": tensor
            for part, encoder in options.image_encoders.items()
            for name, tensor in image_weights(encoder).items()
        }
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
    if any(name.startswith("encoder.second_image.") for name in state):
        parts["second_image_encoder"] = efficientnet_lite_sizes(state, "encoder.second_image.")
    return {"own": own, "parts": parts}


RECIPE = ModernRecipe()
