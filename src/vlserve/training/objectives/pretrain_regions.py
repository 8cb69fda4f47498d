"""ViLBERT's and VisualBERT's pretraining: masked words, masked regions, alignment.

Lu et al., ViLBERT (arXiv:1908.02265), vilbert/vilbert.py; Li et al., VisualBERT
(arXiv:1908.03557).
"""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from vlserve.training.objectives.masking import IGNORED

RegionTarget = Literal["distribution", "features"]
"""What is guessed of a region: the detector's distribution over objects, or its features."""


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the asked words: logits (batch, text, words), labels (batch, text),
    IGNORED elsewhere. 0 where none is asked."""
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


def masked_regions(
    scores: Tensor, targets: Tensor, selection: Tensor, kind: RegionTarget
) -> Tensor:
    """Loss of the selected regions: scores and targets (batch, regions, size), ``selection``
    (batch, regions) of 1 and 0. Of a distribution the Kullback-Leibler divergence, summed over
    objects; of features the squared difference, averaged over them. 0 where none is selected."""
    weights = (selection == 1).to(scores.dtype).unsqueeze(2)
    if kind == "distribution":
        each = F.kl_div(F.log_softmax(scores, dim=2), targets, reduction="none")
        count = weights.sum()
    else:
        each = F.mse_loss(scores, targets, reduction="none")
        count = weights.sum() * scores.shape[2]
    return (each * weights).sum() / count.clamp(min=1)


def alignment(logits: Tensor, apart: Tensor) -> Tensor:
    """Cross-entropy of logits (batch, 2) of belonging together and of not; ``apart`` (batch,): 1
    where text and image do not."""
    return F.cross_entropy(logits, apart)


def tie_words(network: Any) -> None:
    """Make the head that guesses words use the word embeddings, as the originals train it: a
    checkpoint holds them twice."""
    network.cls.predictions.decoder.weight = network.bert.embeddings.word_embeddings.weight
