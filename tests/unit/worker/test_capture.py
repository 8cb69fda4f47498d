"""Inputs that a worker keeps where the operator said so, and what becomes of them."""

import base64
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.captures import FOLDER, Captures, read_input
from vlserve.control.store.ledger import Ledger
from vlserve_worker import capture as capture_module
from vlserve_worker.capture import PLAN, TOTAL, Capture, Plan, keep_input, name_of
from vlserve_worker.request_filter import RequestFilter

JPEG = b"\xff\xd8\xff picture"
ALL = Plan(share=1.0, days=7.0, max_bytes=10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / FOLDER / "tagger"
    made.mkdir(parents=True)
    return made


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
    kept = read_input(tmp_path, "tagger", "r")
    assert kept is not None and kept.text == "零基础" and kept.images == {"image": JPEG}
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
    worker.read_batch([probe, nameless, _request(b"{}", name="trial-1"), unreadable])
    assert _kept(folder) == set()


def test_without_a_plan_nothing_is_kept(folder: Path) -> None:
    for folder_of_model in (folder, folder / "gone"):
        capture = Capture(folder_of_model)
        capture.keep(_request(b"{}"))
    _plan(folder, Plan(0.0, 7.0, 10_000))
    Capture(folder).keep(_request(b"{}"))
    assert _kept(folder) == set()


def test_a_share_of_the_requests_is_kept_the_same_by_every_worker() -> None:
    taken = [Plan(0.25, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    assert 2_300 < sum(taken) < 2_700
    assert taken == [Plan(0.25, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    more = [Plan(0.5, 7.0, 0).takes(f"r{number}") for number in range(10_000)]
    assert all(b for a, b in zip(taken, more, strict=True) if a)


def test_nothing_is_kept_beyond_the_limit_and_each_request_once(folder: Path) -> None:
    fields = {"image": b"x" * 300}
    assert keep_input(folder, "a", fields, 1000)
    assert not keep_input(folder, "a", fields, 1000)
    assert keep_input(folder, "b", fields, 1000)
    assert not keep_input(folder, "c", fields, 1000)
    assert _kept(folder) == {name_of("a"), name_of("b")}
    assert int((folder / TOTAL).read_text(encoding="ascii")) == sum(
        (folder / name).stat().st_size for name in _kept(folder)
    )


def test_a_worker_does_not_wait_for_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_BETWEEN_TRIES_S", 0.0)
    with (folder / TOTAL).open("w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not keep_input(folder, "a", {"text": b"x"}, 1000)
    assert keep_input(folder, "a", {"text": b"x"}, 1000)


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


def test_old_inputs_are_deleted(folder: Path, tmp_path: Path) -> None:
    _plan(folder, ALL)
    for name in ("old", "new"):
        keep_input(folder, name, {"text": b"x"}, 1000)
    old = folder / name_of("old")
    os.utime(old, (old.stat().st_mtime - 7 * 24 * 3600 - 1,) * 2)
    with Ledger(tmp_path / "store") as ledger:
        captures = Captures(ledger, tmp_path)
        captures.expire_if_due()
        os.utime(folder / name_of("new"), (0, 0))
        captures.expire_if_due()  # not before ten minutes have passed
    assert _kept(folder) == {name_of("new")}
    assert (
        int((folder / TOTAL).read_text(encoding="ascii"))
        == (folder / name_of("new")).stat().st_size
    )
