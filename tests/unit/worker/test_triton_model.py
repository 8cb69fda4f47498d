"""The model of Triton's Python backend, with a stand-in for what the stub gives it."""

import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlserve.runtime.answering import HTTP_STATUS
from vlserve_worker import earlier_archives


class Tensor:
    """A tensor as the stub has it: whoever made it by DLPack gave its memory away."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        self._content = content

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> "Tensor":
        class Given:
            def __dlpack__(self, **_: Any) -> Any:
                return capsule

            def __dlpack_device__(self) -> tuple[int, int]:
                return (1, 0)

        tensor = cls(np.from_dlpack(Given()))
        tensor.name = name
        return tensor

    name = ""

    def __dlpack__(self, **options: Any) -> Any:
        return self._content.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@dataclass
class Request:
    content: bytes = b""
    headers: str | Exception = "{}"

    def parameters(self) -> str:
        if isinstance(self.headers, Exception):
            raise self.headers
        return self.headers

    def inputs(self) -> list[Tensor]:
        return [Tensor(np.frombuffer(bytearray(self.content), np.uint8).reshape(1, -1))]


@dataclass
class Response:
    output_tensors: list[Tensor]

    def text(self) -> tuple[str, dict[str, Any]]:
        content = bytes(bytearray(np.from_dlpack(self.output_tensors[0])))
        first, _, body = content.partition(b"\n")
        return first.decode(), json.loads(body)


ENTRY_POINT = """
import json

class TritonModel:
    def __init__(self, *given):
        self.given, self.batches = given, []

    def answer(self, data, ids):
        self.batches.append([dict(one) for one in data])
        return [
            (200, "infer;dur=1.000", json.dumps([sorted(one), name]).encode())
            for one, name in zip(data, ids)
        ]
"""
"""The triton_model.py of an archive: it answers with what it is asked, and keeps the batches."""


@pytest.fixture
def triton_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, imported as in a stub; what it does to its process is undone."""
    backend = ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.InferenceResponse = Tensor, Response  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    for name in ("vlserve_worker.triton_model", "vlserve_worker.triton_tensors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    yield importlib.import_module("vlserve_worker.triton_model")
    for name in ("vlserve_worker.triton_model", "vlserve_worker.triton_tensors"):
        del sys.modules[name]
    sys.modules.pop("triton_model", None)


def opened(module: ModuleType, folder: Path, code: str = ENTRY_POINT, **parameters: str) -> Any:
    if code:
        (folder / "triton_model.py").write_text(code, encoding="utf-8")
    values = {"archive_dir": str(folder), "version": "7", **parameters}
    config = {
        "max_batch_size": 8,
        "parameters": {name: {"string_value": value} for name, value in values.items()},
    }
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})
    return model


def said(headers: Mapping[str, str]) -> str:
    return json.dumps(headers)


JSON = said({"x-vlserve-content-type": "application/json", "x-request-id": "a"})


def test_it_opens_the_archive_with_its_own_code_first(
    triton_model: ModuleType, tmp_path: Path
) -> None:
    sys.path.insert(0, "")
    model = opened(triton_model, tmp_path, threads="2", answer_log="answers.jsonl")
    assert model._archive.given == (tmp_path, 2, 8, Path("answers.jsonl"))
    assert sys.path[0] == str(tmp_path)
    assert "" not in sys.path
    assert sys.dont_write_bytecode


def test_every_request_of_a_batch_has_an_answer_of_its_own(
    triton_model: ModuleType, tmp_path: Path
) -> None:
    model = opened(triton_model, tmp_path, max_body_bytes="1000")
    undecodable = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    requests = [
        Request(b'{"text": "a"}', JSON),
        Request(b""),
        Request(b"x", undecodable),
        Request(b"x" * 2000, said({"x-vlserve-content-encoding": "br", "X-Request-Id": "b"})),
        Request(b"\xff\xd8\xff an image", said({"x-vlserve-path": "/predictions/m/7?text=b"})),
    ]
    answers = [response.text() for response in model.execute(requests)]
    assert [first for first, _ in answers] == [
        "200 infer;dur=1.000",
        "400 ",
        "400 ",
        "400 ",
        "200 infer;dur=1.000",
    ]
    assert answers[0][1] == [["body"], "a"]
    assert answers[3][1]["request_id"] == "b"
    assert answers[4][1][0] == ["image", "text"]
    assert "not UTF-8" in answers[2][1]["error"]["message"]
    (batch,) = model._archive.batches
    assert bytes(batch[0]["body"]) == b'{"text": "a"}'
    assert batch[1]["text"] == b"b"


def test_a_batch_of_refusals_alone_asks_no_archive(
    triton_model: ModuleType, tmp_path: Path
) -> None:
    model = opened(triton_model, tmp_path)
    assert len(model.execute([Request(), Request()])) == 2
    assert model._archive.batches == []


def test_what_killed_a_stub_is_run_alone(triton_model: ModuleType, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    model = opened(triton_model, tmp_path, notes_dir=str(notes), response_timeout_s="30")
    requests = [Request(b'{"text": "a"}', JSON), Request(b'{"text": "b"}', JSON)]
    (digest, _) = model._filter.read_batch([triton_model._raw(request) for request in requests])
    (notes / f"{digest}-{int(time.monotonic()) + 100}.suspect").touch()
    assert [first[:3] for first, _ in (answer.text() for answer in model.execute(requests))] == [
        "200",
        "200",
    ]
    assert [len(batch) for batch in model._archive.batches] == [1, 1]
    assert bytes(model._archive.batches[0][0]["body"]) == b'{"text": "b"}'


def test_a_stub_that_corrupts_bytes_serves_nothing(
    triton_model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupt(name: str, capsule: Any) -> Tensor:
        return Tensor(np.zeros((1, 771), np.uint8))

    monkeypatch.setattr(Tensor, "from_dlpack", corrupt)
    with pytest.raises(RuntimeError, match=r"numpy .* does not fit Triton's Python stub"):
        opened(triton_model, tmp_path)


def test_an_archive_without_an_entry_point_is_answered_by_the_installed_one(
    triton_model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("vlserve_worker.earlier_archives")
    exec(ENTRY_POINT, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = opened(triton_model, tmp_path, code="")
    assert type(model._archive).__module__ == module.__name__
    assert model._archive.given == (tmp_path, 1, 8, None)


def test_the_installed_one_knows_the_statuses_of_the_runtime() -> None:
    assert {
        str(code): status for code, status in HTTP_STATUS.items()
    } == earlier_archives.HTTP_STATUS
