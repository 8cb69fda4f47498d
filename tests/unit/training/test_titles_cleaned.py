"""Titles that look the same are the same to a network that is trained so."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlserve.exporter.recipe import Recipe
from vlserve.training.dataset import read_dataset
from vlserve.training.demo_data import DemoData
from vlserve.training.options import DEMO_OPTIONS, TrainOptions
from vlserve.training.plan import training_plan

TITLE = "cafe\u0301\u00a0cover"
VARIANTS = (TITLE, "caf\u00e9 cover", "\ufeffcaf\u00e9\u2003co\u200bver\n")


def written(demo: DemoData, folder: Path) -> tuple[Path, Path]:
    """The drawn set, whose titles are variants of one."""
    for name in ("train", "val"):
        source = demo.train.parent / f"{name}.jsonl"
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for number, line in enumerate(lines):
            line["img"] = str((source.parent / line["img"]).resolve())
            line["text"] = VARIANTS[number % len(VARIANTS)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder / "train.jsonl", folder / "val.jsonl"


@pytest.mark.parametrize(
    ("cleaning", "titles"), [({"text_cleaning": "invisible"}, 1), ({}, len(VARIANTS))]
)
def test_one_title_in_all_its_variants(
    recipe: Recipe, demo: DemoData, tmp_path: Path, cleaning: dict[str, Any], titles: int
) -> None:
    options = training_plan(recipe).options(image_height=32, image_width=32, **cleaning)
    data = read_dataset(recipe, *written(demo, tmp_path), options, training={}, strict=True)
    rows = {tuple(row) for samples in (data.train, data.val) for row in samples.text_ids}
    assert len(rows) == titles
    assert data.config["text_cleaning"] == cleaning.get("text_cleaning")
    unseen = set("\u0301\u00a0\u2003\ufeff\u200b\n")
    assert (unseen & data.config["vocabulary"].keys() == set()) == bool(cleaning)


def test_runs_of_before_go_on() -> None:
    """The options that a run keeps are compared when it is resumed."""
    assert "text_cleaning" not in TrainOptions().said()
    assert TrainOptions(text_cleaning="invisible").said()["text_cleaning"] == "invisible"


def test_the_demo_is_trained_so() -> None:
    assert DEMO_OPTIONS["text_cleaning"] == "invisible"
