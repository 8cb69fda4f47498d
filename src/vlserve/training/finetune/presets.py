"""Options of the source systems' own fine-tunings, by name.

Their batches are of 8 or 16 GPUs: ``accumulate`` keeps the number of items in a step of the
optimiser. docs/training.md says where each figure comes from and what is not as published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlserve.errors import SettingsError
from vlserve.training.finetune.plan import Objective

NO_WARM_UP = 1e-6
"""Share of the steps: one step."""
_ALBEF: Mapping[str, Any] = {
    "batch_size": 32,
    "accumulate": 8,
    "weight_decay": 0.02,
    "lowest_rate": 1e-6,
    "label_smoothing": 0.0,
    "average_decay": 0.0,
}
_BLIP: Mapping[str, Any] = {**_ALBEF, "weight_decay": 0.05, "lowest_rate": 0.0}
_RETRIEVE: Mapping[str, Any] = {"learning_rate": 1e-5, "warm_up": NO_WARM_UP, "alpha": 0.4}


@dataclass(frozen=True)
class Preset:
    """``source``: the file in the original's repository that the options stand in."""

    family: str
    objective: Objective
    source: str
    options: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "albef-retrieval": Preset(
        "albef",
        "retrieve",
        "salesforce/ALBEF configs/Retrieval_coco.yaml",
        {**_ALBEF, **_RETRIEVE, "epochs": 5, "queue_size": 65536, "momentum": 0.995},
    ),
    "albef-vqa": Preset(
        "albef",
        "answer",
        "salesforce/ALBEF configs/VQA.yaml",
        {**_ALBEF, "epochs": 8, "learning_rate": 2e-5, "warm_up": 0.5},
    ),
    "albef-ve": Preset(
        "albef",
        "entail",
        "salesforce/ALBEF configs/VE.yaml",
        {**_ALBEF, "epochs": 5, "learning_rate": 2e-5, "warm_up": 0.2},
    ),
    "albef-nlvr": Preset(
        "albef",
        "reason",
        "salesforce/ALBEF configs/NLVR.yaml",
        {**_ALBEF, "epochs": 10, "batch_size": 16, "learning_rate": 2e-5, "warm_up": 0.1},
    ),
    "blip-retrieval": Preset(
        "blip",
        "retrieve",
        "salesforce/BLIP configs/retrieval_coco.yaml",
        {**_BLIP, **_RETRIEVE, "epochs": 6, "queue_size": 57600, "momentum": 0.995},
    ),
    "blip-vqa": Preset(
        "blip",
        "answer",
        "salesforce/BLIP configs/vqa.yaml",
        {
            **_BLIP,
            "epochs": 10,
            "batch_size": 16,
            "accumulate": 16,
            "learning_rate": 2e-5,
            "warm_up": NO_WARM_UP,
        },
    ),
}


def preset_of(name: str, family: str) -> Preset:
    """The preset. SettingsError where there is none of that name, or it is another family's."""
    preset = PRESETS.get(name)
    if preset is None:
        raise SettingsError(f"no preset {name}: there are {', '.join(PRESETS)}")
    if preset.family != family:
        raise SettingsError(f"the preset {name} is of {preset.family}, not of {family}")
    return preset
