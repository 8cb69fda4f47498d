"""`text_cleaning` of config.json, from each family's checkpoint to the manifest."""

import json
import zipfile
from pathlib import Path

import pytest

from support.tiny_models import TinyModel, tiny_models
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.archive import verify_archive

EXPORT = Path(__file__).parents[3] / "export"
FAMILIES = {model.recipe: model for model in tiny_models().values()}


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_a_family_with_texts_hands_it_on(model: TinyModel, tmp_path: Path) -> None:
    recipe = load_recipe(model.recipe, EXPORT)
    (tmp_path / "plain").mkdir()
    plain = recipe.serve(model.built, tmp_path / "plain")
    if plain.text is None:
        return
    (tmp_path / "cleaned").mkdir()
    config = {**model.built, "text_cleaning": "invisible"}
    cleaner = recipe.serve(config, tmp_path / "cleaned")
    assert plain.text.cleaning is None
    assert cleaner.text == plain.text.model_copy(update={"cleaning": "invisible"})


def test_a_manifest_names_it_only_where_it_is(tmp_path: Path) -> None:
    """Runtimes of before refuse what they do not know."""
    archive = pack_echo(tmp_path, "m", 1)
    with zipfile.ZipFile(archive) as members:
        assert "cleaning" not in json.loads(members.read("manifest.json"))["text"]
    text = verify_archive(archive).text
    assert text is not None
    assert text.cleaning is None
