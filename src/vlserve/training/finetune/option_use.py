"""Which options a run from a checkpoint follows: what nothing would read is refused."""

from collections.abc import Mapping

from vlserve.training.finetune.plan import (
    OF_TAGGERS,
    CaptionerPlan,
    FinetuneOptions,
    FinetunePlan,
    Objective,
    VisionTextPlan,
)
from vlserve.training.options import refuse

_PAIRS = "of retrieve, and of pretrain of albef and blip"
OF_OBJECTIVES: Mapping[str, str] = {
    "queue_size": _PAIRS,
    "momentum": _PAIRS,
    "alpha": _PAIRS,
    "least_answers": "of answer where each answer has a row of its own (vilbert, visualbert)",
    "reward_workers": "of captioners of features (s2, m2)",
    "focal_gamma": "of tag",
    "class_weight_power": "of tag",
    "label_smoothing": "of entail, reason and tag, and of what albef and blip write",
}
"""Options that some objectives read, and which."""
WRITTEN: tuple[Objective, ...] = ("answer", "caption", "pretrain")
"""Objectives of BLIP and ALBEF whose words are smoothed as the family's own training does."""


def follows(plan: FinetunePlan, objective: Objective, name: str) -> bool:
    """Whether a run of an objective reads an option."""
    if name in OF_TAGGERS:
        return False
    if name not in OF_OBJECTIVES:
        return True
    writes = isinstance(plan, VisionTextPlan)
    if name == "reward_workers":
        return isinstance(plan, CaptionerPlan)
    if name == "least_answers":
        return objective == "answer" and not writes
    if name in ("focal_gamma", "class_weight_power"):
        return objective == "tag"
    if name == "label_smoothing":
        return _smooths(plan, objective)
    return writes and objective in ("retrieve", "pretrain")


def for_objective(
    plan: FinetunePlan, objective: Objective, options: FinetuneOptions
) -> FinetuneOptions:
    """Return the options with the smoothing that counts. SettingsError names those that were given
    and that nothing would read, and what decides instead."""
    refuse_idle(plan, objective, options)
    if "label_smoothing" in options.model_fields_set or not isinstance(plan, VisionTextPlan):
        return options
    if objective not in WRITTEN or not _smooths(plan, objective):
        return options
    return options.model_copy(update={"label_smoothing": plan.smoothing})


def refuse_idle(plan: FinetunePlan, objective: Objective, options: FinetuneOptions) -> None:
    """Refuse options that were given and that a run of an objective does not read. SettingsError
    names them."""
    refuse(
        f"{name}: {objective} does not read it; it is {owners}"
        for name, owners in OF_OBJECTIVES.items()
        if name in options.model_fields_set and not follows(plan, objective, name)
    )


def _smooths(plan: FinetunePlan, objective: Objective) -> bool:
    """Whether an objective's loss knows label smoothing."""
    if isinstance(plan, CaptionerPlan):
        return False
    if isinstance(plan, VisionTextPlan):
        words = ("answer", "caption", "entail", "reason")
        return objective in words or (plan.family == "blip" and objective == "pretrain")
    return objective in ("entail", "reason", "tag")
