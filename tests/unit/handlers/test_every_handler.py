"""Every handler: bad items beside good ones, forms and JSON alike, what a model does not take."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.echo_tasks import FAILS, HANDLERS, KINDS, manifest_of, pipeline_of
from support.questions import Question, npy, questions_of
from vlserve.exporter.probes import drawn_image, drawn_requests
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import Answer, ItemError, Request

HERE = Path(__file__).parent
every_kind = pytest.mark.parametrize("kind", KINDS)


def answers_of(pipeline: Pipeline, fields: list[dict[str, Any]]) -> list[Answer | ItemError]:
    requests = [Request(item, str(place)) for place, item in enumerate(fields)]
    return list(pipeline.run(requests).answers)


def test_every_task_has_a_kind_or_tests_of_its_own() -> None:
    tasks = {file.stem for file in HANDLERS.glob("*.py")} - {"torchserve_handler", "triton_model"}
    rest = tasks - {kind["task"] for kind in KINDS.values()}
    assert [task for task in rest if not (HERE / f"test_{task}.py").is_file()] == []


@every_kind
def test_bad_items_do_not_change_the_answers_of_their_neighbours(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    good = [question.fields() for question in questions_of(pipeline.manifest)]
    alone = answers_of(pipeline, good)
    bad = [{}, {**good[0], "surprise": 1}, {**good[1], "image": "!!"}, {**good[2], "text": "a\0"}]
    answers = answers_of(pipeline, [bad[0], good[0], bad[1], good[1], bad[2], *good[2:], bad[3]])
    assert [answer for answer in answers if not isinstance(answer, ItemError)] == alone
    assert sum(isinstance(answer, ItemError) for answer in answers) == len(bad)
    for answer in alone:
        pipeline.task.answer.model_validate(answer)


@pytest.mark.parametrize(
    "kind", ["tag", "entail", "reason", "answer", "answer-ranked", "answer-written"]
)
def test_what_versions_are_compared_by_is_best_first(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    for answer in answers_of(
        pipeline, [question.fields() for question in questions_of(pipeline.manifest)]
    ):
        assert isinstance(answer, dict)
        scores = list(pipeline.task.scores(answer).values())
        assert scores and scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if manifest_of(kind).text])
def test_an_item_that_fails_in_the_graph_fails_alone(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    good = [question.fields() for question in questions_of(pipeline.manifest)]
    fields = next(item for item in good if "text" in item)
    *answers, error = answers_of(pipeline, [*good, {**fields, "text": FAILS}])
    assert isinstance(error, ItemError) and error.code is ErrorCode.INFERENCE_FAILED
    for answer in answers:
        pipeline.task.answer.model_validate(answer)


@every_kind
def test_a_form_and_json_get_the_same_answer(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    for question in questions_of(pipeline.manifest):
        form = {name: raw for name, (_, raw) in question.form().items()}
        in_form, in_json = answers_of(pipeline, [form]), answers_of(pipeline, [question.fields()])
        assert isinstance(in_form[0], dict)
        assert in_form == in_json


@every_kind
def test_the_drawn_probes_are_answered(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    probes = drawn_requests(pipeline.manifest.model_dump(mode="json"))
    assert len(probes) >= 3
    for answer in answers_of(pipeline, probes):
        pipeline.task.answer.model_validate(answer)


def features_of(kind: str) -> Question:
    return next(
        question
        for question in questions_of(manifest_of(kind))
        if question.looks[0].features is not None
    )


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "features-where-there-are-none": ("tag", {"features": "AA=="}, "features: this model takes no"),
    "an-image-too-many": ("answer", {"image": drawn_image(0)}, "image: this model takes no image"),
    "both": ("tag-by-either", {"image": drawn_image(0)}, "image or features: send one of them"),
    "neither": ("tag-by-either", {"features": None}, "image or features: Field required"),
    "no-boxes": ("ground", {"boxes": None}, "boxes: Field required"),
    "boxes-too-many": ("answer", {"boxes": [[0, 0, 1, 1]]}, "boxes: this model takes no boxes"),
    "no-second": ("reason", {"image2": None}, "image2: Field required"),
    "no-second-features": ("reason-by-regions", {"features2": None}, "features2: Field required"),
    "second-boxes": ("reason-by-regions", {"boxes2": [[0, 0, 2, 1]]}, "boxes2: box 0 is"),
    "a-grid-of-another-size": ("caption-of-a-grid", {}, "features: must be (6, 4)"),
    "an-image-and-a-text": ("embed", {"text": "a"}, "one of them"),
    "a-text-for-images": ("embed-images", {"image": None, "text": "a"}, "embeds images alone"),
    "an-overlay-of-boxes": ("ground", {"overlay": True}, "overlay: this model answers with boxes"),
    "top-k-of-a-map": ("ground-by-words", {"top_k": 1}, "top_k: this model answers with a map"),
    "too-many": ("answer-ranked", {"top_k": 3}, "top_k: must be from 1 to 2"),
    "too-many-beams": ("answer-written", {"top_k": 3}, "top_k: must be from 1 to 2"),
    "too-many-regions": ("ground", {"top_k": 10}, "top_k: must be from 1 to 9"),
    "overlay-in-words": ("ground-by-words", {"overlay": "yes"}, "overlay: Input should be"),
    "overlay-in-a-form": ("ground-by-words", {"overlay": b"1"}, "overlay: Value error"),
    "a-text-where-there-is-none": (
        "tag-of-images",
        {"text": "a"},
        "text: this model takes no text",
    ),
    "an-image-where-there-is-none": (
        "tag-of-texts",
        {"image": drawn_image(0)},
        "image: this model takes no image",
    ),
    "no-image-alone": ("tag-of-images", {"image": None}, "image: Field required"),
    "no-text-alone": ("tag-of-texts", {"text": None}, "text: Value error"),
    "text-is-null": ("entail", {"text": None}, "text: Value error"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_model_does_not_take(case: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSALS[case]
    pipeline = pipeline_of(kind, tmp_path)
    brings = kind in ("answer", "tag-by-either", "ground", "caption-of-a-grid")
    fields = features_of(kind).fields() if brings else questions_of(pipeline.manifest)[0].fields()
    if case == "a-grid-of-another-size":
        changes = {"features": npy(np.zeros((5, 4), np.float32))}
    (answer,) = answers_of(pipeline, [fields | changes])
    assert isinstance(answer, ItemError), answer
    assert (answer.code, message in answer.message) == (ErrorCode.FIELD_INVALID, True), answer


OF_NUMBERS = {
    "file": "echo.json",
    "format": "echo",
    "inputs": [{"name": "n", "dtype": "int64", "dims": ["batch"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "dims": ["batch", 3]}],
}
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no-labels": ("tag", {"labels": ()}, "needs labels"),
    "no-image-or-regions": ("entail", {"image": None}, "needs image or regions"),
    "no-text": ("answer", {"text": None}, "needs text"),
    "no-text-alone": ("tag-of-texts", {"text": None}, "needs text"),
    "nothing-to-read": (
        "entail",
        {"image": None, "text": None, "graphs": {"model": OF_NUMBERS}},
        "needs image, regions or text",
    ),
    "labels-and-logits": ("entail", {"labels": ("a", "b")}, "2 labels, but logits for 3"),
    "other-labels": ("reason", {"labels": ("left", "right")}, "the labels true and false"),
    "ranked-by-nothing": ("match", {"options": {}}, "retrieval_score"),
    "no-options": ("caption", {"options": {}}, "prompt_ids"),
    "no-words": (
        "caption",
        {"options": {**KINDS["caption"]["options"], "tokenizer": None}},
        "words",
    ),
    "finished-how": (
        "caption",
        {"options": {**KINDS["caption"]["options"], "finished": "x"}},
        "leave",
    ),
    "no-answers": ("answer-ranked", {"options": {}}, "ranks answers"),
    "answers-and-labels": ("answer-ranked", {"labels": ("a", "b")}, "not as many"),
    "boxes-of-nothing": ("ground", {"regions": {"dim": 4, "max_regions": 9}}, "needs boxes"),
    "features-by-nothing": ("answer", {"image": {"height": 8, "width": 8}}, "no graph features"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_that_a_task_cannot_answer_for(case: str, tmp_path: Path) -> None:
    kind, changes, message = WRONG[case]
    with pytest.raises(ManifestInvalid, match=message):
        pipeline_of(kind, tmp_path, **changes)


@pytest.mark.parametrize("kind", ["match", "embed", "caption", "ground-by-words"])
def test_scores_that_are_none_are_no_answers(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    task = pipeline.task
    question = questions_of(pipeline.manifest)[0]
    item = task.fields.model_validate(question.fields())
    outputs = task.infer(task.collate(task.tokenise([task.preprocess(item)])))
    bad_outputs = {
        name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
        for name, array in outputs.items()
    }
    with pytest.raises(RequestError, match=r"not finite|no caption"):
        task.postprocess(bad_outputs, 0, item)
