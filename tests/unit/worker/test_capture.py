"""Inputs that a worker keeps where the operator said so."""

import base64
import fcntl
import json
import os
import stat
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlserve.control.captures import FOLDER, read_input
from vlserve.control.store import disk_space
from vlserve_worker import capture as capture_module
from vlserve_worker.capture import (
    LEAST_FREE_BYTES,
    MAX_INPUT_BYTES,
    PLAN,
    TOTAL,
    Capture,
    Plan,
    fields_of,
    keep_input,
    name_of,
    total_of,
)
from vlserve_worker.own_ids import probe_id, trial_id
from vlserve_worker.request_filter import RequestFilter

JPEG = b"\xff\xd8\xff picture"
ALL = Plan(share=1.0, days=7.0, max_bytes=10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / FOLDER / "tagger"
    path.mkdir(parents=True)
    return path


def _plan(folder: Path, plan: Plan) -> None:
    (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")


def _request(body: bytes, kind: str = "application/json", name: str = "r") -> dict[str, Any]:
    return {
        "headers": [
            {"name": b"x-request-id", "value": name.encode()},
            {"name": b"x-vlserve-content-type", "value": kind.encode()},
        ],
        "parameters": [{"name": "body", "contentType": "", "value": body}],
    }


def _form(**fields: bytes) -> tuple[bytes, str]:
    parts = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields.items()
    )
    return parts + b"--b--\r\n", "multipart/form-data; boundary=b"


def _kept(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {PLAN, TOTAL}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        _form(image=JPEG, text="零基础".encode()),
        (
            json.dumps(
                {"image": base64.b64encode(JPEG).decode(), "text": "零基础", "top_k": 3}
            ).encode(),
            "application/json",
        ),
        (
            json.dumps(
                {
                    "image": f"data:image/jpeg;base64,{base64.urlsafe_b64encode(JPEG).decode()}",
                    "text": "零基础",
                }
            ).encode(),
            "application/json",
        ),
    ],
)
def test_a_worker_keeps_what_it_reads(folder: Path, tmp_path: Path, body: bytes, kind: str) -> None:
    _plan(folder, ALL)
    worker = RequestFilter(1, None, 10_000, capture=Capture(folder))
    worker.read_batch([_request(body, kind)])
    record = read_input(tmp_path, "tagger", "r")
    assert record is not None and record.text == "零基础" and record.images == {"image": JPEG}
    (file,) = _kept(folder)
    assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    assert read_input(tmp_path, "tagger", "another") is None


def test_probes_trials_and_what_is_refused_are_not_kept(folder: Path) -> None:
    _plan(folder, ALL)
    worker = RequestFilter(1, None, 10_000, capture=Capture(folder))
    probe = _request(b"{}")
    probe["headers"] = []
    nameless = _request(b"{}")
    del nameless["headers"][0]
    unreadable = _request(b"--b", "multipart/form-data; boundary=b")
    own = [_request(b"{}", name=name) for name in (trial_id(), probe_id())]
    worker.read_batch([probe, nameless, *own, unreadable])
    assert _kept(folder) == set()


def test_without_a_plan_nothing_is_kept(folder: Path) -> None:
    for folder_of_model in (folder, folder / "gone"):
        capture = Capture(folder_of_model)
        capture.keep(_request(b"{}"))
    _plan(folder, Plan(0.0, 7.0, 10_000))
    Capture(folder).keep(_request(b"{}"))
    assert _kept(folder) == set()


def test_a_share_of_the_requests_is_kept_the_same_by_every_worker() -> None:
    choices = [Plan(0.25, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    assert 2_300 < sum(choices) < 2_700
    assert choices == [Plan(0.25, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    more = [Plan(0.5, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    assert all(b for a, b in zip(choices, more, strict=True) if a)


def test_a_salt_chooses_other_requests_and_old_plans_have_none() -> None:
    plans = [Plan.from_json(Plan(0.5, 7.0, 0, salt).to_json()) for salt in ("", "a", "b")]
    samples = [{number for number in range(1000) if plan.takes(f"r{number}")} for plan in plans]
    assert all(200 < len(sample & other) < 300 for sample, other in combinations(samples, 2))
    old = Plan.from_json('{"share": 0.5, "days": 7.0, "max_bytes": 0}')
    assert old == plans[0] and old.takes("r1") == plans[0].takes("r1")


def test_nothing_is_kept_beyond_the_limit_and_each_request_once(folder: Path) -> None:
    small, large = {"text": b"x"}, {"image": b"x" * 4000}  # a block, and two
    assert keep_input(folder, "a", small, 12_288)
    assert not keep_input(folder, "a", small, 12_288)
    assert keep_input(folder, "b", large, 12_288)
    assert not keep_input(folder, "c", small, 12_288)
    assert _kept(folder) == {name_of("a"), name_of("b")}
    assert total_of(folder) == 12_288


def test_an_input_that_is_too_large_is_not_kept(folder: Path) -> None:
    half = b"x" * (MAX_INPUT_BYTES // 2)
    assert not keep_input(folder, "a", {"image": half, "image_2": half, "text": b"x"}, 10**9)
    assert _kept(folder) == set()
    assert keep_input(folder, "a", {"image": half, "image_2": half}, 10**9)


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEAST_FREE_BYTES == disk_space.LOW_BYTES
    blocks = LEAST_FREE_BYTES // 4096
    for free, kept in ((blocks, False), (blocks + 1, True)):
        disk = SimpleNamespace(f_blocks=10**9, f_frsize=4096, f_bavail=free)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, disk=disk: disk)
            assert keep_input(folder, "a", {"text": b"x"}, 10_000) is kept


@pytest.mark.parametrize("at_once", [False, True])
def test_an_id_that_comes_with_other_inputs_loses_what_was_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    inputs, other = {"text": b"x" * 5000}, {"text": b"y" * 5000}
    if at_once:  # both workers look before one of them has written
        monkeypatch.setattr(Path, "exists", lambda _: False)
    assert keep_input(folder, "a", inputs, 10**6)
    assert not keep_input(folder, "a", inputs, 10**6)
    assert fields_of(folder / name_of("a")) == inputs
    assert not keep_input(folder, "a", other, 10**6)
    assert not keep_input(folder, "a", inputs, 10**6)
    assert read_input(tmp_path, "tagger", "a") is None
    assert (folder / name_of("a")).stat().st_size == 0
    assert total_of(folder) == 4096  # so that the number of files is bounded


def test_a_worker_does_not_wait_for_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(capture_module.time, "sleep")
    with (folder / TOTAL).open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not keep_input(folder, "a", {"text": b"x"}, 10_000)
    assert keep_input(folder, "a", {"text": b"x"}, 10_000)


def test_a_folder_that_a_purge_took_away_is_no_trouble(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _plan(folder, ALL)
    capture = Capture(folder)
    capture.keep(_request(b"{}", name="a"))
    folder.rename(tmp_path / "aside")
    capture.keep(_request(b"{}", name="b"))
    assert not folder.exists() and not caplog.records


def test_a_folder_that_cannot_be_written_stops_no_request(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _plan(folder, ALL)
    (folder / TOTAL).mkdir()
    capture = Capture(folder)
    for name in ("a", "b"):
        capture.keep(_request(b"{}", name=name))
    assert [record.message for record in caplog.records] == [
        f"inputs are not kept: [Errno 21] Is a directory: '{folder / TOTAL}'"
    ]
