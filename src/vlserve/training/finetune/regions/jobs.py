"""Objectives of one head over a text and regions: answer, tag, entail, reason, ground."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.training.distributed import over_ranks
from vlserve.training.finetune.data import TaskData
from vlserve.training.finetune.jobs import Items
from vlserve.training.finetune.plan import Objective
from vlserve.training.finetune.regions.data import named
from vlserve.training.finetune.regions.inputs import Batch, RegionInputs
from vlserve.training.metrics.boxes import RIGHT_FROM, box_ious
from vlserve.training.objectives import classify
from vlserve.training.objectives.answer import answer_scores

ANNOTATORS = 10
Scores = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""A network and a batch -> its head's logits."""
Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits and targets of 0 and 1, (batch, labels) -> mean loss."""
Targets = Callable[[Sequence[Any]], Batch]
"""Items -> what is to be found, by name."""
Figures = Callable[[Tensor, Mapping[str, Tensor]], dict[str, list[float]]]
"""Logits and their batch -> figures of each item, by name."""


@dataclass(frozen=True)
class HeadJob:
    """See `vlserve.training.run.Job`."""

    trained: nn.Module
    items: Items
    inputs: RegionInputs
    objective: Objective
    scores: Scores
    targets: Targets
    loss: Loss
    figures_of: Figures
    chosen_by: str

    @property
    def steps(self) -> int:
        return self.items.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        for lines in self.items.orders(seed, epoch):
            yield self._batch(self.items.train, lines)

    def _batch(self, data: TaskData, lines: Sequence[int]) -> Batch:
        items = data.of(lines)
        looks = [data.images[line] for line in lines]
        regions = (
            self.inputs.pairs(looks) if self.objective == "reason" else self.inputs.looks(looks)
        )
        batch = self.inputs.texts([item.text for item in items]) | regions
        if self.objective == "ground":
            batch["overlaps"] = overlaps(batch, [item.box for item in items])
            return batch
        return batch | self.targets(items)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {self.objective: self.loss(self.scores(network, batch).float(), batch)}

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        network.eval()

        def of(lines: list[int]) -> dict[str, list[float]]:
            batch = self._batch(self.items.val, lines)
            return self.figures_of(self.scores(network, batch).float(), batch)

        every = over_ranks(self.items.val_batches(), of)
        return {
            name: float(np.mean([value for own in every for value in own[name]]))
            for name in every[0]
        }

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


@dataclass(frozen=True)
class TagJob(HeadJob):
    """Of labels that an item may have several of: mAP over the labels that some item has."""

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        network.eval()

        def of(lines: list[int]) -> tuple[Tensor, Tensor]:
            batch = self._batch(self.items.val, lines)
            return self.scores(network, batch).float(), batch["target"]

        every = over_ranks(self.items.val_batches(), of)
        scores, target = (torch.cat([own[part] for own in every]).numpy() for part in (0, 1))
        asked = target.sum(axis=0) > 0
        return {"map": float(average_precision_score(target[:, asked], scores[:, asked]))}


def head_parts(
    objective: Objective,
    labels: Sequence[Any],
    answer_loss: Callable[[Tensor, Tensor], Tensor],
    *,
    by_score: bool,
    several: bool,
    class_loss: ClassLoss,
) -> dict[str, Any]:
    """Targets, loss, figures and what chooses the best epoch, of an objective. ``class_loss``: of
    tag, entail and reason."""
    if objective == "ground":
        return {
            "targets": lambda _: {},
            "loss": _ground_loss,
            "figures_of": _ground_figures,
            "chosen_by": "accuracy_iou_50",
        }
    if objective == "answer":
        return {
            "targets": partial(_answer_targets, labels=labels, by_score=by_score),
            "loss": lambda logits, batch: answer_loss(logits, batch["target"]),
            "figures_of": _answer_figures,
            "chosen_by": "answer_score",
        }
    if objective == "tag" and several:
        return {
            "targets": partial(_tag_targets, labels=labels),
            "loss": lambda logits, batch: class_loss(logits, batch["target"]),
            "figures_of": lambda logits, batch: {},
            "chosen_by": "map",
        }
    return {
        "targets": partial(_class_targets, labels=labels),
        "loss": lambda logits, batch: class_loss(
            logits, F.one_hot(batch["target"], logits.shape[1])
        ),
        "figures_of": _class_figures,
        "chosen_by": "accuracy",
    }


def overlaps(batch: Mapping[str, Tensor], boxes: Sequence[Sequence[float]]) -> Tensor:
    """IoU of each region with an item's box, (batch, regions); 0 of padding."""
    matrix = torch.zeros(batch["visual_mask"].shape)
    for row, box in enumerate(boxes):
        regions = int(batch["visual_mask"][row].sum())
        ious = box_ious(batch["boxes"][row, :regions, :4].tolist(), box)
        matrix[row, :regions] = torch.from_numpy(ious)
    return matrix


def _ground_loss(scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    targets = classify.region_targets(batch["overlaps"])
    return classify.region_loss(scores, targets, batch["visual_mask"])


def _ground_figures(scores: Tensor, batch: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of the best region; one over the whole image that stands first answers no request."""
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
    first = int(bool((batch["boxes"][:, 0] == whole).all()))
    best = scores[:, first:].argmax(dim=1, keepdim=True)
    ious = batch["overlaps"][:, first:].gather(1, best).squeeze(1).tolist()
    return {"accuracy_iou_50": [float(iou >= RIGHT_FROM) for iou in ious], "mean_iou": ious}


def _answer_targets(items: Sequence[Any], labels: Sequence[str], by_score: bool) -> Batch:
    """``target`` (batch, answers) as it is learnt, ``score`` as VQA counts an answer."""
    place = {label: row for row, label in enumerate(labels)}
    target, score = (torch.zeros(len(items), len(labels)) for _ in range(2))
    for row, item in enumerate(items):
        for label in set(item.label) & place.keys():
            share = item.label.count(label) / len(item.label)
            score[row, place[label]] = answer_scores(round(ANNOTATORS * share))
            target[row, place[label]] = share
    return {"target": score.clone() if by_score else target, "score": score}


def _answer_figures(logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, list[float]]:
    best = logits.argmax(dim=1, keepdim=True)
    return {"answer_score": batch["score"].gather(1, best).squeeze(1).tolist()}


def _tag_targets(items: Sequence[Any], labels: Sequence[str]) -> Batch:
    rows = [[float(label in named(item)) for label in labels] for item in items]
    return {"target": torch.tensor(rows)}


def _class_targets(items: Sequence[Any], labels: Sequence[Any]) -> Batch:
    places = [labels.index(named(item)[0] if named(item) else item.label) for item in items]
    return {"target": torch.tensor(places)}


def _class_figures(logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {"accuracy": (logits.argmax(dim=1) == batch["target"]).float().tolist()}
