"""examples/mood.py in a project folder: exported with a recipe, packed, and asked."""

import shutil
from pathlib import Path

from support.example_recipe import RECIPE, export_recipe
from vlserve.exporter.convert import Converter
from vlserve.exporter.probes import drawn_image
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import ItemError, Request

TASK = RECIPE.with_name("mood.py")


def test_a_model_of_the_task_answers_with_its_labels(converter: Converter, tmp_path: Path) -> None:
    (tmp_path / "handlers").mkdir()
    shutil.copy(TASK, tmp_path / "handlers")
    recipe = tmp_path / "moods.py"
    recipe.write_text(
        RECIPE.read_text(encoding="utf-8").replace('"tag"', '"mood"'), encoding="utf-8"
    )
    report = export_recipe(recipe, tmp_path, converter, project_dir=tmp_path)
    assert report.manifest.task == "mood"
    unpack_archive(report.path, tmp_path / "unpacked")
    pipeline = open_folder(tmp_path / "unpacked")
    whole, cut = {"image": drawn_image(1), "text": "a red door"}, {"text": "no image"}
    answer, refusal = pipeline.run([Request(whole), Request(cut)]).answers
    assert isinstance(answer, dict)
    assert answer["label"] == next(iter(answer["scores"]))
    assert answer["scores"].keys() == {"red", "green", "blue"}
    assert isinstance(refusal, ItemError)
    assert refusal.code is ErrorCode.FIELD_INVALID
