"""Tiny checkpoints of every objective are trained on, stopped, and read by the exporter again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support.tiny_models import EXPORT, tiny_models
from vlserve.cli.finetuning import Run
from vlserve.errors import ExportError, SettingsError, TrainingError
from vlserve.exporter.export import read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import Settings
from vlserve.training.finetune.initial_network import start_from
from vlserve.training.finetune.plan import plan_of
from vlserve.training.finetune.run import FinetuneReport, dry_run, finetune
from vlserve.training.plots import plot_curves
from vlserve.training.presets import PRESETS, preset_of, tag_options

pytestmark = pytest.mark.training

COLOURS = {"red": (220, 30, 30), "cat": (30, 220, 30), "dog": (30, 30, 220), "ball": (220, 220, 30)}
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
OF_PAIRS = {"queue_size": 8}
LINES: dict[str, Any] = {
    "retrieve": lambda word, place: {"captions": [f"a {word}", f"{word} {word}"]},
    "caption": lambda word, place: {"captions": [f"a {word}", f"{word} {word}"]},
    "answer": lambda word, place: {"text": "a red ball", "label": ["cat", "cat", "dogs"]},
    "entail": lambda word, place: {
        "text": f"a {word}",
        "label": ("contradiction", "neutral", "entailment")[place % 3],
    },
    "reason": lambda word, place: {
        "text": f"a {word}",
        "label": place % 2 == 0,
        "img2": "val-red-0.png",
    },
}
OBJECTIVES = {
    "blip-match": ("retrieve", "mean_recall"),
    "blip-answer": ("answer", "answer_log_prob"),
    "blip-caption": ("caption", "caption_log_prob"),
    "albef-match": ("retrieve", "mean_recall"),
    "albef-answer": ("answer", "answer_log_prob"),
    "albef-entail": ("entail", "accuracy"),
    "albef-reason": ("reason", "accuracy"),
}


def write_lines(folder: Path, objective: str, name: str, per_colour: int) -> Path:
    """Plain pictures, and what a line of the objective says of each."""
    lines = []
    for number in range(per_colour):
        for word, colour in COLOURS.items():
            file = f"{name}-{word}-{number}.png"
            Image.fromarray(np.full((12, 16, 3), colour, dtype=np.uint8)).save(folder / file)
            more = LINES[objective](word, len(lines))
            lines.append({"id": file, "img": file, **more})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data


class Prepared:
    """A tiny checkpoint, and data for what it is to learn."""

    def __init__(self, name: str, folder: Path, objective: str) -> None:
        self.objective = objective
        self.recipe = load_recipe(name.partition("-")[0], EXPORT)
        self.checkpoint = tiny_models()[name].write(folder)
        self.val = write_lines(folder, objective, "val", 1)
        self.train = write_lines(folder, objective, "train", 2)

    def run(self, out: Path, **more: Any) -> FinetuneReport:
        files = (self.checkpoint, self.train, self.val, out)
        return finetune(self.recipe, *files, **self._told(more))

    def dry(self, **more: Any) -> Any:
        files = (self.checkpoint, self.train, self.val)
        return dry_run(self.recipe, *files, **self._told(more))

    def _told(self, more: dict[str, Any]) -> dict[str, Any]:
        of_pairs = more.get("objective", self.objective) in ("retrieve", "pretrain")
        own = OPTIONS | (OF_PAIRS if of_pairs else {})
        return more | {"options": own | more.get("options", {})}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_trained_on_is_exported_unchanged(name: str, tmp_path: Path) -> None:
    objective, metric = OBJECTIVES[name]
    case = Prepared(name, tmp_path, objective)
    out = tmp_path / "out"
    report = case.run(out)
    assert report.objective == objective and report.epochs == 2 and report.new == ()
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_by"] == metric and metrics["from_sha256"]
    recipe_file = str(EXPORT / f"{name.partition('-')[0]}.py")
    settings = Settings(project_dir=EXPORT.parent)
    model = read_trained(recipe_file, out / "model.safetensors", None, settings)
    assert model.config["training"]["objective"] == objective
    before = load_file(case.checkpoint)
    after = model.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key in after)


def test_a_run_from_a_checkpoint_is_the_same_again_and_keeps_teacher_and_queue(
    tmp_path: Path,
) -> None:
    case = Prepared("blip-match", tmp_path, "retrieve")
    for name in ("one", "two"):
        case.run(tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    state = load_file(tmp_path / "one" / "last.safetensors")
    assert {"network.queue.images", "network.temperature"} <= set(state)
    assert state["network.queue.ids"].min() >= 0  # two epochs have filled it
    slow = state["network.teacher.vision_proj.weight"]
    assert not torch.equal(slow, state["network.network.vision_proj.weight"])


def test_a_dry_run_takes_one_step_and_writes_nothing(tmp_path: Path) -> None:
    case = Prepared("albef-entail", tmp_path, "entail")
    before = sorted(tmp_path.iterdir())
    report = case.dry()
    assert sorted(tmp_path.iterdir()) == before
    assert report.shapes["image"] == (4, 3, 16, 24) and report.steps == 2
    trainable, total = report.parameters["cls_head"]
    assert trainable == total > 0 and report.memory_mib > 0 and report.losses["class"] > 0


def test_frozen_parts_of_a_checkpoint_keep_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.training.run_log.plot_curves", plot_curves)
    case = Prepared("albef-entail", tmp_path, "entail")
    case.run(tmp_path / "out", options={"freeze": "visual_encoder"})
    assert (tmp_path / "out" / "curves.png").stat().st_size
    before, after = load_file(case.checkpoint), load_file(tmp_path / "out" / "model.safetensors")
    keys = [key for key in after if key.startswith("visual_encoder.blocks")]
    assert keys and all(torch.equal(before[key], after[key]) for key in keys)
    assert not torch.equal(before["cls_head.2.weight"], after["cls_head.2.weight"])
    with pytest.raises(SettingsError, match="no part cnn"):
        case.run(tmp_path / "no", options={"freeze": "cnn"})


@pytest.mark.parametrize("objective", ["retrieve", "pretrain"])
def test_parts_of_a_network_with_a_teacher_have_its_own_names(
    tmp_path: Path, objective: str
) -> None:
    case = Prepared("albef-match", tmp_path, "retrieve")
    options = {"freeze": "visual_encoder,text_encoder.embeddings"}
    case.run(tmp_path / "out", objective=objective, options=options)
    before, after = load_file(case.checkpoint), load_file(tmp_path / "out" / "model.safetensors")
    same = {key for key in after if key in before and torch.equal(before[key], after[key])}
    assert same >= {
        key for key in after if key.startswith(("visual_encoder.b", "text_encoder.embeddings.w"))
    }
    assert "text_encoder.encoder.layer.0.output.dense.weight" in after.keys() - same
    parts = case.dry(objective=objective).parameters
    assert {"visual_encoder", "text_encoder", "itm_head"} <= set(parts) and "network" not in parts
    with pytest.raises(SettingsError, match=r"no part cnn; it has (temp[a-z]*, )?visual_encoder"):
        case.run(tmp_path / "no", objective=objective, options={"freeze": "cnn"})


def test_a_checkpoint_of_pairs_gets_a_classifier_and_says_so(tmp_path: Path) -> None:
    case = Prepared("albef-match", tmp_path, "entail")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"task": "entail"}), encoding="utf-8")
    report = case.dry(objective="entail")
    assert "cls_head.2.weight" in report.new and report.objective == "entail"


def test_reasoning_over_two_images_begins_with_each_layer_twice(tmp_path: Path) -> None:
    """From a checkpoint of pairs, as the original's NLVR begins with what was pretrained."""
    case = Prepared("albef-match", tmp_path, "reason")
    before = load_file(case.checkpoint)
    layers = sorted({name.split(".")[3] for name in before if "crossattention" in name})
    assert layers == ["1"]
    report = case.run(tmp_path / "out", objective="reason", options={"learning_rate": 1e-12})
    assert all(name.startswith("cls_head.") for name in report.new)
    after = load_file(tmp_path / "out" / "model.safetensors")
    own = "text_encoder.encoder.layer."
    assert {name.split(".")[3] for name in after if name.startswith(own)} == {"0", "1", "2"}
    for name in (x for x in before if x.startswith(f"{own}1.")):
        for layer in ("1", "2"):
            weight = after[name.replace(f"{own}1.", f"{own}{layer}.")]
            torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)
    case.checkpoint = tmp_path / "out" / "model.safetensors"
    dry_report = case.dry(
        objective="reason"
    )  # that one has its classifier, and is not doubled again
    assert dry_report.new == ()


@pytest.mark.parametrize(
    ("name", "objective", "learns"),
    [
        ("albef-match", "entail", "retrieve, pretrain"),
        ("blip-match", "answer", "retrieve"),
        ("blip-match", "pretrain", "retrieve"),
        ("blip-caption", "retrieve", "caption"),
    ],
)
def test_a_new_network_without_a_head_for_an_objective_says_what_it_can_learn(
    name: str, objective: str, learns: str, tmp_path: Path
) -> None:
    case = Prepared(name, tmp_path, objective if objective in LINES else "retrieve")
    config = read_trained(
        str(EXPORT / f"{name.partition('-')[0]}.py"),
        case.checkpoint,
        None,
        Settings(project_dir=EXPORT.parent),
    ).config
    whole = {key: value for key, value in config.items() if key != "family"}
    del whole["vision"]["layer_norm_eps"]  # as where a person writes the file: it has a default
    case.checkpoint = tmp_path / "new.json"
    case.checkpoint.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(
        TrainingError, match=rf"new\.json: .* no head for {objective}: .* for {learns};"
    ):
        case.dry(objective=objective)
    assert case.dry(objective=learns.partition(",")[0]).losses


TINY_OF = {
    "albef-retrieval": "albef-match",
    "albef-vqa": "albef-answer",
    "albef-ve": "albef-entail",
    "albef-nlvr": "albef-reason",
    "blip-retrieval": "blip-match",
    "albef-grounding": "albef-match",
    "blip-vqa": "blip-answer",
    "blip-caption": "blip-caption",
}


@pytest.mark.parametrize("name", TINY_OF)
def test_every_preset_takes_a_step(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    case = Prepared(TINY_OF[name], tmp_path, preset.objective)
    small = {"batch_size": 4} | (OF_PAIRS if preset.objective == "retrieve" else {})
    run = Run(case.recipe, case.checkpoint, case.train, case.val, None, small, 0)
    preset_run = run.with_preset(name)
    files = (preset_run.checkpoint, preset_run.train, preset_run.val)
    report = dry_run(
        preset_run.recipe,
        *files,
        objective=preset_run.objective,
        options=preset_run.options,
        seed=0,
    )
    assert report.objective == preset.objective and report.losses
    assert preset_run.options["learning_rate"] == preset.options["learning_rate"]
    if preset.objective == "retrieve":
        assert preset.options["queue_size"] % preset.options["batch_size"] == 0


def test_every_preset_is_tried() -> None:
    """Those of captioners in test_captioners.py, of regions in test_region_training.py, of
    pretraining in test_pretraining.py, the tagger's in test_fit.py."""
    regions = {name for name in PRESETS if name.startswith(("vilbert-", "visualbert-"))}
    pretraining = {"albef-pretrain", "blip-pretrain"}
    assert set(PRESETS) == {*TINY_OF, *regions, *pretraining, "s2", "m2", "resnet-gru"}


def test_a_preset_of_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is of albef, not of blip"):
        preset_of("albef-ve", "blip")
    with pytest.raises(SettingsError, match="no preset x: there are resnet-gru, albef-retrieval"):
        preset_of("x", "blip")


def test_a_preset_that_trains_a_checkpoint_on_needs_one() -> None:
    with pytest.raises(SettingsError, match="the preset blip-vqa trains a checkpoint on"):
        tag_options("blip-vqa", "blip", {})


def test_objectives_that_a_family_lacks_are_named(tmp_path: Path) -> None:
    case = Prepared("blip-match", tmp_path, "retrieve")
    with pytest.raises(TrainingError, match="no objective entail: there are retrieve, answer"):
        case.dry(objective="entail")
    case.recipe = load_recipe("resnet", EXPORT)
    with pytest.raises(TrainingError, match="leave out --from"):
        case.dry()
    state = {f"module.{key}": x for key, x in load_file(case.checkpoint).items()}
    save_file(state, case.checkpoint)
    case.recipe = load_recipe("blip", EXPORT)
    assert case.dry().objective == "retrieve"  # names that a wrapper prefixed are read, too


def test_a_queue_that_batches_do_not_divide_is_refused(tmp_path: Path) -> None:
    case = Prepared("albef-match", tmp_path, "retrieve")
    with pytest.raises(TrainingError, match="queue of 6 is no multiple of the 4 pairs"):
        case.run(tmp_path / "out", options={"queue_size": 6})


@pytest.mark.parametrize("image", ["large", 384])
def test_a_config_whose_image_is_no_object_is_named(tmp_path: Path, image: object) -> None:
    """Also where another file says how images are read."""
    prepared = Prepared("blip-match", tmp_path, "retrieve")
    plan, objective = plan_of(prepared.recipe, "retrieve")
    config = prepared.checkpoint.with_name("config.json")
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(fields | {"image": image}), encoding="utf-8")
    published = {"do_resize": True, "size": {"height": 16, "width": 16}}
    config.with_name("preprocessor_config.json").write_text(json.dumps(published), encoding="utf-8")
    with pytest.raises(ExportError, match="image"):
        start_from(prepared.recipe, plan, prepared.checkpoint, None, objective, 0)
