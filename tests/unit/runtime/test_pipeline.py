"""Order is kept, and a bad item harms nobody else."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.body import RequestFields, WholeNumber
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.folder import open_folder
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import Task, difference
from vlserve.runtime.types import Answer, Arrays, BatchResult, ItemError, Request, Sample


class Numbered(RequestFields):
    n: WholeNumber
    fault: str = ""


class Numbers(Task[Numbered]):
    """Answers 10 n, and goes wrong where it is asked to."""

    fields = Numbered

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest, Path(), {})
        self.runs: list[int] = []

    def preprocess(self, fields: Numbered) -> Sample:
        if fields.fault == "refused":
            raise RequestError(ErrorCode.TEXT_TOO_LONG, "refused")
        if fields.fault == "preprocess":
            raise ZeroDivisionError
        shape = (2,) if fields.fault == "shape" else (1,)
        return {
            "n": np.full(shape, fields.n),
            "bad": np.array(fields.fault == "graph"),
            "untold": np.array(fields.fault == "tokenise"),
        }

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        if any(sample["untold"] for sample in samples):
            raise LookupError("no such word")
        return samples

    def infer(self, arrays: Arrays) -> Arrays:
        self.runs.append(len(arrays["n"]))
        if arrays["bad"].any():
            raise FloatingPointError("the graph does not like this batch")
        if arrays["n"].shape[1] != 1:
            raise ValueError("an item of another shape")
        return {"tenfold": arrays["n"][:, 0] * 10}

    def postprocess(self, outputs: Arrays, index: int, fields: Numbered) -> Answer:
        if fields.fault == "postprocess":
            raise KeyError("gone")
        if fields.fault == "no json":
            return {"n": np.float32(1)}
        if fields.fault == "nan":
            return {"n": float("nan")}
        return {"n": fields.n, "tenfold": int(outputs["tenfold"][index])}


def numbers() -> Numbers:
    tensor = {"name": "n", "dtype": "int64", "dims": ["batch"]}
    graph = {"file": "g", "format": "echo", "inputs": [tensor], "outputs": [tensor]}
    files = ["g", "handlers/n.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json"]
    manifest = Manifest.model_validate(
        {"model": "m", "version": 1, "task": "n", "family": "f", "graphs": {"model": graph}}
        | {"files": dict.fromkeys(files, "0" * 64)}
    )
    return Numbers(manifest)


def run(items: Sequence[Request | ItemError]) -> BatchResult:
    task = numbers()
    return Pipeline(task.manifest, task).run(items)


CODES = {
    "refused": ErrorCode.TEXT_TOO_LONG,
    "preprocess": ErrorCode.INFERENCE_FAILED,
    "tokenise": ErrorCode.INFERENCE_FAILED,
    "shape": ErrorCode.INFERENCE_FAILED,
    "graph": ErrorCode.INFERENCE_FAILED,
    "postprocess": ErrorCode.INFERENCE_FAILED,
    "no json": ErrorCode.INFERENCE_FAILED,
    "nan": ErrorCode.INFERENCE_FAILED,
    "unknown field": ErrorCode.FIELD_INVALID,
    "unread": ErrorCode.BODY_UNREADABLE,
}


def item(n: int, fault: str) -> Request | ItemError:
    if fault == "unread":
        return ItemError(ErrorCode.BODY_UNREADABLE, "no body")
    if fault == "unknown field":
        return Request({"n": n, "m": 1})
    return Request({"n": n, "fault": fault})


@given(st.lists(st.sampled_from([""] * 4 + sorted(CODES)), max_size=17))
def test_good_items_are_answered_in_order_whatever_their_neighbours(faults: list[str]) -> None:
    result = run([item(n, fault) for n, fault in enumerate(faults)])
    assert len(result.answers) == len(result.texts) == len(faults)
    assert set(result.stage_ms) == {"decode", "tokenise", "infer", "postprocess", "serialise"}
    assert all(value >= 0 for value in result.stage_ms.values())
    for n, (fault, answer) in enumerate(zip(faults, result.answers, strict=True)):
        if fault == "":
            assert answer == json.loads(result.texts[n]) == {"n": n, "tenfold": 10 * n}
        else:
            assert isinstance(answer, ItemError)
            assert answer.code is CODES[fault]


def test_one_run_where_nothing_is_wrong() -> None:
    task = numbers()
    Pipeline(task.manifest, task).run([item(n, "") for n in range(8)])
    assert task.runs == [8]


def test_halving_finds_the_guilty_item() -> None:
    task = numbers()
    Pipeline(task.manifest, task).run([item(n, "graph" if n == 5 else "") for n in range(8)])
    assert task.runs == [8, 4, 4, 2, 1, 1, 2]


def test_an_item_that_cannot_be_read_never_reaches_the_graph() -> None:
    task = numbers()
    items = [item(0, "refused"), item(1, ""), item(2, "unread")]
    Pipeline(task.manifest, task).run(items)
    assert task.runs == [1]


def test_surprises_are_logged_and_not_told_to_clients(caplog: pytest.LogCaptureFixture) -> None:
    (answer,) = run([item(0, "graph")]).answers
    assert isinstance(answer, ItemError)
    assert "does not like" not in answer.message
    assert "does not like" in caplog.text


def test_a_graph_that_loses_rows_answers_nobody_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    task = numbers()
    monkeypatch.setattr(task, "infer", lambda arrays: {"tenfold": arrays["n"][:1, 0] * 10})
    answers = Pipeline(task.manifest, task).run([item(n, "") for n in range(4)]).answers
    assert answers == [{"n": n, "tenfold": 10 * n} for n in range(4)]


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 255 - shade, 90)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def failing_echo(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("failing")
    unpack_archive(pack_echo(folder, "m", 1, fail_on_id=VOCABULARY["坏"]), folder / "unpacked")
    return open_folder(folder / "unpacked")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["good", "坏", "image", "text", "field"]), min_size=1, max_size=9))
def test_the_tag_task_keeps_order_and_isolates(failing_echo: Pipeline, kinds: list[str]) -> None:
    def request(place: int, kind: str) -> Request:
        fields: dict[str, Any] = {"image": picture(place * 20), "text": f"cat {place}"}
        changes: dict[str, dict[str, Any]] = {
            "good": {},
            "坏": {"text": "坏"},
            "image": {"image": base64.b64encode(b"no image").decode()},
            "text": {"text": "a\0"},
            "field": {"top_k": 0},
        }
        return Request(fields | changes[kind])

    codes = {
        "坏": ErrorCode.INFERENCE_FAILED,
        "image": ErrorCode.IMAGE_UNREADABLE,
        "text": ErrorCode.TEXT_UNREADABLE,
        "field": ErrorCode.FIELD_INVALID,
    }
    requests = [request(place, kind) for place, kind in enumerate(kinds)]
    together = failing_echo.run(requests).answers
    for kind, batch_item, answer in zip(kinds, requests, together, strict=True):
        (alone,) = failing_echo.run([batch_item]).answers
        if isinstance(alone, ItemError):
            assert answer == alone
            assert alone.code is codes[kind]
        else:
            assert not isinstance(answer, ItemError)
            assert kind == "good"
            assert difference(alone, answer) is None


def test_warm_up_answers_the_probes(echo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = open_folder(echo_folder)
    sizes: list[int] = []
    infer = pipeline.task.infer

    def record_infer(arrays: Arrays) -> Arrays:
        sizes.append(len(arrays["image"]))
        return infer(arrays)

    monkeypatch.setattr(pipeline.task, "infer", record_infer)
    pipeline.warm_up(4)
    assert sizes == [1, 4, 3, 2]
    sizes.clear()
    monkeypatch.setattr("vlserve.runtime.pipeline.WARM_UP_S", 0.0)
    pipeline.warm_up(4)
    assert sizes == [1, 4]
