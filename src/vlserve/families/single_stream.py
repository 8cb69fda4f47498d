"""One BERT that reads text and visual tokens as one sequence, text first, with a head on top.

    text_ids, text_mask (batch, text); visual (batch, regions, dim), visual_mask (batch, regions)
    trunk    -> states (batch, text + regions, hidden), pooled (batch, hidden)
    answer   cls(state of the token before [SEP]) -> logits (batch, answers)
    tag      classifier(pooled) -> logits (batch, labels)

Li et al., VisualBERT (arXiv:1908.03557), with the parameter names of transformers' classes. What a
family does between its inputs and the states is its trunk.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.wordpiece import wordpiece, wordpiece_input
from vlserve.families.config_file import (
    check_positions,
    listed,
    parse_config,
    read_names,
    vocabulary_of,
)
from vlserve.families.examples import example_inputs
from vlserve.families.grid import (
    PREFIX as GRID,
)
from vlserve.families.grid import (
    GridConfig,
    GridExtractor,
    complete_grid,
    features_plan,
    grid_state,
    image_axes,
)
from vlserve.models.bert import BertConfig, bert_sizes
from vlserve.models.keys import check_keys, foreign_keys, is_ignored
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import RegionInput, TensorSpec, TextInput

TASKS = ("answer", "tag")
HEADS: Mapping[str, str] = {
    "answer": "cls.weight",
    "tag": "classifier.weight",
    "pretrain": "cls.seq_relationship.weight",
}
"""The tensor by which a checkpoint shows its task."""
TRANSFORM_HEADS: Mapping[str, str] = {"answer": "cls.1.weight", "tag": "classifier.1.weight"}
"""The same of a head that begins with a transform."""
CLASSES: Mapping[str, str] = {"answer": "answers", "tag": "labels"}
"""The field of config.json that names the rows of the head."""
TRUNK = "visual_bert."
KNOWN = (TRUNK, "cls.", "classifier.", GRID)
"""How the keys of a checkpoint begin."""
HEAD_SIZE = 64
"""Of every published BERT; a checkpoint does not show its heads."""
LAYER_NORM_EPS = 1e-12
MAX_LENGTH = 128
"""Tokens of a text, unless config.json says otherwise or there are fewer positions."""


class SingleStreamConfig(BaseModel):
    """A config.json, completed. There, what the tensors show may be left out: encoder, visual_dim;
    heads are hidden / 64 unless text_heads says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["answer", "tag", "pretrain"]
    vocabulary: tuple[str, ...]
    """Tokens by id; in the file also the name of a vocab.txt beside it."""
    max_length: int = Field(ge=2)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    """Tokens of a text, [CLS] and [SEP] among them."""
    max_regions: int = Field(default=100, ge=1, le=4096)
    labels: tuple[str, ...] = ()
    """Of the task tag, in the order of the head's rows; or, in the file, a JSON list beside it."""
    multi_label: bool = False
    """Each label has its own sigmoid, instead of one softmax."""
    answers: tuple[str, ...] = ()
    """Of the task answer, likewise."""
    text_heads: int | None = None
    text_layer_norm_eps: float = LAYER_NORM_EPS
    encoder: BertConfig
    visual_dim: int = Field(ge=1)
    """Width of a region's features."""
    classes: int = Field(default=0, ge=0)
    """Rows of the head."""
    head: Literal["linear", "transform"] = "linear"
    """One linear layer, or BERT's transform in front of it, as in MMF."""
    grid: GridConfig | None = None
    """A ResNet that makes the visual features from an image."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        check_positions(self.max_length, self.encoder.positions)
        if self.grid and self.grid.dim != self.visual_dim:
            raise ValueError(
                f"the grid's features are {self.grid.dim} wide, the network reads {self.visual_dim}"
            )
        for kind in CLASSES.values():
            names = getattr(self, kind)
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} repeat")
        return self

    @property
    def regions(self) -> RegionInput:
        cells = self.grid.cells if self.grid else 0
        return RegionInput(dim=self.visual_dim, max_regions=max(self.max_regions, cells))


class SingleStreamNetwork(nn.Module):
    """A trunk, the head of one task, and maybe a ResNet that makes the visual features; graphs are
    made of them."""

    def __init__(self, config: SingleStreamConfig, trunk: nn.Module) -> None:
        super().__init__()
        self.task = config.task
        self.visual_bert = trunk
        hidden, eps = config.encoder.hidden, config.encoder.layer_norm_eps
        head: nn.Module = nn.Linear(hidden, config.classes)
        if config.head == "transform":
            head = nn.Sequential(Transform(hidden, eps), head)
        if config.task == "answer":
            self.cls = head
        else:
            self.classifier = head
        if config.grid:
            self.grid = GridExtractor(config.grid.resnet)

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Run both graphs at once, for training: image (batch, 3, height, width), text_ids and
        text_mask (batch, text) -> logits (batch, classes)."""
        visual = self.grid(image)
        every_cell = torch.ones_like(visual[..., 0], dtype=text_mask.dtype)
        logits: Tensor = LogitsGraph(self, self.task)(text_ids, text_mask, visual, every_cell)
        return logits


class Transform(nn.Module):
    """(batch, hidden) -> (batch, hidden); BERT's in front of its prediction heads."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps)

    def forward(self, state: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(gelu(self.dense(state)))
        return output


class LogitsGraph(nn.Module):
    """Text and visual features -> logits (batch, classes)."""

    def __init__(self, network: SingleStreamNetwork, task: str) -> None:
        super().__init__()
        self.trunk = network.visual_bert
        self.reads_a_token = task == "answer"
        self.head = network.cls if task == "answer" else network.classifier

    def forward(
        self, text_ids: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> Tensor:
        """Compute logits of text_ids and text_mask (batch, text), visual (batch, regions, dim),
        visual_mask (batch, regions)."""
        states, pooled = self.trunk(
            input_ids=text_ids,
            attention_mask=text_mask,
            visual_embeds=visual,
            visual_attention_mask=visual_mask,
        )[:2]
        logits: Tensor = self.head(before_last(states, text_mask) if self.reads_a_token else pooled)
        return logits


def before_last(states: Tensor, text_mask: Tensor) -> Tensor:
    """Return the state of the token before a text's last one, [SEP]: (batch, tokens, hidden),
    (batch, text) -> (batch, hidden). Of a text of one token, that token's."""
    place = (text_mask.sum(1) - 2).clamp(min=0)
    return states[torch.arange(states.shape[0], device=states.device), place]


class SingleStreamRecipe(ABC):
    """See vlserve.exporter.recipe.Recipe. What is left to a family: its spec, its config, its
    trunk, and which keys it ignores."""

    spec: Spec
    config_type: type[SingleStreamConfig] = SingleStreamConfig
    ignored: tuple[str, ...] = ()

    @abstractmethod
    def trunk(self, config: Any) -> nn.Module:
        """Return a module called like transformers' VisualBertModel; it returns states and
        pooled."""

    def parse(self, config: Mapping[str, Any]) -> Any:
        """Return a config of config_type. ExportError names each field that is missing or wrong."""
        return parse_config(self.config_type, config, self.spec.family)

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        own = self.config_type.model_fields
        ours = from_transformers(config, own) if "model_type" in config else dict(config)
        full_config = complete(ours, state, folder, self.spec.family)
        return dict(self.parse(full_config).model_dump(mode="json"))

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = self.parse(config)
        return SingleStreamNetwork(settings, self.trunk(settings))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        settings = self.parse(config)
        tensors = {name: x for name, x in state.items() if not is_ignored(name, self.ignored)}
        return tensors | (grid_state(settings.grid) if settings.grid else {})

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = self.parse(config)
        field = CLASSES.get(settings.task)
        if field is None:
            raise ExportError(
                f"a checkpoint of the task {settings.task} has no head that answers requests: "
                f"train one for {' or '.join(TASKS)}"
            )
        labels: tuple[str, ...] = getattr(settings, field)
        if not labels:
            raise ExportError(f"config.json names no {field}: a list, or a JSON file beside it")
        return Served(
            task=settings.task,
            image=settings.grid.image if settings.grid else None,
            text=text_input(settings, assets),
            regions=settings.regions,
            labels=labels,
            multi_label=settings.multi_label,
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, SingleStreamNetwork)
        settings = self.parse(config)
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", settings.classes))
        model = LogitsGraph(network, settings.task)
        plans = {"model": GraphPlan(model, graph_inputs(settings)["model"], (logits,))}
        if settings.grid:
            plans["features"] = features_plan(network.grid, settings.grid)
        return plans

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = self.parse(config)
        words, pad_id = len(settings.vocabulary), settings.vocabulary.index("[PAD]")
        return example_inputs(graph_inputs(settings)[graph], sizes, seed, words, pad_id)


def graph_inputs(config: SingleStreamConfig) -> dict[str, tuple[TensorSpec, ...]]:
    """Return the inputs of each graph."""
    text, regions = ("batch", "text"), ("batch", "regions")
    inputs: dict[str, tuple[TensorSpec, ...]] = {
        "model": (
            TensorSpec(name="text_ids", dtype="int64", dims=text),
            TensorSpec(name="text_mask", dtype="int64", dims=text),
            TensorSpec(name="visual", dtype="float32", dims=(*regions, config.visual_dim)),
            TensorSpec(name="visual_mask", dtype="int64", dims=regions),
        )
    }
    if config.grid:
        inputs["features"] = (image_axes(config.grid),)
    return inputs


def text_input(config: SingleStreamConfig, assets: Path) -> TextInput:
    """Write the tokenizer into ``assets``. ExportError where its tokens are not as many as
    the checkpoint's."""
    tokenizer = wordpiece(config.vocabulary)
    if tokenizer.get_vocab_size() != config.encoder.vocabulary:
        raise ExportError(
            f"the vocabulary has {tokenizer.get_vocab_size()} tokens, "
            f"the checkpoint {config.encoder.vocabulary}"
        )
    return wordpiece_input(tokenizer, config.max_length, assets, config.text_cleaning)


def complete(
    config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path, family: str
) -> dict[str, Any]:
    """Return ``config`` with what the checkpoint's tensors show filled in, and the files that it
    names read. CheckpointMismatch where the tensors are of another family, or where config.json
    says otherwise than they do; ExportError for a file that cannot be read."""
    try:
        sizes = _shown(config, state)
    except KeyError as error:
        check_keys(family, [str(error.args[0])], foreign_keys(state, KNOWN))
        raise
    wrong = [
        f"{name}: config.json says {config[name]}, the checkpoint has {value}"
        for name, value in sizes.items()
        if name in config and config[name] != value
    ]
    most = min(MAX_LENGTH, sizes["encoder"]["positions"])
    full_config = {"max_length": most, **config, **sizes}
    field = CLASSES.get(full_config["task"])
    if field and isinstance(full_config.get(field), str):
        full_config[field] = read_names(folder / full_config[field], field)
    count = len(listed(full_config.get(field) or (), field)) if field else 0
    if count and count != sizes["classes"]:
        wrong.append(f"{field}: config.json names {count}, the checkpoint has {sizes['classes']}")
    if wrong:
        raise CheckpointMismatch("; ".join(wrong))
    full_config["vocabulary"] = vocabulary_of(config, folder)
    if config.get("grid"):
        full_config["grid"] = complete_grid(config["grid"], folder, state)
    return full_config


def _shown(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return fields of SingleStreamConfig. KeyError for a tensor that a checkpoint must have."""
    heads = {"linear": HEADS, "transform": TRANSFORM_HEADS}
    kinds = [
        (task, kind) for kind, names in heads.items() for task in names if names[task] in state
    ]
    if not kinds:
        raise KeyError(HEADS.get(str(config.get("task")), HEADS["answer"]))
    task, head = kinds[0]
    encoder = bert_sizes(state, TRUNK)
    encoder["heads"] = config.get("text_heads") or max(1, encoder["hidden"] // HEAD_SIZE)
    encoder["layer_norm_eps"] = config.get("text_layer_norm_eps", LAYER_NORM_EPS)
    visual_dim = state[f"{TRUNK}embeddings.visual_projection.weight"].shape[1]
    return {
        "task": task,
        "encoder": encoder,
        "visual_dim": visual_dim,
        "classes": state[heads[head][task]].shape[0],
        "head": head,
    }


def from_transformers(config: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Translate transformers' config.json to ours, of which it may hold the fields ``own`` as well.
    ExportError for what the family does not do."""
    from transformers import VisualBertConfig

    theirs = VisualBertConfig(**{name: x for name, x in config.items() if name not in own})
    for name, default in (("hidden_act", "gelu"), ("bypass_transformer", False)):
        if (value := getattr(theirs, name)) != default:
            raise ExportError(f"config.json: {name} is {value}; only {default} is read")
    encoder = BertConfig(
        vocabulary=theirs.vocab_size,
        positions=theirs.max_position_embeddings,
        token_types=theirs.type_vocab_size,
        hidden=theirs.hidden_size,
        layers=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        intermediate=theirs.intermediate_size,
        first_cross_layer=theirs.num_hidden_layers,
        memory_hidden=theirs.hidden_size,
        layer_norm_eps=theirs.layer_norm_eps,
    )
    ours: dict[str, Any] = {
        "text_heads": encoder.heads,
        "text_layer_norm_eps": encoder.layer_norm_eps,
        "encoder": encoder.model_dump(),
        "visual_dim": theirs.visual_embedding_dim,
    }
    if "id2label" in config:
        by_row = sorted(config["id2label"].items(), key=lambda item: int(item[0]))
        ours["answers"] = [name for _, name in by_row]
    return ours | {name: config[name] for name in own if name in config}
