"""Training on pairs: the loss, what is learnt, what is left out, what is kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from support.tiny_models import EXPORT, dual_encoder_model, seeded
from vlserve.errors import DataError, SettingsError, TrainingError
from vlserve.exporter.export import read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import Settings
from vlserve.training.contrastive import PairReport, fit_pairs, is_of_pairs
from vlserve.training.objectives.retrieve import in_batch_contrast

pytestmark = pytest.mark.training

COLOURS = {"red": (220, 30, 30), "cat": (30, 220, 30), "dog": (30, 30, 220), "ball": (220, 220, 30)}
OPTIONS = {"epochs": 30, "batch_size": 4, "learning_rate": 0.02, "dropout": 0.0, "max_length": 8}
OPTIONS |= {"image_height": 24, "image_width": 32, "embedding": 6, "weight_decay": 0.0}


def test_the_loss_is_the_mean_of_both_ways() -> None:
    images, texts = torch.eye(3)[:2], torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0]])
    logits = 2 * np.array([[0.6, 0.0], [0.8, 1.0]])
    by_row = [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(2)]
    by_column = [np.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(2)]
    loss = in_batch_contrast(images, texts, torch.tensor(2.0), 0.0)
    assert float(loss) == pytest.approx(np.mean(by_row + by_column))


class TinyPlan:
    """The recipe's own plan around tiny encoders."""

    def __init__(self, real: Any, weights: Mapping[str, Tensor]) -> None:
        self.real, self.weights, self.options = real, weights, real.options

    def new_config(self, options: Any, training: Mapping[str, Any]) -> dict[str, Any]:
        config = dual_encoder_model().built
        parts = {name: config[name] for name in ("text", "image_encoder", "vocabulary")}
        return {**self.real.new_config(options, training), **parts}

    def pretrained(self, options: Any) -> Mapping[str, Tensor]:
        return self.weights


def tiny_recipe() -> Any:
    recipe: Any = load_recipe("dual_encoder", EXPORT)
    encoder = seeded(recipe.build(dual_encoder_model().built).get_submodule("encoder"), seed=1)
    recipe.training = TinyPlan(recipe.training, encoder.state_dict())
    return recipe


def write_pairs(folder: Path, name: str, per_colour: int, seed: int) -> Path:
    """Plain pictures, whose captions name the colour."""
    folder.mkdir(exist_ok=True)
    random, lines = np.random.default_rng(seed), []
    for number in range(per_colour):
        for word, colour in COLOURS.items():
            file = f"{name}-{word}-{number}.png"
            shade = np.clip(np.array(colour) + random.integers(-20, 20, 3), 0, 255)
            pixels = np.broadcast_to(shade, (12, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / file)
            lines.append({"id": file, "img": file, "captions": [f"a {word}", f"{word} {word}"]})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    return write_pairs(folder, "train", 5, seed=0), write_pairs(folder, "val", 1, seed=1)


def run(files: tuple[Path, Path], out: Path, **more: Any) -> PairReport:
    options = OPTIONS | more.pop("options", {})
    return fit_pairs(tiny_recipe(), *files, out, options=options, **more)


def test_pairs_are_learnt_and_the_best_epoch_is_kept(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    report = run(files, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    first, best = metrics["epochs"][0], metrics["epochs"][report.best_epoch - 1]
    assert best["mean_recall"] == max(epoch["mean_recall"] for epoch in metrics["epochs"])
    assert metrics["epochs"][-1]["train_loss"] < 0.7 * first["train_loss"]
    assert report.metrics.values["text_to_image_r1"] >= 0.75  # of four; by chance 0.25
    checkpoint = tmp_path / "out" / "model.safetensors"
    model = read_trained(
        str(EXPORT / "dual_encoder.py"), checkpoint, None, Settings(project_dir=EXPORT.parent)
    )
    encoder = model.network.get_submodule("encoder").state_dict()
    expected = tiny_recipe().training.pretrained(None)
    assert all(torch.equal(encoder[name], tensor) for name, tensor in expected.items())


def test_a_run_without_a_better_epoch_ends(files: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"patience": 2, "learning_rate": 1e-9}
    report = run(files, tmp_path / "out", options=options)
    assert (report.best_epoch, report.epochs) == (1, 3)


def test_the_same_run_gives_the_same_figures_from_kept_features(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "features"
    first = run(files, tmp_path / "a", features=cache, options={"epochs": 2, "dropout": 0.3})
    times = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(times) == 4
    second = run(files, tmp_path / "b", features=cache, options={"epochs": 2, "dropout": 0.3})
    assert second.metrics == first.metrics
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == times
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("a", "b")]
    assert weights[0] == weights[1]


def test_bad_lines_and_trained_ids_are_left_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = files
    lines = [*train.read_text(encoding="utf-8").splitlines()[:1], '{"id": "x"}']
    lines += [json.dumps({"id": "gone", "img": "gone.png", "captions": ["a"]})]
    bad = val.with_name("bad.jsonl")
    bad.write_text(
        "\n".join([*val.read_text(encoding="utf-8").splitlines(), *lines]) + "\n", encoding="utf-8"
    )
    report = run((train, bad), tmp_path / "out", options={"epochs": 1})
    assert [line.line for line in report.bad_lines] == [5, 6, 7]
    reasons = " ".join(line.reason for line in report.bad_lines)
    assert "training file too" in reasons and "neither" in reasons and "gone.png" in reasons
    assert (
        json.loads((tmp_path / "out" / "bad_lines.json").read_text(encoding="utf-8"))["count"] == 3
    )
    with pytest.raises(DataError, match=r"3 bad line\(s\)"):
        run((train, bad), tmp_path / "out", strict=True)
    with pytest.raises(DataError, match="no usable line"):
        run((train, train), tmp_path / "out")
    single_item = val.with_name("one.jsonl")
    single_item.write_text(val.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="at least two"):
        run((train, single_item), tmp_path / "out")


def test_what_a_run_cannot_be_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="surprise"):
        run(files, tmp_path, options={"surprise": 1})
    for name, value in {
        "penalty": 1,
        "focal_gamma": 1,
        "class_weight_power": 1,
        "augment": 1,
    }.items():
        with pytest.raises(SettingsError, match=f"options: {name}: .* leave it out"):
            run(files, tmp_path, options={name: value})
    with pytest.raises(TrainingError, match="nothing to resume"):
        run(files, tmp_path, resume=True)
    assert is_of_pairs(load_recipe("dual_encoder", EXPORT))
    assert not is_of_pairs(load_recipe("modern", EXPORT))
    assert not is_of_pairs(load_recipe("blip", EXPORT))
