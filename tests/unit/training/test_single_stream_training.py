"""The VisualBERT families learn from images and titles, the ResNet of the grid along."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlserve.errors import ExportError
from vlserve.exporter.convert import Converter, load_network
from vlserve.exporter.export import export_archive
from vlserve.exporter.recipe import load_recipe
from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.runtime.manifest import ImageInput
from vlserve.training.demo_data import DemoData
from vlserve.training.evaluate import evaluate_archive
from vlserve.training.fit import fit
from vlserve.training.tagger_augmentation import Augmentation
from vlserve.training.vocabulary import build_pieces

pytestmark = pytest.mark.training

FAMILY = "visualbert_coattention"
EXPORT = Path(__file__).parents[3] / "export"
OPTIONS: Mapping[str, Any] = {
    "image_height": 24,
    "image_width": 32,
    "resnet_layers": (1, 1),
    "resnet_width": 8,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "max_length": 12,
    "batch_size": 8,
    "epochs": 2,
}


def test_a_trained_checkpoint_is_served_as_it_was_measured(
    demo: DemoData, converter: Converter, tmp_path: Path
) -> None:
    recipe = load_recipe(FAMILY, EXPORT)
    report = fit(recipe, demo.train, demo.val, tmp_path, options=OPTIONS, seed=2)
    checkpoint = tmp_path / "model.safetensors"
    archive = export_archive(
        FAMILY, checkpoint, tmp_path, format="torchscript", converter=converter
    ).path
    figures = evaluate_archive(archive, demo.val).metrics.to_json()
    for name in ("items", "accuracy", "macro_f1", "map"):
        assert figures[name] == pytest.approx(report.metrics.to_json()[name])
    weights = load_file(checkpoint)
    bare = {name: x for name, x in weights.items() if not name.startswith("grid.")}
    assert len(bare) < len(weights)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(ExportError, match=r"grid of config\.json must be like"):
        recipe.complete_config(config, bare, tmp_path)


def test_visualbert_learns_in_the_same_way(demo: DemoData, tmp_path: Path) -> None:
    recipe = load_recipe("visualbert", EXPORT)
    fit(recipe, demo.train, demo.val, tmp_path, options={**OPTIONS, "epochs": 1})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    state = load_file(tmp_path / "model.safetensors")
    full_config = recipe.complete_config(config, state, tmp_path)
    load_network(recipe, recipe.adapt(state, full_config), full_config)


def test_frequent_words_are_pieces_and_others_are_read_letter_by_letter() -> None:
    pieces = build_pieces(["Red cat", "red dog", "red猫"], min_count=3)
    assert "red" in pieces and "cat" not in pieces and pieces == sorted(pieces)
    tokenizer = wordpiece([*SPECIAL, *pieces])
    assert tokenizer.encode("RED cat 猫").tokens == [
        "[CLS]",
        "red",
        "c",
        "##a",
        "##t",
        "猫",
        "[SEP]",
    ]
    assert tokenizer.encode("tree?").tokens[1:-1] == ["t", "##r", "##e", "##e", "[UNK]"]


def test_changed_titles_keep_their_frame() -> None:
    row = np.array([2, *range(10, 40), 3])
    changes = Augmentation(
        ImageInput(height=16, width=16), 1, torch.Generator().manual_seed(0), framed=True
    )
    titles = changes.titles([row, row[[0, -1]]])
    assert [ids[0] for ids in titles] == [2, 2] and [ids[-1] for ids in titles] == [3, 3]
    assert len(titles[0]) < len(row) and set(titles[0][1:-1]) <= {1, *range(10, 40)}
    assert len(titles[1]) == 2
