import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from vlserve.errors import DataError, TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.training.demo_data import DemoData
from vlserve.training.fit import TrainReport, fit
from vlserve.training.presets import tag_options
from vlserve.training.run import Progress

pytestmark = pytest.mark.training

LOOKS_AT_PICTURES = True
TINY: Mapping[str, Any] = {
    "image_height": 32,
    "image_width": 32,
    "resnet_layers": (1, 1, 1, 1),
    "resnet_width": 8,
    "hidden": 16,
    "embedding_size": 8,
    "max_length": 24,
    "batch_size": 8,
    "epochs": 3,
}
WriteLines = Callable[..., Path]


def figures_of(out: Path) -> list[dict[str, float]]:
    epochs = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["epochs"]
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in epochs]


def multi_label(demo: DemoData, name: str, folder: Path) -> Path:
    """The drawn set with scene and topic as two labels an item."""
    source = demo.train.parent / f"{name}.jsonl"
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        item |= {
            "label": item["label"].split("-"),
            "img": str((source.parent / item["img"]).resolve()),
        }
        lines.append(json.dumps(item) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def training(
    recipe: Recipe, demo: DemoData, tmp_path_factory: pytest.TempPathFactory
) -> TrainReport:
    out = tmp_path_factory.mktemp("trained") / "out"
    return fit(recipe, demo.train, demo.val, out, options=TINY, seed=5)


def test_a_run_leaves_what_an_export_needs_and_nothing_pickled(
    training: TrainReport, recipe: Recipe, demo: DemoData
) -> None:
    names = {file.name for file in training.out.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "last.safetensors",
        "log.jsonl",
        "metrics.json",
        "confusion.png",
        "curves.png",
    }
    config = json.loads((training.out / "config.json").read_text(encoding="utf-8"))
    assert config["labels"] == list(demo.labels) and config["pooling"] == "final_states"
    assert config["pad_id"] != config["unknown_id"]
    assert min(config["vocabulary"].values()) == 2
    weights = load_file(training.out / "model.safetensors")
    complete = recipe.complete_config(config, weights, training.out)
    recipe.build(complete).load_state_dict(recipe.adapt(weights, complete))
    for file in training.out.iterdir():
        assert not zipfile.is_zipfile(file) and file.read_bytes()[:1] != b"\x80"
    with Image.open(training.out / "confusion.png") as plot:
        assert plot.format == "PNG" and len(np.unique(np.asarray(plot.convert("L")))) > 10


def test_metrics_are_those_of_the_best_epoch(training: TrainReport) -> None:
    metrics = json.loads((training.out / "metrics.json").read_text(encoding="utf-8"))
    epochs = metrics["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3] and training.epochs == 3
    best = max(epochs, key=lambda epoch: epoch["macro_f1"])
    assert metrics["best_epoch"] == training.best_epoch == best["epoch"]
    assert metrics["best_by"] == "macro_f1"
    for name in ("accuracy", "macro_f1", "map"):
        assert metrics[name] == getattr(training.metrics, name) == best[name]
    assert metrics["items"] == 9 and metrics["train_items"] == 45
    config = json.loads((training.out / "config.json").read_text(encoding="utf-8"))
    evaluation = config["training"]["evaluation"]  # which goes into the archive's manifest
    assert evaluation["macro_f1"] == best["macro_f1"]
    intervals = evaluation["intervals_95"]
    assert set(intervals) == {"accuracy", "macro_f1", "map"}
    assert intervals["accuracy"][0] <= evaluation["accuracy"] <= intervals["accuracy"][1]
    assert epochs[-1]["learning_rate"] < epochs[0]["learning_rate"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    training: TrainReport, recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    fit(recipe, demo.train, demo.val, tmp_path / "same", options=TINY, seed=5)
    fit(recipe, demo.train, demo.val, tmp_path / "other", options=TINY, seed=6)
    assert figures_of(tmp_path / "same") == figures_of(training.out)
    assert figures_of(tmp_path / "other") != figures_of(training.out)


def test_the_tutorials_preset_trains_a_network_of_its_sizes(
    recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    small = {"image_height": 35, "image_width": 25, "resnet_width": 4, "epochs": 1}
    options = tag_options("resnet-gru", "resnet_gru", small)
    assert options["max_length"] == 15 and options["image_height"] == 35
    fit(recipe, demo.train, demo.val, tmp_path, options=options)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden"], config["gru_layers"], config["embedding_size"]) == (16, 2, 64)


def test_a_resumed_run_equals_one_that_never_stopped(
    training: TrainReport, recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    def stop_after_one(progress: Progress) -> None:
        if progress.stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            recipe, demo.train, demo.val, tmp_path,
            options=TINY, seed=5, progress=stop_after_one,
        )  # fmt: skip
    assert not (tmp_path / "metrics.json").exists()
    steps: list[Progress] = []
    report = fit(
        recipe, demo.train, demo.val, tmp_path,
        options=TINY, seed=5, resume=True, progress=steps.append,
    )  # fmt: skip
    assert [step.done for step in steps if step.stage == "train"] == [2, 3]
    assert figures_of(tmp_path) == figures_of(training.out)
    assert report.metrics == training.metrics
    expected, actual = (
        load_file(folder / "last.safetensors") for folder in (training.out, tmp_path)
    )
    assert expected.keys() == actual.keys()
    assert all(expected[name].equal(actual[name]) for name in expected)


def test_a_run_is_resumed_with_the_same_settings_or_not_at_all(
    training: TrainReport, recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    def resume(out: Path, **changes: Any) -> None:
        options = {**TINY, **changes.pop("options", {})}
        arguments = {"seed": 5, "resume": True, **changes}
        fit(recipe, demo.train, demo.val, out, options=options, **arguments)

    with pytest.raises(TrainingError, match="another seed"):
        resume(training.out, seed=6)
    with pytest.raises(TrainingError, match="another options"):
        resume(training.out, options={"epochs": 9})
    with pytest.raises(TrainingError, match="nothing to resume"):
        resume(tmp_path)
    (tmp_path / "last.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match="is not the state of a training run"):
        resume(tmp_path)


def test_training_stops_when_nothing_gets_better(
    recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    still = {**TINY, "epochs": 9, "patience": 2, "learning_rate": 1e-12}
    report = fit(recipe, demo.train, demo.val, tmp_path, options=still)
    assert report.epochs == report.best_epoch + 2 < 9


def test_items_with_several_labels_are_chosen_by_map(
    recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    train, val = (multi_label(demo, name, tmp_path) for name in ("train", "val"))
    report = fit(recipe, train, val, tmp_path / "out", options=TINY)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert metrics["best_by"] == "map" and report.metrics.micro_f1 is not None
    assert config["multi_label"] and len(config["labels"]) == 6
    assert config["training"]["label_items"]["concert"] == 15


def test_bad_lines_are_reported_and_strict_refuses_them(
    recipe: Recipe, demo: DemoData, tmp_path: Path, write_lines: WriteLines
) -> None:
    items = [
        {"id": f"{i}", "img": "ab"[i % 2] + ".jpg", "text": "t", "label": "xy"[i % 2]}
        for i in range(9)
    ]
    train = write_lines(*items, b"{broken", name="train.jsonl")
    val = write_lines(
        {**items[0], "id": "v"}, {**items[0], "id": "w", "label": "z"}, name="val.jsonl"
    )
    report = fit(recipe, train, val, tmp_path / "out", options={**TINY, "epochs": 1})
    assert [str(bad) for bad in report.bad_lines] == [
        "train.jsonl:10: not JSON: Expecting property name enclosed in double quotes at column 2",
        "val.jsonl:2: unknown label z",
    ]
    record = json.loads((tmp_path / "out" / "bad_lines.json").read_text(encoding="utf-8"))
    assert record["count"] == 2
    assert (
        json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["bad_lines"]
        == 2
    )
    with pytest.raises(DataError, match=r"2 bad line\(s\)"):
        fit(recipe, train, val, tmp_path / "strict", options=TINY, strict=True)
    assert not (tmp_path / "strict").exists()


def test_data_that_cannot_be_trained_on_is_refused(
    recipe: Recipe, demo: DemoData, tmp_path: Path, write_lines: WriteLines
) -> None:
    item = {"id": "1", "img": "a.jpg", "text": "t", "label": "x"}
    train = write_lines(item, {**item, "id": "2"}, name="train.jsonl")
    val = write_lines({**item, "id": "3"}, name="val.jsonl")
    with pytest.raises(DataError, match="at least two of each"):
        fit(recipe, train, val, tmp_path / "out", options=TINY)
    with pytest.raises(DataError, match=r"no usable line.*its id is in train.jsonl too"):
        fit(recipe, demo.train, demo.train, tmp_path / "out", options=TINY)


def test_a_loss_that_is_no_number_says_what_to_do(
    recipe: Recipe, demo: DemoData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate than 1e\\+38"):
        fit(recipe, demo.train, demo.val, tmp_path, options={**TINY, "learning_rate": 1e38})
