"""The entry point inside a real TorchServe worker: one answer a request, whatever is sent."""

import base64
import io
import json
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from support.torchserve_worker import Worker, WorkerAnswer, WorkerRequest, running_worker
from vlserve.exporter.echo import LABELS, VOCABULARY, pack_echo
from vlserve.exporter.pack import Member, draft_of, pack_archive
from vlserve.runtime.answering import HTTP_STATUS
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.manifest import Probe


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return pack_echo(folder, "m", 7, fail_on_id=VOCABULARY["坏"])


@pytest.fixture(scope="module")
def probe(archive: Path) -> Probe:
    return verify_archive(archive).probes[0]


@pytest.fixture(scope="module")
def folder(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "unpacked"
    unpack_archive(archive, folder)
    return folder


@pytest.fixture(scope="module")
def worker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running_worker(folder, tmp_path_factory.mktemp("worker")) as worker:
        assert worker.load(folder) == (200, "loaded model m")
        yield worker


def form(probe: Probe, **changes: bytes) -> dict[str, bytes]:
    image = base64.b64decode(probe.fields["image"])
    return {"image": image, "text": probe.fields["text"].encode(), **changes}


def png_chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def body(answer: WorkerAnswer) -> dict[str, Any]:
    assert answer.content_type == "application/json"
    assert answer.headers["x-vlserve-version"] == "7"
    fields: dict[str, Any] = json.loads(answer.body)
    return fields


def test_a_form_and_json_are_answered_alike(worker: Worker, probe: Probe) -> None:
    requests = [
        WorkerRequest(form(probe), {"X-Request-Id": "a"}),
        WorkerRequest({"body": json.dumps(probe.fields).encode()}, {"x-request-id": "b"}),
    ]
    answers = worker.predict(requests)
    assert [answer.status for answer in answers] == [200, 200]
    for answer, request_id in zip(answers, "ab", strict=True):
        assert body(answer) == {
            "model": "m",
            "version": 7,
            "request_id": request_id,
            **probe.answer,
        }


def test_each_request_of_a_batch_has_its_own_status(worker: Worker, probe: Probe) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    cases: list[tuple[dict[str, bytes], int, str | None]] = [
        (form(probe), 200, None),
        ({"body": b"not JSON"}, 400, "body_unreadable"),
        ({}, 400, "body_unreadable"),
        (form(probe, colour=b"red"), 422, "field_invalid"),
        (form(probe, top_k=b"6"), 422, "field_invalid"),
        (form(probe, image=b"no image"), 400, "image_unreadable"),
        (form(probe, image=b"\xff" * (20 * 2**20 + 1)), 413, "image_too_large"),
        (form(probe, image=huge), 413, "image_too_large"),
        (form(probe, text=b"\xff"), 400, "text_unreadable"),
        (form(probe, text=b"a" * 2**20), 413, "text_too_long"),
        (form(probe, text="坏".encode()), 500, "inference_failed"),
        (form(probe, top_k=b"1"), 200, None),
    ]
    answers = worker.predict(
        [WorkerRequest(parts, id=str(n)) for n, (parts, _, _) in enumerate(cases)]
    )
    for n, (answer, (_, status, code)) in enumerate(zip(answers, cases, strict=True)):
        assert answer.status == status
        assert body(answer)["request_id"] == str(n)
        assert body(answer).get("error", {}).get("code") == code
    assert body(answers[0])["tags"] == probe.answer["tags"]
    assert body(answers[-1])["tags"] == probe.answer["tags"][:1]


def test_a_part_named_like_the_header_is_no_request_id(worker: Worker, probe: Probe) -> None:
    (answer,) = worker.predict([WorkerRequest(form(probe, **{"X-Request-Id": b"part"}), id="own")])
    assert answer.status == 422
    assert body(answer)["request_id"] == "own"


@pytest.mark.parametrize("name", ["\ud800", "猫\n", "x" * 100_000, '"', ""])
def test_field_names_from_strangers_do_no_harm(worker: Worker, name: str) -> None:
    strange = {"body": json.dumps({name: 1, "image": "", "text": "猫"}).encode()}
    (answer,) = worker.predict([WorkerRequest(strange, {"x-request-id": 'quote " 猫'})])
    assert answer.status == 422
    assert body(answer)["request_id"] == 'quote " 猫'
    assert len(answer.body) < 2000


STAGES = ["decode", "tokenise", "infer", "postprocess", "serialise"]


def test_each_answer_says_where_its_time_went(worker: Worker, probe: Probe) -> None:
    for answer in worker.predict([WorkerRequest(form(probe)), WorkerRequest({})]):
        entries = [entry.split(";dur=") for entry in answer.headers["server-timing"].split(", ")]
        assert [name for name, _ in entries] == STAGES
        assert all(float(value) >= 0 for _, value in entries)


def test_nothing_that_was_sent_is_printed(worker: Worker, probe: Probe) -> None:
    start = worker.log.stat().st_size
    worker.predict(
        [WorkerRequest(form(probe), {"x-request-id": "log-1"}), WorkerRequest({}, id="log-2")]
    )
    assert probe.fields["text"] not in worker.log.read_bytes()[start:].decode()


def test_stage_metrics_carry_the_version(worker: Worker, probe: Probe) -> None:
    start = worker.log.stat().st_size
    worker.predict([WorkerRequest(form(probe)), WorkerRequest(form(probe))])
    log = worker.log.read_bytes()[start:].decode()
    assert "Failed to update metric" not in log
    for name in [*(f"{stage}_ms" for stage in STAGES), "batch_size"]:
        (line,) = [line for line in log.splitlines() if line.startswith(f"[METRICS]{name}.")]
        assert "|#ModelVersion:7,ModelName:m,Level:Model|#type:HISTOGRAM|" in line
    assert "[METRICS]batch_size.Count:2|" in log


def test_a_tampered_folder_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "graphs/model.echo.json").write_text("{}", encoding="utf-8")
    with (
        running_worker(copy, tmp_path) as worker,
        pytest.raises(EOFError, match="ArchiveTampered"),
    ):
        worker.load(copy)


def test_foreign_code_first_on_the_path_is_not_run(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with (
        running_worker(other, tmp_path) as worker,
        pytest.raises(EOFError, match="not from the archive"),
    ):
        worker.load(folder)


def test_every_error_has_a_status() -> None:
    assert set(HTTP_STATUS) == set(ErrorCode)


def has_torch(worker: Worker) -> bool:
    return any("libtorch" in mapping.path for mapping in psutil.Process(worker.pid).memory_maps())


def test_torch_is_imported_for_torchscript_alone(
    worker: Worker, archive: Path, probe: Probe, tmp_path: Path
) -> None:
    assert worker.predict([WorkerRequest(form(probe))])[0].status == 200
    assert not has_torch(worker)
    torchscript_archive = pack_torchscript(archive, tmp_path / "packed")
    folder = tmp_path / "unpacked"
    unpack_archive(torchscript_archive, folder)
    with running_worker(folder, tmp_path) as other:
        assert other.load(folder) == (200, "loaded model m")
        assert has_torch(other)
        assert json.loads(other.predict([WorkerRequest(form(probe))])[0].body)["tags"]


def pack_torchscript(echo: Path, out_dir: Path) -> Path:
    """The archive with a TorchScript graph in place of its own."""
    draft = draft_of(verify_archive(echo))
    model = draft["graphs"]["model"]
    draft["graphs"] = {"model": {**model, "file": "graphs/model.pt", "format": "torchscript"}}
    with zipfile.ZipFile(echo) as content:
        members: dict[str, Member] = {
            name: content.read(name) for name in content.namelist() if name.startswith("assets/")
        }
    graph = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, and still works
        torch.jit.save(torch.jit.trace(Brightness(), example()), graph)
    return pack_archive(out_dir, draft, {**members, "graphs/model.pt": graph.getvalue()})


def example() -> tuple[torch.Tensor, ...]:
    ids = torch.ones(2, 4, dtype=torch.int64)
    return torch.ones(2, 3, 32, 32), ids, torch.full((2,), 4)


class Brightness(torch.nn.Module):
    """A score for each label, from the means of image and text."""

    def forward(
        self, image: torch.Tensor, text_ids: torch.Tensor, text_length: torch.Tensor
    ) -> torch.Tensor:
        mean = image.mean((1, 2, 3)) + text_ids.float().mean(1) / text_length
        return mean[:, None] * torch.arange(len(LABELS))
