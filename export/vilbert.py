"""ViLBERT: answer, match, ground, reason over two images, entail, from features of image regions.

    text (batch, text) -> BERT layers -> text_states, which look at no image
    regions (batch, regions, dim) and their boxes -> visual layers
    both through connections, in which each looks at the other, and more layers of their own
    the first state of each, pooled, and both multiplied -> a head

    answer   of 3,129 answers
    match    do text and image belong together
    ground   which region the text is about: a score a region, from its own state
    reason   is the sentence true of both images: a head on both pairs
    entail   contradiction, neutral or entailment

Lu et al., ViLBERT (arXiv:1908.02265), github.com/jiasenlu/vilbert_beta; 12-in-1
(arXiv:1912.02315), github.com/facebookresearch/vilbert-multi-task.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlserve.errors import ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.wordpiece import wordpiece, wordpiece_input
from vlserve.families.config_file import (
    check_against_tensors,
    check_positions,
    listed,
    parse_config,
    read_names,
    vocabulary_of,
)
from vlserve.families.examples import example_inputs
from vlserve.models import two_stream_heads as parts
from vlserve.models.keys import check_keys, foreign_keys, is_ignored
from vlserve.models.two_stream import (
    HEADS_AND_PLACES,
    TwoStreamConfig,
    encoder_config,
    two_stream_sizes,
)
from vlserve.models.two_stream_graphs import (
    ClassifierGraph,
    FusionGraph,
    GroundGraph,
    Pooled,
    TextGraph,
    TwoStreamTrunk,
)
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import RegionInput, TensorSpec, TextInput
from vlserve.training.finetune.regions.plans import VilbertPlan

FAMILY = "vilbert"
ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
IGNORED = (r"bert\.encoder\.c_layer\.\d+\.biOutput\.q_dense[12]\..+",)
"""Keys of checkpoints that no task needs: made by the original, never used."""


class Task(BaseModel):
    """Which head a task reads, and what the original's vilbert_tasks.yml says of it."""

    model_config = ConfigDict(frozen=True)

    heads: tuple[str, ...]
    """The first of them that the checkpoint has."""
    task_token: int
    max_length: int
    """Tokens, [CLS] and [SEP] included."""
    labels: tuple[str, ...] = ()
    """In the order of the head's rows."""


ALIGNMENT = "bi_seq_relationship"
"""Pretraining's head, which every checkpoint has."""
TASKS = {
    "answer": Task(heads=("vil_prediction",), task_token=1, max_length=23),
    "match": Task(heads=("vil_logit", ALIGNMENT), task_token=7, max_length=30),
    "ground": Task(heads=("vision_logit",), task_token=9, max_length=20),
    "reason": Task(
        heads=("vil_binary_prediction",), task_token=12, max_length=40, labels=("false", "true")
    ),
    "entail": Task(
        heads=("vil_tri_prediction",),
        task_token=13,
        max_length=56,
        labels=("contradiction", "neutral", "entailment"),
    ),
}
IMAGES = 2
"""That a sentence of the task reason is about."""
NOT_READ = (
    "(v_)?(hidden_dropout_prob|attention_probs_dropout_prob|initializer_range)",
    "v_target_size|visual_target|num_negative|objective|predict_feature",
    "bi_intermediate_size|bi_attention_type|pooling_method",
    "fast_mode|fixed_[vt]_layer|visualization",
)
"""Fields of the original's config.json that change no answer."""
ONLY = {
    "hidden_act": "gelu",
    "v_hidden_act": "gelu",
    "model": "bert",
    "in_batch_pairs": False,
    "with_coattention": True,
    "intra_gate": False,
}
"""Fields of the original's config.json, and the value that each must have."""


class Config(BaseModel):
    """A config.json, completed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["vilbert"] = "vilbert"
    task: Literal["answer", "match", "ground", "reason", "entail"]
    vocabulary: tuple[str, ...]
    max_length: int = Field(ge=2)
    text_cleaning: Cleaning | None = None
    """What is done to texts before they become ids; see vlserve.runtime.clean_text."""
    task_token: int = Field(ge=0)
    max_regions: int = Field(default=100, ge=1)
    """That a request may bring."""
    global_region: bool = True
    """Whether the network was trained with the whole image as the first region."""
    answers: tuple[str, ...] = ()
    encoder: TwoStreamConfig
    positions: int = Field(ge=1)
    token_types: int = Field(ge=1)
    task_tokens: int = Field(default=0, ge=0)
    region_dim: int = Field(ge=1)
    region_targets: int = Field(ge=1)
    fusion: parts.Fusion = "mul"
    heads: dict[str, int] = Field(default_factory=dict)
    """Name -> outputs, beside pretraining's."""
    scaled_classifier: bool = False
    """vilbert_beta's answers."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        check_positions(self.max_length, self.positions)
        if self.task_tokens and self.task_token >= self.task_tokens:
            raise ValueError(f"task_token must be below {self.task_tokens}")
        return self

    @property
    def head(self) -> str | None:
        """What the task reads; None: the checkpoint lacks it."""
        heads = (name for name in TASKS[self.task].heads if name in (*self.heads, ALIGNMENT))
        return next(heads, None)


class VilbertNetwork(nn.Module):
    """Every head that the checkpoint has; graphs are made of the parts."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        encoder, joint = config.encoder, config.encoder.joint_hidden
        text, visual = encoder.text.hidden, encoder.visual.hidden
        self.bert = TwoStreamTrunk(
            encoder,
            words=len(config.vocabulary),
            positions=config.positions,
            token_types=config.token_types,
            task_tokens=config.task_tokens,
            region_dim=config.region_dim,
        )
        self.cls = parts.PretrainingHeads(
            text, len(config.vocabulary), visual, config.region_targets, joint
        )
        for name, outputs in config.heads.items():
            scaled = config.scaled_classifier and name == "vil_prediction"
            self.add_module(name, parts.make_head(name, outputs, text, visual, joint, scaled))


class VilbertRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=tuple(TASKS),
        atol=ATOL,
        reads=(
            "pretrained_model.bin, multi_task_model.bin (facebookresearch/vilbert-multi-task)",
            "jiasenlu/vilbert_beta",
        ),
        golden=(
            "vilbert",
            "keys/vilbert_12in1_multi_task",
            "keys/vilbert_beta_pretrain",
            "keys/vilbert_beta_vqa",
            "keys/vilbert_multitask_dynamic_attention",
            "keys/vilbert_multitask_no_task_tokens",
            "keys/vilbert_pretrain_mt",
        ),
    )

    @property
    def finetuning(self) -> VilbertPlan:
        return VilbertPlan(lambda config, assets: text_input(parse(config), assets))

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        return parse(complete(config, own_names(state), folder)).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return VilbertNetwork(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return own_names(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        head = required_head(settings)
        if settings.task == "answer" and len(settings.answers) != settings.heads[head]:
            raise ExportError(
                f"config.json names {len(settings.answers)} answers, the checkpoint has "
                f"{settings.heads[head]}: a list, or a JSON file beside it"
            )
        options: dict[str, Any] = {"global_region": settings.global_region}
        if settings.task == "match":
            options["retrieval_score"] = "match_logit"
        return Served(
            task=settings.task,
            text=text_input(settings, assets),
            regions=RegionInput(
                dim=settings.region_dim, max_regions=settings.max_regions, boxes=True
            ),
            labels=settings.answers if settings.task == "answer" else TASKS[settings.task].labels,
            multi_label=settings.task == "answer",
            options=options,
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, VilbertNetwork)
        settings = parse(config)
        inputs, name = graph_inputs(settings), required_head(settings)
        head = network.cls.get_submodule(name) if name == ALIGNMENT else network.get_submodule(name)
        if isinstance(head, parts.ScaledClassifier):
            head = head.plain()
        if settings.task == "ground":
            scores = TensorSpec(name="region_scores", dtype="float32", dims=("batch", "regions"))
            return {"model": GraphPlan(GroundGraph(network.bert, head), inputs["model"], (scores,))}
        pooled = Pooled(network.bert, settings.fusion)
        if settings.task == "match":
            logits = TensorSpec(name="match_logits", dtype="float32", dims=("batch", 1))
            fusion = FusionGraph(pooled, head, alignment=name == ALIGNMENT)
            return {
                "text": GraphPlan(
                    TextGraph(network.bert), inputs["text"], (text_states(settings),)
                ),
                "fusion": GraphPlan(fusion, inputs["fusion"], (logits,)),
            }
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", settings.heads[name]))
        model = ClassifierGraph(network.bert, pooled, head)
        return {"model": GraphPlan(model, inputs["model"], (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        words, pad_id = len(settings.vocabulary), settings.vocabulary.index("[PAD]")
        inputs = graph_inputs(settings)[graph]
        return example_inputs(inputs, sizes, seed, words + settings.task_tokens, pad_id)


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    """The inputs of each graph of the config's task."""
    text = (
        TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
        TensorSpec(name="text_mask", dtype="int64", dims=("batch", "text")),
    )
    images = (IMAGES,) if config.task == "reason" else ()
    regions: tuple[int | str, ...] = ("batch", *images, "regions")
    visual = (
        TensorSpec(name="visual", dtype="float32", dims=(*regions, config.region_dim)),
        TensorSpec(name="visual_mask", dtype="int64", dims=regions),
        TensorSpec(name="boxes", dtype="float32", dims=(*regions, parts.BOX)),
    )
    if config.task == "match":
        return {"text": text, "fusion": (text_states(config), text[1], *visual)}
    return {"model": (*text, *visual)}


def text_states(config: Config) -> TensorSpec:
    dims = ("batch", "text", config.encoder.text.hidden)
    return TensorSpec(name="text_states", dtype="float32", dims=dims)


def required_head(config: Config) -> str:
    """What the task reads. ExportError where the checkpoint lacks it."""
    if config.head is None:
        head = TASKS[config.task].heads[0]
        raise ExportError(f"task {config.task}: the checkpoint has no head {head}")
    return config.head


def text_input(config: Config, assets: Path) -> TextInput:
    """Writes the tokenizer, which puts the task token in, into ``assets``."""
    max_length = config.max_length + (1 if config.task_tokens else 0)
    return wordpiece_input(tokenizer_of(config), max_length, assets, config.text_cleaning)


def tokenizer_of(config: Config) -> Tokenizer:
    """Task tokens have the ids after the vocabulary's; the config's own stands after [CLS]."""
    if not config.task_tokens:
        return wordpiece(config.vocabulary)
    task_tokens = [f"[TASK{number}]" for number in range(config.task_tokens)]
    template = f"[CLS] {task_tokens[config.task_token]} $A [SEP]"
    return wordpiece(config.vocabulary, template, task_tokens)


def complete(
    config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
) -> dict[str, Any]:
    """``config``, which may hold the original's own, with what the tensors show filled in and the
    files that it names read. CheckpointMismatch where they disagree."""
    try:
        sizes, fields = two_stream_sizes(state, "bert.encoder."), parts.checkpoint_sizes(state)
    except KeyError as error:
        prefixes = ("bert.", "cls.", *(f"{name}." for name in parts.OUTPUTS))
        check_keys(FAMILY, [str(error.args[0])], foreign_keys(state, prefixes))
        raise
    words = fields.pop("words")
    theirs = published_fields(sizes, fields, words)
    check_against_tensors(config, theirs | fields)
    for name, value in ONLY.items():
        if config.get(name, value) != value:
            raise ExportError(f"config.json: {name} is {config[name]}; only {value} is read")
    task = config.get("task", "answer" if "vil_prediction" in fields["heads"] else "match")
    if not isinstance(task, str) or task not in TASKS:
        raise ExportError(f"task {task}: {FAMILY} has {', '.join(TASKS)}")
    max_length = min(TASKS[task].max_length, fields["positions"])
    entries = {"task_token": TASKS[task].task_token, "max_length": max_length, **config}
    vocabulary = vocabulary_of(config, folder)
    if len(vocabulary) != words:
        raise ExportError(f"the vocabulary has {len(vocabulary)} tokens, the checkpoint {words}")
    if isinstance(config.get("answers"), str):
        entries["answers"] = read_names(folder / config["answers"], "answers")
    original_names = (*theirs, *ONLY, *HEADS_AND_PLACES, "fusion_method")
    own = {
        name: value
        for name, value in entries.items()
        if name not in original_names and not is_ignored(name, NOT_READ)
    }
    for name in ("t_biattention_id", "v_biattention_id"):
        if name in config:
            listed(config[name], name)
    additions = {
        "task": task,
        "vocabulary": vocabulary,
        "encoder": encoder_config(config, sizes),
        "fusion": config.get("fusion_method", config.get("fusion", "mul")),
    }
    return own | fields | additions


def published_fields(
    sizes: Mapping[str, Any], fields: Mapping[str, Any], words: int
) -> dict[str, Any]:
    """What the original's config.json must say of these tensors, where it says it."""
    text, visual = sizes["text"], sizes["visual"]
    return {
        "vocab_size": words,
        "hidden_size": text["hidden"],
        "num_hidden_layers": text["layers"],
        "intermediate_size": text["intermediate"],
        "max_position_embeddings": fields["positions"],
        "type_vocab_size": fields["token_types"],
        "v_feature_size": fields["region_dim"],
        "v_hidden_size": visual["hidden"],
        "v_num_hidden_layers": visual["layers"],
        "v_intermediate_size": visual["intermediate"],
        "bi_hidden_size": sizes["joint_hidden"],
        "dynamic_attention": sizes["gated"],
        "task_specific_tokens": bool(fields["task_tokens"]),
    }


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the ignored keys; ``gamma`` and ``beta`` of old LayerNorms renamed."""
    old = {"gamma": "weight", "beta": "bias"}
    return {
        re.sub(r"\.(gamma|beta)$", lambda match: f".{old[match[1]]}", name): tensor
        for name, tensor in state.items()
        if not is_ignored(name, IGNORED)
    }


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


RECIPE = VilbertRecipe()
