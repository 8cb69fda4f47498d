"""Tiny checkpoints of ALBEF and BLIP are pretrained, exported, and trained on from there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_finetune import Prepared

from support.tiny_models import EXPORT, bert, seeded, tiny_models
from vlserve.cli.finetuning import Run
from vlserve.errors import TrainingError
from vlserve.exporter.export import read_trained
from vlserve.settings import Settings
from vlserve.training.finetune import retrieval
from vlserve.training.finetune.prepare import prepare
from vlserve.training.finetune.run import dry_run

pytestmark = pytest.mark.training

FAMILIES = ("albef", "blip")


def prepared(family: str, folder: Path, objective: str = "retrieve") -> Prepared:
    """A checkpoint as published pretraining leaves it, where BLIP's has a decoder too, and data of
    an objective."""
    case = Prepared(f"{family}-match", folder, objective)
    if family == "blip":
        model = tiny_models()["blip-match"]
        config = model.built | {"decoder": bert(2, 0, 13, token_types=0)}
        save_file(seeded(case.recipe.build(config), seed=1).state_dict(), case.checkpoint)
    return case


def exported(family: str, out: Path) -> Any:
    settings = Settings(project_dir=EXPORT.parent)
    return read_trained(str(EXPORT / f"{family}.py"), out / "model.safetensors", None, settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_pretrained_is_exported_and_resumed_to_the_same_bytes(
    family: str, tmp_path: Path
) -> None:
    case = prepared(family, tmp_path)
    report = case.run(tmp_path / "whole", objective="pretrain")
    assert report.objective == "pretrain" and report.metrics["word_log_prob"] < 0
    assert exported(family, tmp_path / "whole").config["task"] == "match"

    def stop(step: Any) -> None:
        if step.stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.run(tmp_path / "stopped", objective="pretrain", progress=stop)
    case.run(tmp_path / "stopped", objective="pretrain", resume=True)
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("objective", ["retrieve", "pretrain"])
def test_an_epoch_reads_its_pairs_once_whatever_its_batches(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prepared("albef", tmp_path)
    files: list[Path] = []
    corpus_of = retrieval.corpus_of

    def counted(file: Any) -> Any:
        files.append(file.path)
        return corpus_of(file)

    monkeypatch.setattr(retrieval, "corpus_of", counted)
    for batch_size, batches in ((2, 8), (8, 2)):
        files.clear()
        arguments = (case.recipe, case.checkpoint, case.train, case.val, None, objective)
        options = {"batch_size": batch_size, "queue_size": 8}
        job = prepare(*arguments, options, 0, None).job
        assert len(list(job.batches(0, 1))) == job.steps == batches
        assert files == [case.train]


@pytest.mark.parametrize(
    "family, losses",
    [("albef", {"words", "contrast", "match"}), ("blip", {"contrast", "match", "caption"})],
)
def test_presets_of_pretraining_take_a_step(family: str, losses: set[str], tmp_path: Path) -> None:
    case = prepared(family, tmp_path)
    small = {"batch_size": 4, "queue_size": 8}
    run = Run(case.recipe, case.checkpoint, case.train, case.val, None, small, 0)
    preset_run = run.with_preset(f"{family}-pretrain")
    files = (preset_run.checkpoint, preset_run.train, preset_run.val)
    report = dry_run(preset_run.recipe, *files, objective="pretrain", options=preset_run.options)
    assert set(report.losses) == losses and preset_run.options["alpha"] == 0.4


def test_a_tied_decoder_learns_with_its_encoder(tmp_path: Path) -> None:
    case = prepared("blip", tmp_path)
    case.run(tmp_path / "out", objective="pretrain")
    state = load_file(tmp_path / "out" / "model.safetensors")
    layer = "encoder.layer.0."
    for part in ("crossattention.self.key", "intermediate.dense", "output.dense"):
        decoder_weight, encoder_weight = (
            state[f"{prefix}{layer}{part}.weight"]
            for prefix in ("text_decoder.bert.", "text_encoder.")
        )
        assert torch.equal(decoder_weight, encoder_weight), part
    apart = f"{layer}attention.self.key.weight"
    assert not torch.equal(state[f"text_decoder.bert.{apart}"], state[f"text_encoder.{apart}"])


def test_albef_goes_on_with_its_head_of_masked_words(tmp_path: Path) -> None:
    case = prepared("albef", tmp_path)
    assert case.run(tmp_path / "one", objective="pretrain").new == ("text_encoder.cls.",)
    head = "text_encoder.cls.predictions.transform.dense.weight"
    first = load_file(tmp_path / "one" / "model.safetensors")[head]
    case.checkpoint = tmp_path / "one" / "model.safetensors"
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    assert case.run(tmp_path / "two", objective="pretrain", options=still).new == ()
    second = load_file(tmp_path / "two" / "model.safetensors")[head]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", ["retrieve", "caption", "answer"])
def test_every_task_of_blip_begins_with_what_was_pretrained(objective: str, tmp_path: Path) -> None:
    case = prepared("blip", tmp_path, objective)
    report = case.run(tmp_path / "out", objective=objective)
    assert report.objective == objective and report.new == ()
    export = exported("blip", tmp_path / "out")
    assert export.config["task"] == {"retrieve": "match"}.get(objective, objective)
    parts = {name.partition(".")[0] for name in export.network.state_dict()}
    assert ("text_decoder" in parts) == (objective != "retrieve")


def test_a_checkpoint_of_pretraining_is_exported_for_captions(tmp_path: Path) -> None:
    case = prepared("blip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"task": "caption"}), encoding="utf-8"
    )
    settings = Settings(project_dir=EXPORT.parent)
    model = read_trained(str(EXPORT / "blip.py"), case.checkpoint, None, settings)
    parts = {name.partition(".")[0] for name in model.network.state_dict()}
    assert parts == {"visual_encoder", "text_decoder"}


def test_answers_of_albef_begin_with_the_layers_that_see_the_image(tmp_path: Path) -> None:
    case = prepared("albef", tmp_path, "answer")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    answers = {"answers": ["cat", "dogs"]}
    (tmp_path / "config.json").write_text(json.dumps(config | answers), encoding="utf-8")
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    report = case.run(tmp_path / "out", objective="answer", options=still)
    assert "text_decoder.cls.predictions.bias" in report.new
    before, after = (load_file(x) for x in (case.checkpoint, tmp_path / "out/model.safetensors"))
    own, theirs = "text_decoder.bert.encoder.layer.0.", "text_encoder.encoder.layer.1."
    for part in ("crossattention.self.key.weight", "attention.self.query.weight"):
        torch.testing.assert_close(after[own + part], before[theirs + part], rtol=0, atol=1e-6)
    assert exported("albef", tmp_path / "out").config["task"] == "answer"


def test_pretraining_of_blip_needs_a_decoder(tmp_path: Path) -> None:
    case = Prepared("blip-match", tmp_path, "retrieve")
    with pytest.raises(TrainingError, match="the checkpoint has no text_decoder"):
        case.dry(objective="pretrain")
