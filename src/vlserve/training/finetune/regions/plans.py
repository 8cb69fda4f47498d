"""What ViLBERT and VisualBERT say of how they go on learning: their heads, their logits, and what
their pretraining guesses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vlserve.families.mmf import transformers_names
from vlserve.families.single_stream import HEADS, TRANSFORM_HEADS, TRUNK, LogitsGraph
from vlserve.models.two_stream import two_stream_sizes
from vlserve.models.two_stream_graphs import ClassifierGraph, GroundGraph, Pooled
from vlserve.models.two_stream_heads import OUTPUTS, fuse, make_head
from vlserve.runtime.manifest import TextInput
from vlserve.training.finetune.heads import Fitted, with_new
from vlserve.training.finetune.plan import FinetunePlan, Objective
from vlserve.training.objectives.answer import soft_targets_bce, soft_targets_kl
from vlserve.training.objectives.pretrain_regions import tie_words

Batch = Mapping[str, Tensor]
Config = Mapping[str, Any]
TextOf = Callable[[Config, Path], TextInput]
"""A config's tokenizer, written into a folder, and how it reads."""


class Guesses(NamedTuple):
    """Logits of pretraining: ``words`` (batch, text, words), ``regions`` (batch, regions, size)
    or None, ``together`` (batch, 2): of belonging together and of not."""

    words: Tensor
    regions: Tensor | None
    together: Tensor


class RegionPlan(FinetunePlan, Protocol):
    """What both plans say. ``answer_loss``: of logits and shares (batch, answers). ``by_score``:
    whether an answer's share is that of VQA's score, not that of the people who gave it.
    ``captions``: how many of an image pretraining reads at once."""

    @property
    def text(self) -> TextOf: ...
    @property
    def answer_loss(self) -> Callable[[Tensor, Tensor], Tensor]: ...
    @property
    def by_score(self) -> bool: ...
    @property
    def captions(self) -> int: ...

    def scores(self, network: Any, config: Config, objective: Objective, batch: Batch) -> Tensor:
        """Logits (batch, classes), or (batch, regions) of ground."""
        ...

    def guesses(self, network: Any, config: Config, batch: Batch) -> Guesses:
        """What pretraining asks."""
        ...

    def region_targets(self, config: Config) -> int:
        """How many numbers are guessed of a region; 0: none."""
        ...

    def tie(self, network: nn.Module) -> None:
        """Share what pretraining's heads share with the network."""
        ...


@dataclass(frozen=True)
class VilbertPlan:
    """Of ViLBERT. Lu et al. (arXiv:1908.02265), vilbert-multi-task's heads and losses."""

    text: TextOf
    objectives: tuple[Objective, ...] = (
        "answer",
        "match",
        "ground",
        "reason",
        "entail",
        "pretrain",
    )
    shown: tuple[str, ...] = ("heads", "scaled_classifier")
    of_task: tuple[str, ...] = ("task_token", "max_length")
    answer_loss: Callable[[Tensor, Tensor], Tensor] = soft_targets_bce
    by_score: bool = True
    captions: int = 1

    def task(self, objective: Objective) -> str:
        return "match" if objective == "pretrain" else objective

    def fitted(self, state: Batch, objective: Objective | None, classes: int) -> Fitted:
        name = VILBERT_HEADS.get(objective or "")
        if name is None:
            return dict(state), ()
        outputs = classes or VILBERT_OUTPUTS.get(name, 0)
        rows = [state[key] for part in OUTPUTS[name] if (key := f"{name}.{part}") in state]
        if not outputs or (rows and len(rows[0]) == outputs):
            return dict(state), ()
        sizes = two_stream_sizes(state, "bert.encoder.")
        widths = (sizes["text"]["hidden"], sizes["visual"]["hidden"], sizes["joint_hidden"])
        head = make_head(name, outputs, *widths, scaled=False).state_dict()
        tensors = {key: x for key, x in state.items() if not key.startswith(f"{name}.")}
        return with_new(tensors, {f"{name}.{key}": x for key, x in head.items()})

    def has_head(self, network: nn.Module, config: Config, objective: Objective) -> bool:
        if objective == "pretrain":
            return hasattr(network, "cls")
        return objective == config["task"] and hasattr(network, VILBERT_HEADS[objective])

    def scores(self, network: Any, config: Config, objective: Objective, batch: Batch) -> Tensor:
        head = network.get_submodule(VILBERT_HEADS[objective])
        inputs = [batch[name] for name in VILBERT_INPUTS]
        if objective == "ground":
            scores: Tensor = GroundGraph(network.bert, head)(*inputs)
            return scores
        pooled = Pooled(network.bert, config["fusion"])
        logits: Tensor = ClassifierGraph(network.bert, pooled, head)(*inputs)
        return logits

    def guesses(self, network: Any, config: Config, batch: Batch) -> Guesses:
        bert, cls = network.bert, network.cls
        ids, text_mask, visual, visual_mask, boxes = (batch[name] for name in VILBERT_INPUTS)
        text = bert.encoder.text_alone(bert.embeddings(ids), text_mask)
        text, regions = bert.encoder.join(
            text, text_mask, bert.v_embeddings(visual, boxes), visual_mask
        )
        pooled = fuse(bert.t_pooler(text), bert.v_pooler(regions), config["fusion"])
        return Guesses(
            cls.predictions(text), cls.imagePredictions(regions), cls.bi_seq_relationship(pooled)
        )

    def region_targets(self, config: Config) -> int:
        return int(config["region_targets"])

    def tie(self, network: nn.Module) -> None:
        tie_words(network)


VILBERT_INPUTS = ("text_ids", "text_mask", "visual", "visual_mask", "boxes")
VILBERT_HEADS: Mapping[str, str] = {
    "answer": "vil_prediction",
    "match": "vil_logit",
    "ground": "vision_logit",
    "reason": "vil_binary_prediction",
    "entail": "vil_tri_prediction",
}
VILBERT_OUTPUTS: Mapping[str, int] = {
    "vil_logit": 1,
    "vision_logit": 1,
    "vil_binary_prediction": 2,
    "vil_tri_prediction": 3,
}
"""Of heads whose rows no data name."""


@dataclass(frozen=True)
class SingleStreamPlan:
    """Of the VisualBERT families. Li et al. (arXiv:1908.03557), uclanlp/visualbert."""

    text: TextOf
    objectives: tuple[Objective, ...] = ("answer", "tag")
    shown: tuple[str, ...] = ("encoder", "visual_dim", "classes", "head")
    of_task: tuple[str, ...] = ()
    answer_loss: Callable[[Tensor, Tensor], Tensor] = soft_targets_kl
    by_score: bool = False
    captions: int = 2

    def task(self, objective: Objective) -> str:
        return objective

    def fitted(self, state: Batch, objective: Objective | None, classes: int) -> Fitted:
        if objective is None:
            return dict(state), ()
        tensors = transformers_names(state, {"task": objective})
        if objective == "pretrain" or not classes:
            return tensors, ()
        rows = [
            tensors[names[objective]]
            for names in (HEADS, TRANSFORM_HEADS)
            if names[objective] in tensors
        ]
        if rows and len(rows[0]) == classes:
            return tensors, ()
        trunk = {
            key: x for key, x in tensors.items() if not key.startswith(("cls.", "classifier."))
        }
        hidden = trunk[f"{TRUNK}embeddings.word_embeddings.weight"].shape[1]
        own = HEADS[objective].removesuffix("weight")
        head = nn.Linear(hidden, classes).state_dict()
        return with_new(trunk, {f"{own}{key}": x for key, x in head.items()})

    def has_head(self, network: nn.Module, config: Config, objective: Objective) -> bool:
        return bool(objective == config["task"])

    def scores(self, network: Any, config: Config, objective: Objective, batch: Batch) -> Tensor:
        inputs = (batch[name] for name in ("text_ids", "text_mask", "visual", "visual_mask"))
        logits: Tensor = LogitsGraph(network, objective)(*inputs)
        return logits

    def guesses(self, network: Any, config: Config, batch: Batch) -> Guesses:
        outputs = network(
            input_ids=batch["text_ids"],
            attention_mask=batch["text_mask"],
            token_type_ids=batch["text_types"],
            visual_embeds=batch["visual"],
            visual_attention_mask=batch["visual_mask"],
        )
        words = outputs.prediction_logits[:, : batch["text_ids"].shape[1]]
        return Guesses(words, None, outputs.seq_relationship_logits)

    def region_targets(self, config: Config) -> int:
        return 0

    def tie(self, network: Any) -> None:
        network.tie_weights()
