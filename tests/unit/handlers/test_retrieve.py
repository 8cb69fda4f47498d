"""What an index of a tiny network answers is the ranking of the network itself, pair by pair."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.eager_answers import Eager, eager_of
from support.questions import Look, Question, look_at
from support.tiny_kinds import in_tiers
from support.tiny_models import PROJECT, Archives
from vlserve.exporter.convert import Format
from vlserve.exporter.export import read_trained
from vlserve.exporter.pack import HANDLERS_DIR
from vlserve.retrieval.build import build_index
from vlserve.retrieval.encode import TOLERANCE
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import ItemError, Request
from vlserve.settings import Settings

TEXTS = ("cat", "a red ball and a cat, dogs " * 3, "", "red dog", "a ball", "dogs dogs cat")
LOOKS = 7
ATOL = 2 * TOLERANCE
MODELS = ("blip-match", "albef-match", "vilbert-match")
of_each = pytest.mark.parametrize(("name", "format"), in_tiers((name, "onnx") for name in MODELS))


@dataclass(frozen=True)
class Indexed:
    """An index of ``of``, and every pair's score and cosine by the network, [look][text]."""

    pipeline: Pipeline
    manifest: Manifest
    scores: np.ndarray[Any, Any]
    cosines: np.ndarray[Any, Any] | None

    def ask(self, **fields: Any) -> Any:
        (answer,) = self.pipeline.run([Request(fields)]).answers
        return answer


def write_corpus(folder: Path, looks: list[Look], of: str) -> Path:
    lines: list[dict[str, Any]] = []
    if of == "text":
        lines = [{"id": f"t{place}", "text": text} for place, text in enumerate(TEXTS)]
    for place, look in enumerate(looks if of == "image" else []):
        line = {"id": f"i{place}"}
        if look.image is not None:
            line["img"] = f"{place}.jpg"
            (folder / line["img"]).write_bytes(look.image)
        for name, array in (("features", look.features), ("boxes", look.boxes)):
            if array is not None:
                line[name] = f"{name}{place}.npy"
                np.save(folder / line[name], array)
        lines.append(line)
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return data


def eager(name: str, archives: Archives, folder: Path) -> Eager:
    settings, model = Settings(project_dir=PROJECT), archives.models[name]
    folder.mkdir()
    checkpoint = read_trained(model.recipe, archives.checkpoint(name), None, settings)
    return eager_of(checkpoint, folder)


Index = Callable[..., tuple[Indexed, list[Look]]]


@pytest.fixture(scope="module")
def index_of(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Makes an index, once for the same archive, ``of`` and ``rerank``."""

    @cache
    def once(name: str, format: Format, of: str, rerank: int) -> tuple[Indexed, list[Look]]:
        folder = tmp_path_factory.mktemp("index")
        return make_index(name, format, archives, of, rerank, folder)

    return once


def make_index(
    name: str, format: Format, archives: Archives, of: str, rerank: int, folder: Path
) -> tuple[Indexed, list[Look]]:
    report = archives.report(name, format)
    looks = [look_at(report.manifest, seed) for seed in range(LOOKS)]
    data = write_corpus(folder, looks, of)
    result = build_index(
        report.path, data, folder / "out", of=of, rerank=rerank, handlers=HANDLERS_DIR
    )
    assert result.items == (LOOKS if of == "image" else len(TEXTS)) and not result.bad_lines
    unpack_archive(result.path, folder / "unpacked")
    network = eager(name, archives, folder / "eager")
    pairs = [[network.answer(Question((look,), text)) for text in TEXTS] for look in looks]
    scores = np.array([[pair["itm_score"] for pair in row] for row in pairs])
    has_vectors = "cosine" in pairs[0][0]
    cosines = np.array([[pair["cosine"] for pair in row] for row in pairs]) if has_vectors else None
    pipeline = open_folder(folder / "unpacked")
    return Indexed(pipeline, verify_archive(result.path), scores, cosines), looks


def assert_ranked(answer: Any, expected: Mapping[str, float], count: int) -> None:
    """The best of ``expected``, best first, as far as rounding lets one tell them apart."""
    assert not isinstance(answer, ItemError), answer
    results = answer["results"]
    assert len({result["id"] for result in results}) == len(results) == count
    for result in results:
        assert result["score"] == pytest.approx(expected[result["id"]], abs=ATOL)
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    worst = min(scores)
    rest = [score for name, score in expected.items() if name not in {f["id"] for f in results}]
    assert all(score <= worst + ATOL for score in rest)


@pytest.mark.timeout(600)
@of_each
def test_texts_find_images(name: str, format: Format, index_of: Index) -> None:
    index, _ = index_of(name, format, "image", 16)
    for column, text in enumerate(TEXTS):
        expected = {f"i{row}": index.scores[row, column] for row in range(LOOKS)}
        assert_ranked(index.ask(text=text, top_k=LOOKS), expected, LOOKS)
        assert_ranked(index.ask(text=text, top_k=2), expected, 2)
        among = {f"i{row}": expected[f"i{row}"] for row in (5, 1, 2)}
        assert_ranked(index.ask(text=text, candidates=[*among], top_k=3), among, 3)
    ranked_by = index.manifest.options["retrieval_score"]
    assert index.ask(text="cat")["ranked_by"] == ranked_by
    probe = index.manifest.probes[0]
    assert "text" in probe.fields and probe.answer["results"]


@pytest.mark.timeout(600)
@of_each
def test_images_find_texts(name: str, format: Format, index_of: Index) -> None:
    index, looks = index_of(name, format, "text", 16)
    for row, look in enumerate(looks):
        expected = {f"t{column}": index.scores[row, column] for column in range(len(TEXTS))}
        answer = index.ask(**Question((look,), None).fields(), top_k=len(TEXTS))
        assert_ranked(answer, expected, len(TEXTS))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "format"), in_tiers((name, "onnx") for name in ["blip-match", "albef-match"])
)
def test_only_the_nearest_are_re_ranked(name: str, format: Format, index_of: Index) -> None:
    index, looks = index_of(name, format, "image", 3)
    assert index.cosines is not None
    for column, text in enumerate(TEXTS):
        nearest = np.argsort(-index.cosines[:, column])[:3]
        expected = {f"i{row}": index.scores[row, column] for row in nearest}
        answer = index.ask(text=text, top_k=3)
        assert_ranked(answer, expected, 3)
        for result in answer["results"]:
            cosine = index.cosines[int(result["id"][1:]), column]
            assert result["cosine"] == pytest.approx(cosine, abs=1e-5)
    itself = index.ask(**Question((looks[4],), None).fields(), top_k=1)
    assert itself["ranked_by"] == "cosine"
    assert itself["results"][0]["id"] == "i4"
    assert itself["results"][0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "format"), in_tiers((name, "onnx") for name in ["vilbert-match"]))
def test_bad_queries_are_refused(name: str, format: Format, index_of: Index) -> None:
    index, looks = index_of(name, format, "image", 16)
    look = Question((looks[0],), None).fields()
    for fields, message in (
        ({}, "one of them"),
        ({**look, "text": "cat"}, "one of them"),
        (look, "not searched by images"),
        ({"text": "cat", "candidates": ["i0", "nothing"]}, "no item 'nothing'"),
        ({"text": "cat", "candidates": []}, "candidates: none"),
        ({"text": "cat", "candidates": b"[1"}, "candidates"),
        ({"text": "cat", "top_k": LOOKS + 1}, "top_k: must be from 1 to 7"),
        ({"text": "cat", "candidates": ["i0"], "top_k": 2}, "top_k: must be from 1 to 1"),
    ):
        error = index.ask(**fields)
        assert isinstance(error, ItemError) and message in error.message, (fields, error)
    form = {"text": b"cat", "candidates": json.dumps(["i2"]).encode(), "top_k": b"1"}
    assert [result["id"] for result in index.ask(**form)["results"]] == ["i2"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "format"), in_tiers((name, "onnx") for name in ["blip-match"]))
def test_a_batch_is_answered_like_each_alone(name: str, format: Format, index_of: Index) -> None:
    index, looks = index_of(name, format, "image", 3)
    requests: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    requests += [Question((look,), None).fields() for look in looks[:2]]
    requests[2]["candidates"] = ["i3", "i1"]
    answers = index.pipeline.run([Request(fields) for fields in [*requests, {}]]).answers
    assert isinstance(answers[-1], ItemError)
    for fields, answer in zip(requests, answers, strict=False):
        alone = index.ask(**fields)
        assert isinstance(answer, dict)
        assert [result["id"] for result in answer["results"]] == [
            result["id"] for result in alone["results"]
        ]
        index.pipeline.task.answer.model_validate(answer)
