"""Outputs of golden cases that only training has, and that nothing here computes yet."""

import json
from fnmatch import fnmatch

from support.golden_cases import Case, golden_folder

NOT_YET_COVERED = (
    "loss_*",
    "*_loss",
    "grad.*",
    "scst_*",
    "neg_weights_*",  # by which hard negatives are drawn
    "*_queue_after",
    "queue_ptr_after",
    "*_weight_after",  # momentum copies after a step
    "*_embeddings_after",
)
"""Patterns of their names."""
INFERENCE = ("answer_loss", "rank_neg_loss")
"""Called like a loss, but part of an answer."""


def inference_outputs(case: Case) -> list[str]:
    """Names of the outputs that an implementation must have now."""
    return [name for name in case.config["outputs"] if not only_training(name)]


def only_training(name: str) -> bool:
    return name not in INFERENCE and any(fnmatch(name, pattern) for pattern in NOT_YET_COVERED)


def not_yet_covered() -> list[str]:
    """``family/case: names`` for every case of the folder that has such outputs."""
    lines = []
    for file in sorted(golden_folder().glob("*/*/config.json")):
        names = [name for name in json.loads(file.read_text())["outputs"] if only_training(name)]
        if names:
            lines.append(f"{file.parent.relative_to(golden_folder())}: {', '.join(names)}")
    return lines
