"""Scores, their order, and when two answers are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, ItemError, Request

FILE = Path(__file__).parents[3] / "handlers" / "tag.py"
LABELS = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("tag")
    unpack_archive(pack_echo(folder, "m", 1, labels=LABELS), folder / "unpacked")
    return open_folder(folder / "unpacked")


def answer(pipeline: Pipeline, logits: Any, multi_label: bool = False, **fields: Any) -> Answer:
    manifest = pipeline.manifest.model_copy(update={"multi_label": multi_label})
    task: Task[Any] = type(pipeline.task)(manifest, pipeline.task.root, {})
    request = task.fields.model_validate({"image": b"", "text": "", **fields})
    return task.postprocess({"logits": np.array([logits], np.float32)}, 0, request)


def tags(answer: Answer) -> list[str]:
    return [entry["tag"] for entry in answer["tags"]]


def test_best_first_and_five_by_default(pipeline: Pipeline) -> None:
    reply = answer(pipeline, [0, 5, 1, 4, 2, 3])
    assert tags(reply) == ["b", "d", "f", "e", "c"]
    expected = np.exp([5, 4, 3, 2, 1]) / np.exp(range(6)).sum()
    np.testing.assert_allclose([entry["score"] for entry in reply["tags"]], expected, rtol=1e-6)


def test_ties_keep_the_order_of_the_labels(pipeline: Pipeline) -> None:
    assert tags(answer(pipeline, [1, 2, 1, 2, 1, 2], top_k=6)) == ["b", "d", "f", "a", "c", "e"]


def test_one_sigmoid_a_label_when_multi_label(pipeline: Pipeline) -> None:
    reply = answer(pipeline, [-800, 800, 0, 1, -1, 2], multi_label=True, top_k=6)
    scores = {entry["tag"]: entry["score"] for entry in reply["tags"]}
    expected = {"b": 1, "f": 0.880797, "d": 0.731059, "c": 0.5, "e": 0.268941, "a": 0}
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-6)


LOGITS = npst.arrays(
    np.float32, 6, elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)


@given(LOGITS, st.booleans(), st.integers(1, 6))
def test_scores_are_probabilities_whatever_the_logits(
    pipeline: Pipeline, logits: Any, multi_label: bool, top_k: int
) -> None:
    entries = answer(pipeline, logits, multi_label, top_k=top_k)["tags"]
    scores = [entry["score"] for entry in entries]
    assert len(entries) == top_k
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert multi_label or top_k < 6 or sum(scores) == pytest.approx(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_none(pipeline: Pipeline, bad: float) -> None:
    with pytest.raises(RequestError, match="not finite") as error:
        answer(pipeline, [0, bad, 0, 0, 0, 0])
    assert error.value.code is ErrorCode.INFERENCE_FAILED


@pytest.mark.parametrize("top_k", [1, 6, b"1", b"6", None])
def test_top_k_up_to_the_labels(pipeline: Pipeline, top_k: Any) -> None:
    fields = pipeline.manifest.probes[0].fields
    (reply,) = pipeline.run([Request({**fields, "top_k": top_k})]).answers
    assert isinstance(reply, dict)
    assert len(reply["tags"]) == int(top_k or 5)


@pytest.mark.parametrize("top_k", [0, 7, -1, b"0", b"7", b"many", "3", 2.5, True])
def test_top_k_beyond(pipeline: Pipeline, top_k: Any) -> None:
    fields = pipeline.manifest.probes[0].fields
    (reply,) = pipeline.run([Request({**fields, "top_k": top_k})]).answers
    assert isinstance(reply, ItemError)
    assert reply.code is ErrorCode.FIELD_INVALID
    assert "top_k" in reply.message


def test_an_empty_title_is_a_title(pipeline: Pipeline) -> None:
    fields = pipeline.manifest.probes[0].fields
    for text in ("", b""):
        (reply,) = pipeline.run([Request({**fields, "text": text})]).answers
        assert isinstance(reply, dict)


def test_only_inputs_that_the_graph_lists(pipeline: Pipeline) -> None:
    graph = pipeline.manifest.graphs["model"]
    image_alone = graph.model_copy(update={"inputs": graph.inputs[:1]})
    manifest = pipeline.manifest.model_copy(update={"graphs": {"model": image_alone}})
    calls: list[set[str]] = []

    class Recorder:
        def run(self, inputs: Arrays) -> Arrays:
            calls.append(set(inputs))
            return {}

    task: Task[Any] = type(pipeline.task)(manifest, pipeline.task.root, {"model": Recorder()})
    request = task.fields.model_validate(pipeline.manifest.probes[0].fields)
    task.infer(task.collate(task.tokenise([task.preprocess(request)])))
    assert calls == [{"image"}]


@pytest.mark.parametrize(
    ("field", "requirement"),
    [("image", "image or regions"), ("text", "text"), ("labels", "labels")],
)
def test_a_manifest_that_cannot_tag(pipeline: Pipeline, field: str, requirement: str) -> None:
    manifest = pipeline.manifest.model_copy(update={field: () if field == "labels" else None})
    with pytest.raises(ManifestInvalid, match=f"tag needs {requirement} in the manifest"):
        type(pipeline.task)(manifest, pipeline.task.root, {})


def test_labels_and_logits_must_be_as_many(pipeline: Pipeline) -> None:
    manifest = pipeline.manifest.model_copy(update={"labels": LABELS[:4]})
    with pytest.raises(ManifestInvalid, match="4 labels"):
        type(pipeline.task)(manifest, pipeline.task.root, {})
