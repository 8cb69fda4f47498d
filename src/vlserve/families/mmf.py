"""VisualBERT's checkpoints in the layouts of MMF and of its authors, as transformers has them.

Source: facebookresearch/mmf, mmf/models/visual_bert.py (VisualBERTForClassification,
format_state_key) and mmf/modules/embeddings.py; uclanlp/visualbert, models/model.py. Two things
differ beside the names:

- MMF's head is a transform (dense, gelu, LayerNorm) in front of the linear layer. Whether it reads
  the token before [SEP] (``pooler_strategy: vqa``, task answer) or the pooled [CLS] (task tag) is
  in the training's configuration alone.
- Visual tokens are of type 0 there, of type 1 in transformers: both rows change places.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlserve.errors import ExportError

SHOWN_BY = ".embeddings.token_type_embeddings_visual.weight"
TYPES = "visual_bert.embeddings.visual_token_type_embeddings.weight"
NAMES = (
    (r"^(?:model\.|bert\.)?bert\.(embeddings|encoder|pooler)\.", r"visual_bert.\1."),
    (r"^(?:model\.|bert\.)cls\.", "cls."),
    (r"\.token_type_embeddings_visual\.", ".visual_token_type_embeddings."),
    (r"\.position_embeddings_visual\.", ".visual_position_embeddings."),
    (r"\.embeddings\.projection\.", ".embeddings.visual_projection."),
)
"""Their names -> transformers'."""
CLASSIFIER = re.compile(r"^(?:model\.|bert\.)?classifier\.")
HEADS = {"answer": "cls.", "tag": "classifier."}
"""What the head of each task is called here."""


def transformers_names(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``state`` under transformers' names; unchanged where it is not in MMF's layout.

    Args:
        state: a checkpoint's tensors.
        config: its config.json, whose ``task`` (or whose ``answers`` or ``labels``) says what the
            head is for.

    Raises:
        ExportError: the checkpoint is in MMF's layout, and config.json does not say so.
    """
    if not any(name.endswith(SHOWN_BY) for name in state):
        return dict(state)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if CLASSIFIER.match(name):
            name = CLASSIFIER.sub(HEADS[_task_of(config)], name)
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        tensors[name] = tensor
    if TYPES in tensors and len(tensors[TYPES]) > 1:
        types = tensors[TYPES].clone()
        types[[0, 1]] = tensors[TYPES][[1, 0]]
        tensors[TYPES] = types
    return tensors


def _task_of(config: Mapping[str, Any]) -> str:
    task_name = config.get("task")
    if task_name in HEADS:
        return str(task_name)
    names = [
        task for task, field in (("answer", "answers"), ("tag", "labels")) if config.get(field)
    ]
    if task_name is None and len(names) == 1:
        return names[0]
    raise ExportError(
        "config.json of a checkpoint in MMF's layout must say the task: answer where it was "
        "trained with pooler_strategy vqa, else tag"
    )
