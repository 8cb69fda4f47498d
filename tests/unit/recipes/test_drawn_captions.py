"""A captioner draws its captions where a request asks for it, whatever its neighbours ask."""

from pathlib import Path
from typing import Any

import pytest

from support.questions import questions_of
from support.tiny_models import Archives
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import ItemError, Request

pytestmark = pytest.mark.long

WILD = {"temperature": 9.0, "top_p": 1}


@pytest.fixture(scope="module")
def image(archives: Archives) -> dict[str, Any]:
    return dict(questions_of(archives.report("blip-caption", "onnx").manifest)[0].fields())


@pytest.fixture(scope="module")
def captioner(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder: Path = tmp_path_factory.mktemp("captioner") / "unpacked"
    unpack_archive(archives.report("blip-caption", "onnx").path, folder)
    return open_folder(folder)


def test_a_batch_of_every_manner(captioner: Pipeline, image: dict[str, Any]) -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"sample": False, "repetition_penalty": 2.0},
        *({"seed": seed, **WILD} for seed in range(8)),
        {"sample": b"true", "seed": b"3", "temperature": b"9.0", "top_p": b"1"},
    ]
    requests = [Request({**image, **wish}, str(place)) for place, wish in enumerate(wishes)]
    answers = captioner.run(requests).answers
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, dict), answer
        (alone,) = captioner.run([request]).answers
        assert isinstance(alone, dict)
        assert alone["caption"] == answer["caption"]
        assert alone["log_prob"] == pytest.approx(answer["log_prob"], abs=1e-4)
    plain, _, *samples, as_form = [answer["caption"] for answer in answers]  # type: ignore[index]
    assert len(set(samples)) > 3
    assert as_form == samples[3]
    (again,) = captioner.run(requests[:1]).answers
    assert isinstance(again, dict) and again["caption"] == plain


def test_what_is_out_of_the_limits_is_refused(captioner: Pipeline, image: dict[str, Any]) -> None:
    good, bad = Request({**image, "seed": 1}, "good"), Request({**image, "top_p": 2}, "bad")
    answer, error = captioner.run([good, bad]).answers
    assert isinstance(answer, dict)
    assert isinstance(error, ItemError) and error.code is ErrorCode.FIELD_INVALID
    assert error.message == "top_p: must be from 0.01 to 1.0, not 2.0"
