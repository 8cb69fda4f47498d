"""How the VisualBERT families are trained: on images and titles, from random weights, with a ResNet
that makes the visual features learning along. Pretrained weights, where they are at hand, are
exported instead."""

from typing import Any

from pydantic import Field
from torch import Tensor

from vlserve.exporter.wordpiece import SPECIAL
from vlserve.families.single_stream import LAYER_NORM_EPS
from vlserve.models.resnet import ResNetConfig
from vlserve.training.options import TrainOptions
from vlserve.training.plan import DataFacts
from vlserve.training.vocabulary import build_pieces

TOKEN_TYPES = 2


class Options(TrainOptions):
    """Defaults are for a thousand items: minutes on a CPU."""

    max_length: int = Field(default=48, ge=2)
    image_height: int = Field(default=96, ge=16)
    image_width: int = Field(default=96, ge=16)
    resnet_layers: tuple[int, ...] = (1, 1, 1, 1)
    resnet_width: int = Field(default=32, ge=1)
    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    min_count: int = Field(default=3, ge=1)
    """A word that fewer titles show is read letter by letter."""


class SingleStreamTraining:
    """See vlserve.training.plan.TrainingPlan: the whole network, the ResNet too."""

    options = Options
    frozen = None
    trained = ""

    def __init__(self, family: str) -> None:
        self.family = family

    def new_config(self, options: Options, facts: DataFacts) -> dict[str, Any]:
        resnet = ResNetConfig(layers=options.resnet_layers, width=options.resnet_width)
        vocabulary = [*SPECIAL, *build_pieces(facts.titles, options.min_count)]
        encoder = {
            "vocabulary": len(vocabulary),
            "positions": options.max_length,
            "token_types": TOKEN_TYPES,
            "hidden": options.hidden,
            "layers": options.layers,
            "intermediate": 2 * options.hidden,
            "first_cross_layer": options.layers,
            "memory_hidden": options.hidden,
            "heads": options.heads,
            "layer_norm_eps": LAYER_NORM_EPS,
        }
        return {
            "family": self.family,
            "task": "tag",
            "labels": list(facts.labels),
            "multi_label": facts.multi_label,
            "classes": len(facts.labels),
            "vocabulary": vocabulary,
            "max_length": options.max_length,
            "text_cleaning": options.text_cleaning,
            "text_heads": options.heads,
            "encoder": encoder,
            "visual_dim": resnet.features,
            "grid": {
                "image": options.image.model_dump(mode="json"),
                "resnet": resnet.model_dump(mode="json"),
            },
            "training": dict(facts.training),
        }

    def pretrained(self) -> dict[str, Tensor]:
        return {}
