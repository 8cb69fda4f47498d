"""Tiny ViLBERT and VisualBERT checkpoints learn from features of regions, and are exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support.tiny_models import EXPORT, bert, seeded, tiny_models
from vlserve.cli.finetuning import Run
from vlserve.errors import DataError, SettingsError, TrainingError
from vlserve.exporter.export import read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import Settings
from vlserve.training.finetune.run import FinetuneReport, dry_run, finetune
from vlserve.training.presets import PRESETS

pytestmark = pytest.mark.training

WORDS = ("cat", "dog", "ball", "red")
WIDTH, OBJECTS = 6, 7
"""Of a tiny ViLBERT's features, and of what its detector tells apart."""
BOXES = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]]
OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
TINY = {
    "vilbert-answer": ("answer", "answer_score"),
    "vilbert-match": ("match", "choice_accuracy"),
    "vilbert-ground": ("ground", "accuracy_iou_50"),
    "vilbert-reason": ("reason", "accuracy"),
    "vilbert-entail": ("entail", "accuracy"),
    "visualbert-answer": ("answer", "answer_score"),
    "visualbert-tag": ("tag", "map"),
    "visualbert-coattention-answer": ("answer", "answer_score"),
    "visualbert-coattention-tag": ("tag", "map"),
}


def line_of(objective: str, word: str, place: int) -> dict[str, Any]:
    """What a line of the objective says of an image of ``word``."""
    more: dict[str, dict[str, Any]] = {
        "answer": {"text": "a ball", "label": ["cat" if word == "cat" else "dogs"]},
        "tag": {"text": "a ball", "label": ["a" if word == "cat" else "b"]},
        "entail": {"text": f"a {word}", "label": "entailment" if word == "cat" else "neutral"},
        "reason": {"text": "a cat", "label": word == "cat"},
        "match": {"captions": [f"a {word}", f"{word} {word}"]},
        "pretrain": {"captions": [f"a {word} ball red cat dog", f"{word} {word} a red ball"]},
        "ground": {"text": "a cat", "box": BOXES[place % 3]},
    }
    return more[objective]


def write_regions(folder: Path, objective: str, name: str, per_word: int, width: int) -> Path:
    """Three regions an image, one number of which says what it shows; boxes and detections stand
    in the files that extractors write."""
    random, lines = np.random.default_rng(per_word), []
    for number in range(per_word):
        for place, word in enumerate(WORDS):
            file = f"{name}-{word}-{number}"
            features = random.normal(size=(3, width)).astype(np.float32) * 0.1
            features[:, place] += 2.0
            probabilities = np.full((3, OBJECTS), 0.1, dtype=np.float32)
            probabilities[:, place] = 0.4
            np.save(folder / f"{file}.npy", features)
            info = {
                "bbox": np.array(BOXES) * [40, 20, 40, 20],
                "num_boxes": 3,
                "image_width": 40,
                "image_height": 20,
                "cls_prob": probabilities,
            }
            np.save(folder / f"{file}_info.npy", np.array(info, dtype=object))
            own = {"id": file, "features": f"{file}.npy", **line_of(objective, word, place)}
            if objective == "reason":
                own |= {"features2": f"{file}.npy"}
            lines.append(own)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data


class Prepared:
    """A tiny checkpoint, and data for what it is to learn."""

    def __init__(self, name: str, folder: Path, objective: str) -> None:
        model = tiny_models()[name]
        self.recipe = load_recipe(model.recipe, EXPORT)
        self.checkpoint = model.write(folder)
        width = WIDTH if model.recipe == "vilbert" else 8
        self.train = write_regions(folder, objective, "train", 3, width)
        self.val = write_regions(folder, objective, "val", 1, width)
        self.folder = folder

    def run(self, out: str, **more: Any) -> FinetuneReport:
        options = OPTIONS | more.pop("options", {})
        files = (more.pop("start", self.checkpoint), self.train, self.val, self.folder / out)
        return finetune(self.recipe, *files, options=options, **more)

    def exported(self, out: str) -> Any:
        """What export reads of a run."""
        recipe_file = str(EXPORT / f"{self.recipe.spec.family}.py")
        settings = Settings(project_dir=EXPORT.parent)
        return read_trained(recipe_file, self.folder / out / "model.safetensors", None, settings)


@pytest.mark.parametrize("name", TINY)
def test_heads_learn_and_are_exported_unchanged(name: str, tmp_path: Path) -> None:
    objective, metric = TINY[name]
    case = Prepared(name, tmp_path, objective)
    report = case.run("out")
    assert (report.objective, report.new, report.bad_lines) == (objective, (), ())
    assert 0 <= report.metrics[metric] <= 1
    export = case.exported("out")
    assert export.config["training"]["objective"] == objective
    before, after = load_file(case.checkpoint), export.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key in after)


@pytest.mark.parametrize("name", ["vilbert-entail", "visualbert-answer"])
def test_what_features_say_is_learnt(name: str, tmp_path: Path) -> None:
    objective, chosen_by = TINY[name]
    case = Prepared(name, tmp_path, objective)
    options = {"epochs": 8, "patience": 8, "learning_rate": 1e-2, "dropout": 0.0}
    report = case.run("out", options=options)
    assert report.metrics[chosen_by] == 1.0


def test_a_completed_config_of_vilbert_keeps_its_heads(tmp_path: Path) -> None:
    case = Prepared("vilbert-answer", tmp_path, "answer")
    case.run("out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    encoder = case.exported("out").config["encoder"]
    assert encoder == config["encoder"] and encoder["text"]["heads"] == 2
    start = tmp_path / "out" / "model.safetensors"
    with pytest.raises(SettingsError, match=r"least_answers: config\.json .* names the answers"):
        case.run("again", start=start, options={"least_answers": 1})


def test_a_head_that_a_checkpoint_lacks_is_new_and_named_by_the_data(tmp_path: Path) -> None:
    case = Prepared("vilbert-match", tmp_path, "answer")
    state = {k: x for k, x in load_file(case.checkpoint).items() if "vil_prediction." not in k}
    save_file(state, case.checkpoint)
    with pytest.raises(DataError, match="gives no answer 99 times"):
        case.run("no", objective="answer", options={"least_answers": 99})
    report = case.run("out", objective="answer", options={"least_answers": 1})
    assert report.objective == "answer" and "vil_prediction.logit_fc.3.weight" in report.new
    config = case.exported("out").config
    assert config["answers"] == ["dogs", "cat"] and config["task_token"] == 1


@pytest.mark.parametrize("targets", [OBJECTS, WIDTH])
def test_vilbert_is_pretrained_and_then_answers(targets: int, tmp_path: Path) -> None:
    """By the detector's distribution, or by the features themselves."""
    model = tiny_models()["vilbert-match"]
    recipe = load_recipe("vilbert", EXPORT)
    config = model.built | {"heads": {}, "region_targets": targets}
    case = Prepared("vilbert-match", tmp_path, "pretrain")
    save_file(seeded(recipe.build(config), seed=3).state_dict(), case.checkpoint)
    dry_report = dry_run(
        *(recipe, case.checkpoint, case.train, case.val),
        objective="pretrain",
        options=OPTIONS,
    )
    assert set(dry_report.losses) == {"words", "regions", "alignment"}
    assert dry_report.shapes["region_targets"] == (4, 3, targets)
    report = case.run("pretrained", objective="pretrain")
    assert report.metrics["word_log_prob"] < 0
    export = case.exported("pretrained")
    assert export.config["task"] == "match"
    words = export.network.get_parameter("bert.embeddings.word_embeddings.weight")
    assert torch.equal(words, export.network.get_parameter("cls.predictions.decoder.weight"))
    case.train = write_regions(tmp_path, "answer", "train", 3, WIDTH)
    case.val = write_regions(tmp_path, "answer", "val", 1, WIDTH)
    start = tmp_path / "pretrained" / "model.safetensors"
    answer_report = case.run("out", start=start, objective="answer", options={"least_answers": 1})
    assert answer_report.new and case.exported("out").config["task"] == "answer"


def test_visualbert_is_pretrained_on_two_captions_and_then_answers(tmp_path: Path) -> None:
    case = pretraining_of_visualbert(tmp_path)
    dry_report = dry_run(
        *(case.recipe, case.checkpoint, case.train, case.val), options=OPTIONS, seed=1
    )
    assert set(dry_report.losses) == {"words", "alignment"}
    assert dry_report.shapes["text_types"] == dry_report.shapes["labels"]
    report = case.run("pretrained")
    assert report.objective == "pretrain" and report.metrics["word_log_prob"] < 0
    case.train = write_regions(tmp_path, "answer", "train", 3, 8)
    case.val = write_regions(tmp_path, "answer", "val", 1, 8)
    start = tmp_path / "pretrained" / "model.safetensors"
    answer_report = case.run("out", start=start, objective="answer", options={"least_answers": 1})
    assert answer_report.new == ("cls.weight", "cls.bias")
    assert case.exported("out").config["answers"] == ["dogs", "cat"]


def pretraining_of_visualbert(folder: Path) -> Prepared:
    case = Prepared("visualbert-answer", folder, "pretrain")
    model = tiny_models()["visualbert-answer"]
    own = {x: y for x, y in model.config.items() if x != "answers"} | {"task": "pretrain"}
    config = own | {"encoder": bert(2, 2, 11, token_types=2), "visual_dim": 8, "classes": 2}
    network = seeded(case.recipe.build(config), seed=1)
    state = {name: x.clone() for name, x in network.state_dict().items()}
    words = state["visual_bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.weight"] = words.clone()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    save_file(state, case.checkpoint)
    (folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
    return case


def test_lines_whose_regions_do_not_fit_are_named(tmp_path: Path) -> None:
    case = Prepared("vilbert-ground", tmp_path, "ground")
    np.save(tmp_path / "wide.npy", np.zeros((3, 9), dtype=np.float32))
    np.save(tmp_path / "bare.npy", np.zeros((3, WIDTH), dtype=np.float32))
    box = {"text": "a cat", "box": BOXES[0]}
    more: list[dict[str, Any]] = [
        {"id": "wide", "features": "wide.npy", "boxes": BOXES, **box},
        {"id": "bare", "features": "bare.npy", **box},
        {"id": "few", "features": "bare.npy", "boxes": BOXES[:2], **box},
        {"id": "image", "img": "a.jpg", **box},
    ]
    with case.train.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in more))
    reasons = [bad.reason for bad in case.run("out").bad_lines]
    assert "must be (regions, 6)" in reasons[0] and "bare_info.npy" in reasons[1]
    assert "must be (3, 4)" in reasons[2] and reasons[3] == "no features"


def test_several_labels_need_a_sigmoid_each(tmp_path: Path) -> None:
    case = Prepared("visualbert-coattention-tag", tmp_path, "tag")
    with pytest.raises(SettingsError, match="label_smoothing: items have several labels"):
        case.run("smoothed", options={"label_smoothing": 0.1})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"multi_label": False}), encoding="utf-8"
    )
    lines = case.train.read_text(encoding="utf-8").replace('["a"]', '["a", "b"]')
    case.train.write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match="several labels: say multi_label"):
        case.run("out")
    case.train = write_regions(tmp_path, "tag", "train", 3, 8)
    assert 0 <= case.run("out").metrics["accuracy"] <= 1


@pytest.mark.parametrize("several", [True, False])
def test_tags_are_learnt_by_the_losses_of_taggers(several: bool, tmp_path: Path) -> None:
    """Focal loss, and where an item has one label its weight: one of four is ``a``."""
    case = Prepared("visualbert-tag", tmp_path, "tag")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"multi_label": several}), encoding="utf-8"
    )

    def loss(**options: Any) -> float:
        files = (case.checkpoint, case.train, case.val)
        still = OPTIONS | {"dropout": 0.0, "batch_size": 12}
        report = dry_run(case.recipe, *files, objective="tag", options=still | options)
        return float(report.losses["tag"])

    assert loss(focal_gamma=2.0) < loss(focal_gamma=0.0)
    if several:
        with pytest.raises(SettingsError, match="class_weight_power: items have several labels"):
            loss(class_weight_power=1.0)
    else:
        plain = loss(label_smoothing=0.0)
        assert loss(label_smoothing=0.0, class_weight_power=1.0) != pytest.approx(plain, rel=1e-4)
        assert loss(focal_gamma=1e-6) == pytest.approx(plain, rel=1e-4)


def test_a_network_with_a_resnet_learns_from_images(tmp_path: Path) -> None:
    """Its features are those that the archive's graph makes; the ResNet stays as it is."""
    case = Prepared("visualbert-coattention-answer", tmp_path, "answer")
    for name in ("train", "val"):
        data = tmp_path / f"{name}.jsonl"
        lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        for place, line in enumerate(lines):
            colour = (255, 0, 0) if line["label"] == ["cat"] else (0, 0, 255)
            Image.new("RGB", (32, 24), colour).save(tmp_path / f"{name}-{place}.png")
            del line["features"]
            line["img"] = f"{name}-{place}.png"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = case.run("out")
    assert report.bad_lines == () and report.train_items == 12
    network = case.exported("out").network
    grid = load_file(tmp_path / "grid.safetensors")
    assert all(torch.equal(network.state_dict()[f"grid.{name}"], x) for name, x in grid.items())


@pytest.mark.parametrize(
    ("name", "objective", "learns"),
    [
        ("visualbert-tag", "pretrain", "tag"),
        ("visualbert-answer", "tag", "answer"),
        ("visualbert-coattention-tag", "answer", "tag"),
        ("vilbert-entail", "match", "entail"),
    ],
)
def test_a_new_network_without_a_head_for_an_objective_says_what_it_can_learn(
    name: str, objective: str, learns: str, tmp_path: Path
) -> None:
    case = Prepared(name, tmp_path, learns)
    recipe_file = str(EXPORT / f"{case.recipe.spec.family}.py")
    settings = Settings(project_dir=EXPORT.parent)
    config = read_trained(recipe_file, case.checkpoint, None, settings).config
    new = tmp_path / "new.json"
    new.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        TrainingError, match=rf"new\.json: .* no head for {objective}: .* for {learns}[,;]"
    ):
        case.run("out", start=new, objective=objective)


PRESET_OF = {
    "vilbert-pretrain": ("vilbert-match", "pretrain"),
    "vilbert-vqa": ("vilbert-answer", "answer"),
    "vilbert-retrieval": ("vilbert-match", "match"),
    "vilbert-grounding": ("vilbert-ground", "ground"),
    "visualbert-pretrain": ("", "pretrain"),
    "visualbert-vqa": ("visualbert-answer", "answer"),
    "visualbert-coattention": ("visualbert-coattention-answer", "answer"),
}


@pytest.mark.parametrize("name", PRESET_OF)
def test_every_preset_of_regions_takes_a_step(name: str, tmp_path: Path) -> None:
    tiny, objective = PRESET_OF[name]
    case = Prepared(tiny, tmp_path, objective) if tiny else pretraining_of_visualbert(tmp_path)
    run = Run(case.recipe, case.checkpoint, case.train, case.val, None, {"batch_size": 4}, 0)
    preset_run = run.with_preset(name)
    report = dry_run(
        *(preset_run.recipe, preset_run.checkpoint, preset_run.train, preset_run.val),
        objective=preset_run.objective,
        options=preset_run.options,
    )
    assert report.objective == objective == PRESETS[name].objective and report.losses
