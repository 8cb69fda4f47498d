"""Options of the source systems' own trainings, by name.

Their batches are of 8 or 16 GPUs: ``accumulate`` keeps the number of items in a step of the
optimiser. docs/training.md says where each figure comes from and what is not as published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlserve.errors import SettingsError

NO_WARM_UP = 1e-6
"""Share of the steps: one step."""
NO_CLIP = 1e6
"""A norm that no gradient reaches."""
_ALBEF: Mapping[str, Any] = {
    "batch_size": 32,
    "accumulate": 8,
    "weight_decay": 0.02,
    "lowest_rate": 1e-6,
    "average_decay": 0.0,
    "augmentation": "albef",
}
_BLIP: Mapping[str, Any] = {
    **_ALBEF,
    "weight_decay": 0.05,
    "lowest_rate": 0.0,
    "augmentation": "blip",
}
_HARD: Mapping[str, Any] = {"label_smoothing": 0.0}
"""ALBEF's targets; BLIP's words are smoothed by its recipe."""
_RETRIEVE: Mapping[str, Any] = {"learning_rate": 1e-5, "warm_up": NO_WARM_UP, "alpha": 0.4}
_VILBERT: Mapping[str, Any] = {
    "epochs": 20,
    "patience": 20,
    "batch_size": 32,
    "schedule": "step",
    "step_epochs": 10,
    "weight_decay": 0.01,
    "warm_up": 0.1,
    "average_decay": 0.0,
    "clip": NO_CLIP,
}
_VISUALBERT: Mapping[str, Any] = {
    "epochs": 10,
    "patience": 3,
    "weight_decay": 0.01,
    "schedule": "linear",
    "warm_up": 0.1,
    "average_decay": 0.0,
}
_STAGES: Mapping[str, Any] = {
    "patience": 5,
    "weight_decay": 0.0,
    "average_decay": 0.0,
    "clip": NO_CLIP,
    "reward.epochs": 80,
    "reward.batch_size": 10,
    "reward.schedule": "constant",
    "reward.warm_up": NO_WARM_UP,
    "reward_workers": 2,
}


@dataclass(frozen=True)
class Preset:
    """``objective``: one, or several with commas between them, one stage each. ``source``: the file
    in the original's repository that the options stand in."""

    family: str
    objective: str
    source: str
    options: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "resnet-gru": Preset(
        "resnet_gru",
        "tag",
        "the tutorial's network, its mistakes mended",
        {
            "image_height": 700,
            "image_width": 500,
            "max_length": 15,
            "embedding_size": 64,
            "hidden": 16,
            "gru_layers": 2,
        },
    ),
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
        {**_ALBEF, **_HARD, "epochs": 8, "learning_rate": 2e-5, "warm_up": 0.01},
    ),
    "albef-ve": Preset(
        "albef",
        "entail",
        "salesforce/ALBEF configs/VE.yaml",
        {**_ALBEF, **_HARD, "epochs": 5, "learning_rate": 2e-5, "warm_up": 0.01},
    ),
    "albef-nlvr": Preset(
        "albef",
        "reason",
        "salesforce/ALBEF configs/NLVR.yaml",
        {
            **_ALBEF,
            **_HARD,
            "epochs": 10,
            "batch_size": 16,
            "learning_rate": 2e-5,
            "warm_up": 0.015,
        },
    ),
    "albef-grounding": Preset(
        "albef",
        "retrieve",
        "salesforce/ALBEF configs/Grounding.yaml",
        {**_ALBEF, **_RETRIEVE, "epochs": 5, "queue_size": 65536, "momentum": 0.995},
    ),
    "albef-pretrain": Preset(
        "albef",
        "pretrain",
        "salesforce/ALBEF configs/Pretrain.yaml",
        {
            **_ALBEF,
            "epochs": 30,
            "patience": 30,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "lowest_rate": 1e-5,
            "warm_up": 0.0024,
            "queue_size": 65536,
            "momentum": 0.995,
            "alpha": 0.4,
            "augmentation": "albef-pretrain",
        },
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
    "blip-caption": Preset(
        "blip",
        "caption",
        "salesforce/BLIP configs/caption_coco.yaml",
        {**_BLIP, "epochs": 5, "learning_rate": 1e-5, "warm_up": NO_WARM_UP},
    ),
    "blip-pretrain": Preset(
        "blip",
        "pretrain",
        "salesforce/LAVIS lavis/projects/blip/train/pretrain_14m.yaml",
        {
            **_BLIP,
            "epochs": 20,
            "patience": 20,
            "batch_size": 75,
            "learning_rate": 3e-4,
            "lowest_rate": 1e-6,
            "warm_up": 0.0064,
            "queue_size": 57600,
            "momentum": 0.995,
            "alpha": 0.4,
        },
    ),
    "vilbert-pretrain": Preset(
        "vilbert",
        "pretrain",
        "jiasenlu/vilbert_beta train_concap.py, README.md",
        {
            **_VILBERT,
            "epochs": 10,
            "patience": 10,
            "batch_size": 64,
            "accumulate": 8,
            "learning_rate": 1e-4,
            "schedule": "linear",
        },
    ),
    "vilbert-vqa": Preset(
        "vilbert",
        "answer",
        "jiasenlu/vilbert_beta vlbert_tasks.yml (TASK0)",
        {**_VILBERT, "accumulate": 8, "learning_rate": 4e-5},
    ),
    "vilbert-retrieval": Preset(
        "vilbert",
        "match",
        "jiasenlu/vilbert_beta vlbert_tasks.yml (TASK3)",
        {**_VILBERT, "batch_size": 8, "accumulate": 8, "learning_rate": 4e-5},
    ),
    "vilbert-grounding": Preset(
        "vilbert",
        "ground",
        "jiasenlu/vilbert_beta vlbert_tasks.yml (TASK4)",
        {**_VILBERT, "accumulate": 8, "learning_rate": 4e-5},
    ),
    "visualbert-pretrain": Preset(
        "visualbert",
        "pretrain",
        "uclanlp/visualbert visualbert/configs/vqa/coco-pre-train.json",
        {**_VISUALBERT, "batch_size": 48, "learning_rate": 5e-5, "clip": 1.0},
    ),
    "visualbert-vqa": Preset(
        "visualbert",
        "answer",
        "uclanlp/visualbert configs/vqa/fine-tune.json",
        {**_VISUALBERT, "batch_size": 64, "learning_rate": 2e-5, "clip": 0.25},
    ),
    "visualbert-coattention": Preset(
        "visualbert_coattention",
        "answer",
        "uclanlp/visualbert configs/vqa/fine-tune.json",
        {**_VISUALBERT, "batch_size": 64, "learning_rate": 2e-5, "clip": 0.25},
    ),
    "s2": Preset(
        "s2",
        "caption,reward",
        "zchoi/S2-Transformer train_transformer.py",
        {
            **_STAGES,
            "accumulate": 8,
            "caption.epochs": 20,
            "caption.least_epochs": 15,
            "caption.batch_size": 50,
            "caption.learning_rate": 8e-4,
            "caption.schedule": "step",
            "caption.step_epochs": 10,
            "caption.warm_up": 0.15,
            "reward.learning_rate": 4e-5,
        },
    ),
    "m2": Preset(
        "m2",
        "caption,reward",
        "aimagelab/meshed-memory-transformer train.py, README.md",
        {
            **_STAGES,
            "caption.epochs": 50,
            "caption.batch_size": 50,
            "caption.learning_rate": 4.42e-4,
            "caption.schedule": "inverse_sqrt",
            "caption.warm_up": 0.0177,
            "reward.learning_rate": 5e-6,
        },
    ),
}


def tag_options(name: str | None, family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A tagger's options: the preset's, where ``options`` say nothing else. SettingsError where the
    preset is of no tagger."""
    if name is None:
        return dict(options)
    preset = preset_of(name, family)
    if preset.objective != "tag":
        raise SettingsError(f"the preset {name} trains a checkpoint on: give it with --from")
    return {**preset.options, **options}


def preset_of(name: str, family: str) -> Preset:
    """The preset. SettingsError where there is none of that name, or it is another family's."""
    preset = PRESETS.get(name)
    if preset is None:
        raise SettingsError(f"no preset {name}: there are {', '.join(PRESETS)}")
    if preset.family != family:
        raise SettingsError(f"the preset {name} is of {preset.family}, not of {family}")
    return preset
