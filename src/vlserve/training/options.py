"""What a training run may be told, and the config.json that comes of it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vlserve.errors import SettingsError
from vlserve.runtime.manifest import ImageInput

PAD_ID, UNKNOWN_ID = 0, 1


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class TrainOptions(BaseModel):
    """Defaults suit a few thousand items or fewer without pretrained weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=40, ge=1)
    patience: int = Field(default=10, ge=1)
    """Epochs without a better validation figure until training stops."""
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest rate: reached after ``warm_up``, then a cosine down to nothing."""
    warm_up: float = Field(default=0.1, gt=0, lt=1)
    """Share of all steps."""
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """On embeddings and on the inputs of linear layers."""
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    augment: bool = True
    image_height: int = Field(default=224, ge=16)
    image_width: int = Field(default=224, ge=16)
    resnet_layers: Annotated[tuple[int, int, int, int], BeforeValidator(_split)] = (2, 2, 2, 2)
    resnet_width: int = Field(default=64, ge=1)
    hidden: int = Field(default=128, ge=1)
    embedding_size: int = Field(default=64, ge=1)
    gru_layers: int = Field(default=1, ge=1)
    max_length: int = Field(default=64, ge=1)
    """Characters of a title that count."""
    min_count: int = Field(default=2, ge=1)
    """A character that fewer training titles' characters show counts as unknown."""

    @property
    def image(self) -> ImageInput:
        return ImageInput(height=self.image_height, width=self.image_width)


DEMO_OPTIONS: Mapping[str, Any] = {
    "epochs": 6,
    "patience": 3,
    "learning_rate": 3e-3,
    "resnet_layers": (1, 1, 1, 1),
    "resnet_width": 16,
    "hidden": 64,
    "embedding_size": 32,
    "max_length": 40,
}
"""For the drawn covers: a network that learns them in less than a minute on two cores."""


def parse_options(options: Mapping[str, Any]) -> TrainOptions:
    """Values may be strings, as from ``--set key=value``. SettingsError names each wrong one."""
    try:
        return TrainOptions.model_validate(options)
    except ValidationError as error:
        known = ", ".join(TrainOptions.model_fields)
        wrong = "; ".join(
            f"{item['loc'][0]}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise SettingsError(f"training options: {wrong}. Options are {known}") from error


def checkpoint_config(
    family: str,
    options: TrainOptions,
    *,
    labels: Sequence[str],
    multi_label: bool,
    vocabulary: Mapping[str, int],
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """config.json of a family with one image and one text of characters; ``training`` says where
    the checkpoint comes from."""
    return {
        "family": family,
        "labels": list(labels),
        "multi_label": multi_label,
        "vocabulary": dict(vocabulary),
        "max_length": options.max_length,
        "pad_id": PAD_ID,
        "unknown_id": UNKNOWN_ID,
        "image": options.image.model_dump(mode="json"),
        "pooling": "final_states",
        "hidden": options.hidden,
        "embedding_size": options.embedding_size,
        "gru_layers": options.gru_layers,
        "resnet": {"layers": list(options.resnet_layers), "width": options.resnet_width},
        "training": dict(training),
    }
