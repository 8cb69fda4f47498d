"""An option of a run from a checkpoint is followed, or refused with what decides instead."""

from pathlib import Path
from typing import Any

import pytest
from test_finetune import Prepared

from support.tiny_models import EXPORT
from vlserve.errors import SettingsError
from vlserve.exporter.recipe import load_recipe
from vlserve.training.finetune.option_use import OF_OBJECTIVES
from vlserve.training.finetune.plan import OF_TAGGERS, FinetuneOptions, plan_of
from vlserve.training.finetune.prepare import read_options
from vlserve.training.finetune.stages import finetune_in_stages, stage_options, with_preset
from vlserve.training.presets import PRESETS

VALUES: dict[str, Any] = {
    "image_height": 64,
    "image_width": 64,
    "max_length": 9,
    "text_cleaning": "invisible",
    "augment": True,
    "penalty": 1.0,
    "focal_gamma": 2.0,
    "class_weight_power": 1.0,
    "queue_size": 8,
    "momentum": 0.9,
    "alpha": 0.1,
    "least_answers": 1,
    "reward_workers": 1,
    "label_smoothing": 0.0,
}
PAIRS = {"queue_size", "momentum", "alpha"}
READ: dict[tuple[str, str], set[str]] = {
    ("blip", "retrieve"): PAIRS,
    ("blip", "pretrain"): PAIRS | {"label_smoothing"},
    ("blip", "answer"): {"label_smoothing"},
    ("blip", "caption"): {"label_smoothing"},
    ("albef", "retrieve"): PAIRS,
    ("albef", "pretrain"): PAIRS,
    ("albef", "answer"): {"label_smoothing"},
    ("albef", "entail"): {"label_smoothing"},
    ("albef", "reason"): {"label_smoothing"},
    ("vilbert", "answer"): {"least_answers"},
    ("vilbert", "match"): set(),
    ("vilbert", "ground"): set(),
    ("vilbert", "reason"): {"label_smoothing"},
    ("vilbert", "entail"): {"label_smoothing"},
    ("vilbert", "pretrain"): set(),
    ("visualbert", "answer"): {"least_answers"},
    ("visualbert", "tag"): {"label_smoothing", "focal_gamma", "class_weight_power"},
    ("visualbert", "pretrain"): set(),
    ("s2", "caption"): {"reward_workers"},
    ("m2", "reward"): {"reward_workers"},
}


def read(family: str, objective: str, **options: Any) -> FinetuneOptions:
    recipe = load_recipe(family, EXPORT)
    plan, target = plan_of(recipe, objective)
    return read_options(recipe, plan, target, options)


def test_every_option_of_some_runs_is_tried() -> None:
    assert VALUES.keys() == OF_TAGGERS.keys() | OF_OBJECTIVES.keys()


@pytest.mark.parametrize(("family", "objective"), READ, ids="-".join)
def test_an_option_is_followed_or_refused_with_its_name(family: str, objective: str) -> None:
    for name, value in VALUES.items():
        if name in READ[family, objective]:
            assert getattr(read(family, objective, **{name: value}), name) == value
            continue
        reason = OF_TAGGERS.get(name, f"{objective} does not read it")
        with pytest.raises(SettingsError) as error:
            read(family, objective, **{name: value})
        assert f"{name}: {reason}" in str(error.value) and "leave it out" in str(error.value)


def test_what_decides_the_size_of_images_is_said() -> None:
    with pytest.raises(SettingsError, match=r"image_width: config\.json beside .*: leave them out"):
        read("blip", "answer", image_height=384, image_width=384)
    with pytest.raises(SettingsError, match="resnet_width: Extra inputs") as error:
        read("blip", "answer", resnet_width=8)
    offered = str(error.value).partition("Options are ")[2].split(", ")
    assert "label_smoothing" in offered and not OF_TAGGERS.keys() & set(offered)


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].objective != "tag"])
def test_presets_say_nothing_that_no_one_reads(name: str) -> None:
    preset = PRESETS[name]
    recipe = load_recipe(preset.family, EXPORT)
    objectives = preset.objective.split(",")
    for objective in objectives:
        options = stage_options(recipe, preset.options, objective, objectives)
        read(preset.family, objective, **options)
    assert with_preset(name, recipe, None, {"epochs": 1}) == (
        preset.objective,
        {**preset.options, "epochs": 1},
    )


def test_a_preset_gives_another_objective_what_that_reads() -> None:
    recipe = load_recipe("albef", EXPORT)
    objective, options = with_preset("albef-retrieval", recipe, "entail", {"epochs": 2})
    assert objective == "entail" and not PAIRS & options.keys()
    assert (options["epochs"], options["learning_rate"]) == (2, 1e-5)
    stages, own = with_preset("s2", load_recipe("s2", EXPORT), "caption", {})
    assert stages == "caption" and own["caption.epochs"] == 20
    assert not [name for name in own if name.startswith("reward.")]


def test_an_option_of_all_stages_counts_where_one_reads_it(tmp_path: Path) -> None:
    recipe, stages = load_recipe("blip", EXPORT), ("retrieve", "caption")
    options = {"queue_size": 8, "label_smoothing": 0.0, "epochs": 3}
    assert stage_options(recipe, options, "retrieve", stages) == {"queue_size": 8, "epochs": 3}
    assert stage_options(recipe, options, "caption", stages) == {
        "label_smoothing": 0.0,
        "epochs": 3,
    }
    for wrong in ({"least_answers": 1}, {"caption.queue_size": 8}, {"penalty": 1.0}):
        files = [tmp_path / name for name in ("a.safetensors", "train.jsonl", "val.jsonl", "out")]
        with pytest.raises(SettingsError, match=str(next(iter(wrong))).rpartition(".")[2]):
            finetune_in_stages(recipe, *files, objectives=stages, options=wrong)


@pytest.mark.training
@pytest.mark.parametrize(
    ("name", "objective", "published"),
    [
        ("blip-answer", "answer", 0.1),
        ("blip-caption", "caption", 0.1),
        ("albef-answer", "answer", 0.0),
    ],
)
def test_words_are_smoothed_as_the_options_say_and_else_as_published(
    name: str, objective: str, published: float, tmp_path: Path
) -> None:
    case = Prepared(name, tmp_path, objective)
    still = {"dropout": 0.0}
    default = case.dry(options=still).losses[objective]
    losses = {
        share: case.dry(options={**still, "label_smoothing": share}).losses[objective]
        for share in (0.0, 0.1)
    }
    assert losses[published] == default and losses[0.0] != losses[0.1]


@pytest.mark.training
def test_an_option_that_the_checkpoint_s_own_task_does_not_read_is_refused(tmp_path: Path) -> None:
    case = Prepared("blip-caption", tmp_path, "caption")
    with pytest.raises(SettingsError, match="queue_size: caption does not read it"):
        case.dry(options={"queue_size": 8})


@pytest.mark.training
def test_the_record_has_the_smoothing_that_counted(tmp_path: Path) -> None:
    case = Prepared("blip-caption", tmp_path, "caption")
    case.run(tmp_path / "out", options={"epochs": 1})
    text = (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")
    assert '"label_smoothing": 0.1' in text
