"""config.json with values of the wrong kind: each is an error that says so, and no traceback."""

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support.tiny_models import PROJECT, tiny_models
from vlserve.errors import ExportError
from vlserve.exporter.export import _served, read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import Settings

MODELS = {model.recipe: model for model in reversed(tiny_models().values())}
"""One of each recipe."""
BAD: list[Any] = [None, "x", -1, [], 10**12, 1e300]
"""The last two would take all memory, or hours, if anything were built of them."""


def places(config: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every field, and every field of a section."""
    for name, value in config.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, inner) for inner in value)


def changed(config: Mapping[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    new_config: dict[str, Any] = copy.deepcopy(dict(config))
    inside = new_config
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return new_config


@pytest.mark.parametrize("recipe", MODELS)
def test_a_value_of_the_wrong_kind_is_refused_in_words(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.exporter.export.load_recipe", cache(load_recipe))
    model, settings = MODELS[recipe], Settings(project_dir=PROJECT)
    checkpoint = model.write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    refusals = 0
    for place in places(config):
        for value in BAD:
            text = json.dumps(changed(config, place, value))
            (tmp_path / "config.json").write_text(text, encoding="utf-8")
            assets = tmp_path / "assets"
            assets.mkdir(exist_ok=True)
            try:
                _served(read_trained(recipe, checkpoint, None, settings), assets)
            except ExportError as error:
                assert len(str(error).splitlines()) == 1, (place, value)
                refusals += 1
    assert refusals > len(config)
