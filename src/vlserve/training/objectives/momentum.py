"""A teacher that follows the network slowly, and a queue of what it said of earlier batches.

He et al., MoCo (arXiv:1911.05722); as ALBEF (arXiv:2107.07651) and BLIP (arXiv:2201.12086) do it.
"""

import copy
import re
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from vlserve.errors import TrainingError

OF_THE_TEACHER = re.compile(
    r"^(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|cls_head)_m\."
)
"""How keys of the teacher begin in published checkpoints."""


def new_teacher(network: nn.Module) -> nn.Module:
    """A copy that learns by `follow` alone."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move every weight of the teacher a step of 1 - ``momentum`` towards the network's, which may
    have more parts."""
    for name, slow in teacher.named_parameters():
        slow.mul_(momentum).add_(network.get_parameter(name), alpha=1 - momentum)


def teacher_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint's tensors with those of its teacher in place of the network's."""
    own = {OF_THE_TEACHER.sub(r"\1.", name): x for name, x in state.items()}
    slow = {
        OF_THE_TEACHER.sub(r"\1.", name): x
        for name, x in state.items()
        if OF_THE_TEACHER.match(name)
    }
    return own | slow


class Queue(nn.Module):
    """Vectors and ids of the last ``size`` pairs, as columns; buffers, so that they are saved with
    a run. ``images`` and ``texts`` (dim, size), ``ids`` (1, size), -100 where nothing was yet."""

    images: Tensor
    texts: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        vectors = nn.functional.normalize(torch.randn(2, dim, size), dim=1)
        self.register_buffer("images", vectors[0])
        self.register_buffer("texts", vectors[1])
        self.register_buffer("ids", torch.full((1, size), -100))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @classmethod
    def of_checkpoint(cls, state: Mapping[str, Tensor]) -> Self:
        """The queue that a published checkpoint holds."""
        queue = cls(*state["image_queue"].shape)
        queue.images.copy_(state["image_queue"])
        queue.texts.copy_(state["text_queue"])
        if "idx_queue" in state:
            queue.ids.copy_(state["idx_queue"])
        pointer = state.get("queue_ptr", state.get("ptr_queue"))
        if pointer is not None:
            queue.pointer.copy_(pointer)
        return queue

    @torch.no_grad()
    def put(self, images: Tensor, texts: Tensor, ids: Tensor | None = None) -> None:
        """Write over the oldest columns: images and texts (batch, dim), ids (batch,).
        TrainingError where the batch does not divide the queue."""
        size, count, start = self.images.shape[1], len(images), int(self.pointer)
        if size % count:
            raise TrainingError(
                f"a queue of {size} is no multiple of the {count} pairs of a step: choose another "
                "queue_size or batch_size"
            )
        self.images[:, start : start + count] = images.T
        self.texts[:, start : start + count] = texts.T
        if ids is not None:
            self.ids[:, start : start + count] = ids.reshape(1, -1)
        self.pointer.fill_((start + count) % size)
