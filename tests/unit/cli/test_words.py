"""What words print: any task's answer for people, and the list of recipes."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from support.tiny_models import EXPORT
from vlserve.cli import app
from vlserve.cli.predict import print_answer
from vlserve.exporter.recipe import load_recipe, recipe_files

ABOUT = {"model": "m", "version": 3, "request_id": "r-1"}
ANSWERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tag": ({"tags": [{"tag": "猫", "score": 0.51234}]}, ["TAG  SCORE", "猫   0.512"]),
    "answer": ({"answers": [{"answer": "two", "score": 1.0}]}, ["ANSWER  SCORE", "two     1.000"]),
    "match": (
        {"probability": 0.25, "itm_score": -1.5, "cosine": 0.1},
        ["probability: 0.250", "itm_score: -1.500", "cosine: 0.100"],
    ),
    "caption": ({"caption": "a [red] cat", "log_prob": -2.0}, ["caption: a [red] cat"]),
    "entail": (
        {"label": "neutral", "scores": {"neutral": 0.75, "entailment": 0.25}},
        ["label: neutral", "scores: neutral 0.750, entailment 0.250"],
    ),
    "reason": ({"answer": True, "score": 0.9}, ["answer: True", "score: 0.900"]),
    "ground": (
        {"regions": [{"box": [0.0, 0.5, 1.0, 1.0], "score": 0.7}], "peak": None},
        ["BOX                           SCORE", "[0.000, 0.500, 1.000, 1.000]  0.700"],
    ),
    "heat-map": (
        {"peak": {"x": 0.5, "y": 0.25}, "heat_map": "A" * 5000},
        ["peak: x 0.500, y 0.250", f"heat_map: {'A' * 120}…"],
    ),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_for_people(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields, expected = ANSWERS[kind]
    print_answer(ABOUT | fields)
    first, *lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert first == "m 3  (request r-1)"
    assert lines[: len(expected)] == expected


def test_the_recipes_and_what_they_are_held_to() -> None:
    result = CliRunner().invoke(app, ["recipes", "--json"])
    assert result.exit_code == 0
    recipes = {entry["recipe"]: entry for entry in json.loads(result.output)}
    assert recipes.keys() == {file.stem for file in recipe_files(EXPORT)}
    for name, entry in recipes.items():
        spec = load_recipe(name, EXPORT).spec
        assert (tuple(entry["tasks"]), tuple(entry["reads"])) == (spec.tasks, spec.reads)
        assert len(entry["golden_cases"]) + len(entry["golden_keys"]) == len(spec.golden)
    assert "blip_vqa_base" in recipes["blip"]["golden_keys"]

    table = CliRunner().invoke(app, ["recipes"]).output
    for name in recipes:
        assert f"\n{name} " in table
    assert "blip, hf; 4 key lists" in table
