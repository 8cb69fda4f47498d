"""Every recipe, every task, both formats: what the archive answers is what the network says.

`make test` exports those of PROVED (tests/support/tiny_kinds.py), `make test-long` the others.
"""

from pathlib import Path

import pytest

from support.eager_answers import ANSWERS, eager_of
from support.questions import questions_of, without_pictures
from support.tiny_kinds import PROVED, SERVED, in_tiers
from support.tiny_models import EXPORT, PROJECT, Archives, recipes_and_tasks, tiny_models
from vlserve.exporter.convert import SUFFIXES, Format
from vlserve.exporter.export import read_trained
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.task import difference
from vlserve.runtime.types import ItemError, Request
from vlserve.settings import Settings

ATOL = 2e-4


@pytest.mark.parametrize(("recipe", "task"), recipes_and_tasks(), ids="-".join)
def test_a_recipe_and_its_task_have_a_tiny_model(recipe: str, task: str) -> None:
    pairs = {(model.recipe, model.task) for model in tiny_models().values()}
    assert (recipe, task) in pairs, (
        f"tests/support/tiny_models.py has no model of {recipe}, task {task}"
    )
    assert (PROJECT / "handlers" / f"{task}.py").is_file()
    assert task in ANSWERS, f"tests/support/eager_answers.py cannot answer {task}"


def test_no_tiny_model_is_of_a_task_that_its_recipe_does_not_have() -> None:
    for model in tiny_models().values():
        assert model.task in load_recipe(model.recipe, EXPORT).spec.tasks, model.name


def test_every_task_is_served_and_every_recipe_is_proved_in_the_first_tier() -> None:
    models = tiny_models()
    assert {models[name].task for name, _ in SERVED} == {model.task for model in models.values()}
    recipes = {models[name].recipe for name in PROVED["torchscript"]}
    assert recipes == {model.recipe for model in models.values()}
    assert all(name in PROVED[format] for name, format in SERVED)


@pytest.mark.timeout(600)  # it may wait for the exports of all others
@pytest.mark.parametrize(
    ("name", "format"), in_tiers((name, format) for format in SUFFIXES for name in tiny_models())
)
def test_an_archive_answers_like_the_network(
    name: str, format: Format, archives: Archives, tmp_path: Path
) -> None:
    report = archives.report(name, format)
    model = archives.models[name]
    assert (report.manifest.task, report.manifest.family) == (model.task, model.recipe)
    assert {graph.format for graph in report.manifest.graphs.values()} == {format}
    assert report.manifest.probes

    unpack_archive(report.path, tmp_path / "unpacked")
    pipeline = open_folder(tmp_path / "unpacked")
    questions = questions_of(report.manifest)
    requests = [Request(question.fields(), str(place)) for place, question in enumerate(questions)]
    bad = Request({**requests[0].fields, "surprise": 1}, "bad")
    error, *answers = pipeline.run([bad, *requests]).answers
    assert isinstance(error, ItemError) and error.code is ErrorCode.FIELD_INVALID

    settings = Settings(project_dir=PROJECT)
    checkpoint = read_trained(model.recipe, archives.checkpoint(name), None, settings)
    eager = eager_of(checkpoint, tmp_path)
    for question, answer in zip(questions, answers, strict=True):
        assert isinstance(answer, dict), answer
        pipeline.task.answer.model_validate(answer)
        expected, numbers = eager.answer(question), without_pictures(answer, pipeline.task.pictures)
        assert expected.keys() == numbers.keys()
        assert difference(expected, numbers, atol=ATOL) is None
