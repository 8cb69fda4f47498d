"""The fault goes around the handler of any task."""

import json
import shutil
from pathlib import Path

import pytest

from support.echo_tasks import HANDLERS, KINDS, pipeline_of
from support.questions import questions_of
from vlserve.drill.twin import FAULTY_TASK, Fault
from vlserve.runtime.manifest import Probe
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import load_task
from vlserve.runtime.types import Answer, ItemError, Request

COMPARED = ["tag", "tag-by-either", "answer", "answer-ranked", "entail", "reason"]
"""Kinds whose answers have labels, by which versions are compared."""


def twin_of(pipeline: Pipeline, root: Path, fault: Fault) -> Pipeline:
    """The pipeline with a fault, as it would be in a twin; its first request is its probe."""
    task = pipeline.manifest.task
    (root / "handlers").mkdir()
    (root / "assets").mkdir()
    shutil.copy(HANDLERS / f"{task}.py", root / "handlers" / f"drilled_{task}.py")
    shutil.copy(FAULTY_TASK, root / "handlers" / f"{task}.py")
    (root / "assets" / "fault.json").write_text(json.dumps(vars(fault)), encoding="utf-8")
    probe = Probe(fields=questions_of(pipeline.manifest)[0].fields(), answer={})
    manifest = pipeline.manifest.model_copy(update={"probes": (probe,)})
    faulty = load_task(root / "handlers" / f"{task}.py")
    return Pipeline(manifest, faulty(manifest, root, pipeline.task.backends))


def answers(pipeline: Pipeline) -> list[Answer | ItemError]:
    requests = [Request(question.fields()) for question in questions_of(pipeline.manifest)]
    return list(pipeline.run(requests).answers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_without_a_fault_answers_as_its_original(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    assert answers(twin_of(pipeline, tmp_path, Fault())) == answers(pipeline)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_fails_but_the_probe(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    first, *others = answers(twin_of(pipeline, tmp_path, Fault("fails")))
    assert first == answers(pipeline)[0]
    assert others and all(isinstance(answer, ItemError) for answer in others)


@pytest.mark.parametrize("kind", COMPARED)
def test_a_twin_that_differs_names_other_labels(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    right, other = answers(pipeline), answers(twin_of(pipeline, tmp_path, Fault("differs")))
    assert other[0] == right[0]
    labels = [
        (next(iter(pipeline.task.scores(a))), next(iter(pipeline.task.scores(b))))
        for a, b in zip(right[1:], other[1:], strict=True)
        if not isinstance(a, ItemError) and not isinstance(b, ItemError)
    ]
    assert labels and all(a != b for a, b in labels)
