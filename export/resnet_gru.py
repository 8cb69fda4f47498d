"""ResNet-GRU tagger: cover image + title -> tags.

    image (batch, 3, height, width) -> ResNet -> pooled features -> resfc -> (batch, 2 * hidden)
    title (batch, text) -> token_embedding -> bidirectional GRU -> pooled -> (batch, 2 * hidden)
    logits (batch, labels) = fc(image vector + title vector)

Two poolings of the title. ``final_states``: the state of each direction after the text's last
character, whatever the padding; for new training. ``last_step``: the GRU's output at the last,
usually padded, position, as in older code (``gru_output[:, -1]``): its backward half has seen one
step, and the answer depends on padding to ``max_length``; only to serve checkpoints trained so.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from torch import Tensor, nn

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.families.config_file import parse_config, read_names
from vlserve.models.keys import check_keys
from vlserve.models.resnet import ResNet, ResNetConfig
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput, TensorSpec, TextInput
from vlserve.training.options import PAD_ID, UNKNOWN_ID, TrainOptions
from vlserve.training.plan import DataFacts
from vlserve.training.vocabulary import build_vocabulary

VOCABULARY = "vocabulary.json"


class Config(BaseModel):
    """config.json beside a checkpoint. Fields that a checkpoint's tensors show may be left out
    there: hidden, embedding_size, gru_layers, vocabulary_size, resnet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["resnet_gru"] = "resnet_gru"
    labels: tuple[str, ...] = Field(min_length=1)
    multi_label: bool = False
    vocabulary: dict[str, int]
    """Character -> id; in the file also the name of a JSON file beside it."""
    max_length: int = Field(ge=1)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    pad_id: int = Field(default=0, ge=0)
    unknown_id: int = Field(default=0, ge=0)
    image: ImageInput
    pooling: Literal["final_states", "last_step"] = "last_step"
    hidden: int = Field(ge=1)
    embedding_size: int = Field(ge=1)
    gru_layers: int = Field(default=2, ge=1)
    vocabulary_size: int = Field(default=0, ge=0)
    """Rows of the embedding; 0: as many as the ids need."""
    resnet: ResNetConfig = ResNetConfig()
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _ids_have_rows(self) -> Self:
        least_rows = max([self.pad_id, self.unknown_id, *self.vocabulary.values()]) + 1
        if 0 < self.vocabulary_size < least_rows:
            raise ValueError(
                f"ids go up to {least_rows - 1}, but the embedding has {self.vocabulary_size} rows"
            )
        if min(self.vocabulary.values(), default=0) < 0:
            raise ValueError("vocabulary has a negative id")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        return self

    @property
    def embedding_rows(self) -> int:
        return self.vocabulary_size or (
            max([self.pad_id, self.unknown_id, *self.vocabulary.values()]) + 1
        )


class ResNetGRU(nn.Module):
    """The tagger; parameter names are those of its checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = 2 * config.hidden
        self.pooling = config.pooling
        self.resnet_model = ResNet(config.resnet)
        self.resfc = nn.Linear(self.resnet_model.channels, width)
        self.token_embedding = nn.Embedding(config.embedding_rows, config.embedding_size)
        self.gru = nn.GRU(
            config.embedding_size,
            config.hidden,
            config.gru_layers,
            batch_first=True,
            bidirectional=True,
        )
        self.fc = nn.Linear(width, len(config.labels))

    def forward(self, image: Tensor, text_ids: Tensor, text_length: Tensor | None = None) -> Tensor:
        """image (batch, 3, height, width), text_ids (batch, text), text_length (batch) in
        characters, which ``final_states`` needs -> logits (batch, labels)."""
        image_vector = self.resfc(self.resnet_model(image))  # (batch, 2 * hidden)
        embedded = self.token_embedding(text_ids)  # (batch, text, embedding)
        if self.pooling == "last_step":
            outputs, _ = self.gru(embedded)  # (batch, text, 2 * hidden)
            text_vector = outputs[:, -1]
        else:
            assert text_length is not None, "final_states needs text_length"
            text_vector = self._final_states(embedded, text_length)
        logits: Tensor = self.fc(image_vector + text_vector)
        return logits

    def _final_states(self, x: Tensor, length: Tensor) -> Tensor:
        """What a GRU over packed sequences ends with: (batch, text, embedding), (batch) ->
        (batch, 2 * hidden). Each direction runs forwards on its own, the backward one over text
        reversed within its length, since packed sequences cannot be exported."""
        length = length.clamp(min=1)  # an empty title counts as one character of padding
        last = (length - 1).unsqueeze(1)  # (batch, 1)
        steps = torch.arange(x.shape[1], device=x.device).unsqueeze(0)  # (1, text)
        mirror = torch.where(steps <= last, last - steps, steps)  # (batch, text), its own inverse
        forwards = backwards = x
        for layer in range(self.gru.num_layers):
            forwards = self._direction(x, f"l{layer}")  # (batch, text, hidden)
            backwards = self._direction(_take(x, mirror), f"l{layer}_reverse")
            x = torch.cat([forwards, _take(backwards, mirror)], dim=2)
        return torch.cat([_take(forwards, last), _take(backwards, last)], dim=2).squeeze(1)

    def _direction(self, x: Tensor, suffix: str) -> Tensor:
        """One direction of one layer: (batch, text, features) -> (batch, text, hidden)."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self.gru, f"{name}_{suffix}") for name in names]
        start = x.new_zeros(1, x.shape[0], self.gru.hidden_size)
        outputs, _ = torch.gru(x, start, weights, True, 1, 0.0, False, False, True)
        return outputs


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """(batch, text, features) at (batch, n) -> (batch, n, features)."""
    return x.gather(1, positions.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Options(TrainOptions):
    """Defaults suit a few thousand items or fewer without pretrained weights."""

    resnet_layers: Annotated[tuple[int, int, int, int], BeforeValidator(_split)] = (2, 2, 2, 2)
    resnet_width: int = Field(default=64, ge=1)
    hidden: int = Field(default=128, ge=1)
    embedding_size: int = Field(default=64, ge=1)
    gru_layers: int = Field(default=1, ge=1)
    min_count: int = Field(default=2, ge=1)
    """A character that fewer training titles' characters show counts as unknown."""


class Training:
    """See vlserve.training.plan.TrainingPlan: the whole network, from random weights."""

    options = Options
    frozen = None
    trained = ""

    def new_config(self, options: Options, facts: DataFacts) -> dict[str, Any]:
        return {
            "family": "resnet_gru",
            "labels": list(facts.labels),
            "multi_label": facts.multi_label,
            "vocabulary": build_vocabulary(facts.titles, options.min_count),
            "max_length": options.max_length,
            "text_cleaning": options.text_cleaning,
            "pad_id": PAD_ID,
            "unknown_id": UNKNOWN_ID,
            "image": options.image.model_dump(mode="json"),
            "pooling": "final_states",
            "hidden": options.hidden,
            "embedding_size": options.embedding_size,
            "gru_layers": options.gru_layers,
            "resnet": {"layers": list(options.resnet_layers), "width": options.resnet_width},
            "training": dict(facts.training),
        }

    def pretrained(self) -> dict[str, Tensor]:
        return {}


class ResNetGRURecipe:
    """See vlserve.exporter.recipe.Recipe."""

    training = Training()

    spec = Spec(
        family="resnet_gru",
        tasks=("tag",),
        reads=(
            "what `vlserve train resnet_gru` writes",
            "the tutorial's, with or without resnet_model.fc",
        ),
        golden=("resnet",),
    )

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        sizes = shown_by(state)
        full_config = {**config, **sizes}
        wrong = [
            f"{name}: config.json says {config[name]}, the checkpoint has {value}"
            for name, value in sizes.items()
            if name in config and not _agrees(config[name], value)
        ]
        if isinstance(config.get("vocabulary"), str):
            full_config["vocabulary"] = read_names(folder / config["vocabulary"], "vocabulary")
        settings, rows = parse(full_config), state["fc.weight"].shape[0]
        if len(settings.labels) != rows:
            count = len(settings.labels)
            wrong.append(f"labels: config.json names {count}, the checkpoint has {rows}")
        if wrong:
            raise CheckpointMismatch("; ".join(wrong))
        return settings.model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ResNetGRU(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Drops ``resnet_model.fc``: torchvision's unused 1000-way head, or ``resfc`` again."""
        for name in ("weight", "bias"):
            head, resfc = state.get(f"resnet_model.fc.{name}"), state.get(f"resfc.{name}")
            if head is None or resfc is None or head.shape[0] == 1000:
                continue
            if head.shape == resfc.shape and not torch.equal(head, resfc):
                raise CheckpointMismatch(
                    f"resnet_model.fc.{name} has the shape of resfc.{name} but other values: "
                    "neither the 1000-way head nor an alias of resfc"
                )
        return {name: x for name, x in state.items() if not name.startswith("resnet_model.fc.")}

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        by_id = dict(sorted(settings.vocabulary.items(), key=lambda item: item[1]))
        (assets / VOCABULARY).write_text(json.dumps(by_id, indent=0) + "\n", encoding="ascii")
        text = TextInput(
            tokenizer="characters",
            file=f"assets/{VOCABULARY}",
            max_length=settings.max_length,
            pad_id=settings.pad_id,
            unknown_id=settings.unknown_id,
            pad_to_max=settings.pooling == "last_step",
            cleaning=settings.text_cleaning,
        )
        return Served(
            task="tag",
            image=settings.image,
            text=text,
            labels=settings.labels,
            multi_label=settings.multi_label,
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        settings = parse(config)
        image = ("batch", 3, settings.image.height, settings.image.width)
        inputs = [
            TensorSpec(name="image", dtype="float32", dims=image),
            TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
        ]
        if settings.pooling == "final_states":
            inputs.append(TensorSpec(name="text_length", dtype="int64", dims=("batch",)))
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", len(settings.labels)))
        return {"model": GraphPlan(network, tuple(inputs), (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings, random = parse(config), torch.Generator().manual_seed(seed)
        batch, text = sizes["batch"], sizes["text"]
        image = (batch, 3, settings.image.height, settings.image.width)
        ids = torch.randint(0, settings.embedding_rows, (batch, text), generator=random)
        length = torch.randint(1, text + 1, (batch,), generator=random)
        length[0] = max(1, text - 1)  # even a batch of one holds padding
        ids[torch.arange(text) >= length.unsqueeze(1)] = settings.pad_id
        inputs = {"image": torch.randn(image, generator=random), "text_ids": ids}
        if settings.pooling == "final_states":
            inputs["text_length"] = length
        return inputs


def parse(config: Mapping[str, Any]) -> Config:
    """Raises ExportError that names each field that is missing or wrong."""
    return parse_config(Config, config, "resnet_gru")


def shown_by(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of Config that a checkpoint's tensors show; CheckpointMismatch if it is of
    another family."""
    stages = [_count(state, rf"resnet_model\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    requirements = ["resnet_model.conv1.weight", "token_embedding.weight", "fc.weight"]
    requirements += ["gru.weight_hh_l0", "gru.weight_hh_l0_reverse", "resfc.weight"]
    requirements += [f"resnet_model.layer{index}.0.conv1.weight" for index in (1, 2, 3, 4)]
    prefixes = ("resnet_model.", "resfc.", "token_embedding.", "gru.", "fc.")
    check_keys(
        "resnet_gru",
        missing=[name for name in requirements if name not in state],
        unexpected=[name for name in state if not name.startswith(prefixes)],
    )
    rows, embedding_size = state["token_embedding.weight"].shape
    bottleneck = "resnet_model.layer1.0.conv3.weight" in state
    return {
        "hidden": state["gru.weight_hh_l0"].shape[1],
        "gru_layers": _count(state, r"gru\.weight_hh_l(\d+)$"),
        "embedding_size": embedding_size,
        "vocabulary_size": rows,
        "resnet": {
            "block": "Bottleneck" if bottleneck else "BasicBlock",
            "layers": stages,
            "width": state["resnet_model.conv1.weight"].shape[0],
        },
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes in the checkpoint's keys."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _agrees(entry: Any, size: Any) -> bool:
    """What config.json says is what the tensors show; parts that it leaves out do not count."""
    if isinstance(size, dict) and isinstance(entry, Mapping):
        return all(_agrees(value, size.get(name)) for name, value in entry.items())
    return bool(entry == size)


RECIPE = ResNetGRURecipe()
