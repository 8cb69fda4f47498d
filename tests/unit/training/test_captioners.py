"""Tiny captioners of features: from nothing by words, then by reward; both exported unchanged."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.tiny_models import EXPORT, captioner
from vlserve import cli
from vlserve.cli.finetuning import Run
from vlserve.errors import DataError, ExportError, SettingsError, TrainingError
from vlserve.exporter.export import read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import Settings
from vlserve.training.finetune.captioner import Writer, plain_words
from vlserve.training.finetune.rewards import Rewards
from vlserve.training.finetune.run import FinetuneReport, dry_run, finetune
from vlserve.training.finetune.stages import finetune_in_stages, stage_options
from vlserve.training.metrics.coco_captions import CiderD
from vlserve.training.presets import PRESETS

pytestmark = pytest.mark.training

WORDS = ("cat", "dog", "ball", "red")
TINY = {
    "s2": captioner("s2", False, 8, {"clusters": 3}, cells=12),
    "m2": captioner("m2", False, 6, {"slots": 3}, max_regions=9),
}
OPTIONS: dict[str, Any] = {
    "epochs": 12,
    "patience": 12,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "dropout": 0.0,
    "average_decay": 0.5,
}


def write_features(folder: Path, family: str, name: str, per_word: int) -> Path:
    """Rows in which one number says what the caption is of."""
    rows, width = (12, 8) if family == "s2" else (5, 6)
    random, lines = np.random.default_rng(len(name)), []
    for number in range(per_word):
        for place, word in enumerate(WORDS):
            file = f"{name}-{word}-{number}.npy"
            array = random.normal(size=(rows, width)).astype(np.float32) * 0.1
            array[:, place] += 2.0
            np.save(folder / file, array)
            lines.append({"id": file, "features": file, "captions": [f"A {word}.", f"a {word}"]})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data


def new_config(family: str, folder: Path) -> Path:
    """As an archive of the tiny model holds it."""
    recipe, tiny = load_recipe(family, EXPORT), TINY[family]
    network = recipe.build(tiny.built)
    config = recipe.complete_config(tiny.config, network.state_dict(), folder)
    file = folder / "new.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


def run(family: str, start: Path, folder: Path, name: str, **more: Any) -> FinetuneReport:
    options = OPTIONS | more.pop("options", {})
    files = (folder / "train.jsonl", folder / "val.jsonl", folder / name)
    return finetune(load_recipe(family, EXPORT), start, *files, options=options, **more)


@pytest.fixture(params=["s2", "m2"])
def family_data(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    write_features(tmp_path, request.param, "train", 3)
    write_features(tmp_path, request.param, "val", 1)
    return request.param, tmp_path


def test_both_stages_learn_and_are_exported_unchanged(family_data: tuple[str, Path]) -> None:
    family, folder = family_data
    first = run(family, new_config(family, folder), folder, "words")
    assert first.objective == "caption" and first.new == ("every tensor",)
    epochs = json.loads((folder / "words" / "metrics.json").read_text(encoding="utf-8"))["epochs"]
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    words = folder / "words" / "model.safetensors"
    second = run(family, words, folder, "reward", objective="reward", options={"epochs": 2})
    assert second.objective == "reward" and second.new == () and second.metrics["cider_d"] >= 0
    settings = Settings(project_dir=EXPORT.parent)
    reward = folder / "reward" / "model.safetensors"
    model = read_trained(str(EXPORT / f"{family}.py"), reward, None, settings)
    assert model.config["training"]["objective"] == "reward"
    before, after = load_file(words), load_file(reward)
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_one_stage_follows_the_other_and_the_running_one_is_resumed(tmp_path: Path) -> None:
    family, folder = "m2", tmp_path
    write_features(folder, family, "train", 2)
    write_features(folder, family, "val", 1)
    files = (new_config(family, folder), folder / "train.jsonl", folder / "val.jsonl")
    options = OPTIONS | {
        "caption.epochs": 3,
        "caption.least_epochs": 2,
        "patience": 1,
        "reward.epochs": 2,
        "reward.optimiser": "sgd",
        "reward.learning_rate": 1e-3,
        "reward_workers": 2,
    }

    def run_stages(name: str, **more: Any) -> FinetuneReport:
        recipe, stages = load_recipe(family, EXPORT), ("caption", "reward")
        options_now = more.pop("options", options)
        return finetune_in_stages(
            *(recipe, *files, folder / name), objectives=stages, options=options_now, **more
        )

    def stop(at: tuple[str, int]) -> Any:
        def show(step: Any) -> None:
            stage = "reward" if (folder / "stopped" / "config.json").is_file() else "caption"
            if (step.stage, step.done) == ("train", at[1]) and stage == at[0]:
                raise KeyboardInterrupt

        return show

    report = run_stages("whole")
    assert report.objective == "reward"
    words = json.loads((folder / "whole" / "caption" / "metrics.json").read_text(encoding="utf-8"))
    assert 2 <= len(words["epochs"]) <= 3 and words["options"]["learning_rate"] == 1e-2
    record = json.loads((folder / "whole" / "config.json").read_text(encoding="utf-8"))["training"]
    assert record["options"]["optimiser"] == "sgd" and record["before"]["objective"] == "caption"
    with pytest.raises(KeyboardInterrupt):
        run_stages("stopped", progress=stop(("caption", 1)))
    with pytest.raises(KeyboardInterrupt):
        run_stages("stopped", progress=stop(("reward", 1)), resume=True)
    with pytest.raises(TrainingError, match="other options or another seed"):
        run_stages("stopped", resume=True, options=options | {"caption.epochs": 4})
    run_stages("stopped", resume=True)
    for part in ("caption/model.safetensors", "model.safetensors"):
        assert (folder / "whole" / part).read_bytes() == (folder / "stopped" / part).read_bytes()


def test_ctrl_c_in_the_first_stage_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_features(tmp_path, "m2", "train", 2)
    write_features(tmp_path, "m2", "val", 1)

    @contextmanager
    def interrupting_progress(what: str, console: Any) -> Iterator[Any]:
        def show(step: Any) -> None:
            if (step.stage, step.done) == ("step", 2):
                os.kill(os.getpid(), signal.SIGINT)

        yield show

    monkeypatch.setattr("vlserve.training.progress.training_progress", interrupting_progress)
    words = ["vlserve", "train", "m2", "--from", str(new_config("m2", tmp_path))]
    words += ["--objective", "caption,reward", "--out", str(tmp_path / "out")]
    words += ["--data", str(tmp_path / "train.jsonl"), "--val", str(tmp_path / "val.jsonl")]
    monkeypatch.setattr("sys.argv", [*words, "--set", "batch_size=4"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as system_exit:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert system_exit.value.code == 130
    assert (tmp_path / "out" / "caption" / "last.safetensors").is_file()
    assert "--resume goes on" in capsys.readouterr().err


def test_both_stages_of_every_preset_take_a_step(family_data: tuple[str, Path]) -> None:
    family, folder = family_data
    start, recipe = new_config(family, folder), load_recipe(family, EXPORT)
    data = (folder / "train.jsonl", folder / "val.jsonl")
    small = {"caption.batch_size": 4, "reward.batch_size": 4, "accumulate": 1}
    run = Run(recipe, start, *data, None, small, 0).with_preset(family)
    assert run.objectives == ("caption", "reward")
    for objective in ("caption", "reward"):
        options = stage_options(recipe, run.options, objective, ("caption", "reward"))
        report = dry_run(recipe, start, *data, objective=objective, options=options)
        assert report.objective == objective and set(report.losses) == {objective}
    assert options["learning_rate"] == PRESETS[family].options["reward.learning_rate"]


@pytest.mark.parametrize(
    "second, options, reason",
    [
        ("reward", {"reward.epoch": 3}, "epoch: Extra inputs"),
        ("reward", {"reward.augmentation": "eda"}, "items of s2 are features"),
        ("rewards", {}, "s2 has no objective rewards"),
    ],
)
def test_what_a_later_stage_cannot_follow_is_refused_before_the_first(
    second: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """What an earlier run left stays."""
    before = tmp_path / "last.safetensors"
    before.touch()
    files = [tmp_path / name for name in ("new.json", "train.jsonl", "val.jsonl")]
    with pytest.raises((SettingsError, TrainingError), match=reason):
        finetune_in_stages(
            *(load_recipe("s2", EXPORT), *files, tmp_path),
            objectives=("caption", second),
            options=options,
        )
    assert before.exists()


def test_options_of_a_stage_win_and_those_of_none_are_refused() -> None:
    options = {"patience": 5, "epochs": 9, "reward.epochs": 2}
    stages, recipe = ("caption", "reward"), load_recipe("s2", EXPORT)
    assert stage_options(recipe, options, "caption", stages) == {"patience": 5, "epochs": 9}
    assert stage_options(recipe, options, "reward", stages) == {"patience": 5, "epochs": 2}
    with pytest.raises(SettingsError, match="options of rewards: stages are caption, reward"):
        stage_options(recipe, {"rewards.epochs": 2}, "caption", stages)


def test_workers_score_as_one_process_does() -> None:
    corpus = [["a cat"], ["a dog", "the dog"], ["a red ball"]]
    candidates, truth = ["a cat", "a dog", "a ball"], [["a cat"], ["a dog"], ["a red ball"]]
    assert Rewards(corpus, 2)(candidates, truth) == Rewards(corpus, 0)(candidates, truth)


def test_a_second_stage_that_stops_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    family, folder = "m2", tmp_path
    write_features(folder, family, "train", 3)
    write_features(folder, family, "val", 1)
    start = new_config(family, folder)

    def stop_after_one(step: Any) -> None:
        if step.stage == "train":
            raise KeyboardInterrupt

    more: dict[str, Any] = {"objective": "reward", "options": {"epochs": 2}}
    run(family, start, folder, "whole", **more)
    with pytest.raises(KeyboardInterrupt):
        run(family, start, folder, "stopped", progress=stop_after_one, **more)
    run(family, start, folder, "stopped", resume=True, **more)
    weights = [(folder / x / "model.safetensors").read_bytes() for x in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_captions_become_ids_and_come_back(tmp_path: Path) -> None:
    config = json.loads(new_config("m2", tmp_path).read_text(encoding="utf-8"))
    writer = Writer(load_recipe("m2", EXPORT), config, masked=True)
    ids = writer.ids("A red BALL, zebra!")
    assert ids == [2, 4, 5, 6, 0, 3] and writer.text(ids[1:]) == "a red ball <unk>"
    assert len(writer.ids("cat " * 50)) == config["writing"]["max_length"]
    assert plain_words("Don't — 你好!") == ["don't", "你好"]


def test_features_that_do_not_fit_are_named(tmp_path: Path) -> None:
    train = write_features(tmp_path, "m2", "train", 2)
    write_features(tmp_path, "m2", "val", 1)
    np.save(tmp_path / "wide.npy", np.zeros((3, 7), dtype=np.float32))
    np.save(tmp_path / "long.npy", np.zeros((10, 6), dtype=np.float32))
    more = [{"id": name, "features": f"{name}.npy", "captions": ["a"]} for name in ("wide", "long")]
    more += [{"id": "none", "img": "a.jpg", "captions": ["a"]}]
    with train.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in more))
    report = run("m2", new_config("m2", tmp_path), tmp_path, "out", options={"epochs": 1})
    reasons = [bad.reason for bad in report.bad_lines]
    assert "rows of 6" in reasons[0] and "10 rows, the network reads 9" in reasons[1]
    assert "no features" in reasons[2]
    with pytest.raises(DataError, match=r"3 bad line\(s\)"):
        run("m2", new_config("m2", tmp_path), tmp_path, "strict", strict=True)


@pytest.mark.parametrize("content", ["empty", "archive", "broken"])
def test_a_file_that_is_no_array_is_one_bad_line(tmp_path: Path, content: str) -> None:
    train = write_features(tmp_path, "m2", "train", 2)
    write_features(tmp_path, "m2", "val", 1)
    np.savez(tmp_path / "archive.npz", np.zeros((3, 6), dtype=np.float32))
    (tmp_path / "archive").write_bytes((tmp_path / "archive.npz").read_bytes())
    (tmp_path / "empty").touch()
    (tmp_path / "broken").write_bytes(b"PK\x03\x04 is how a zip begins")
    with train.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "bad", "features": content, "captions": ["a"]}) + "\n")
    report = run("m2", new_config("m2", tmp_path), tmp_path, "out", options={"epochs": 1})
    (bad,) = report.bad_lines
    assert bad.reason.startswith(f"features: {content} cannot be read: ValueError")


def test_a_config_that_is_not_complete_names_what_it_lacks(tmp_path: Path) -> None:
    write_features(tmp_path, "m2", "train", 1)
    write_features(tmp_path, "m2", "val", 1)
    config = json.loads(new_config("m2", tmp_path).read_text(encoding="utf-8"))
    del config["decoder"]
    (tmp_path / "new.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ExportError, match="decoder"):
        run("m2", tmp_path / "new.json", tmp_path, "out")


def test_rewards_know_the_words_of_the_training_captions() -> None:
    score = CiderD([["a cat"], ["a dog"], ["a red ball"]])
    right, wrong = score(["a cat", "a dog"], [["a cat"], ["a cat"]])
    assert right > wrong >= 0 and score(["a cat"], [["a cat"]]) == [right]
