"""What an operator has kept of requests: begun, ended and deleted, on a full disk too."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vlserve.control import captures as captures_module
from vlserve.control.assembly import Control
from vlserve.control.captures import (
    FOLDER,
    LEFT_OVER_S,
    MOST_TEXT_CHARS,
    CaptureExpiry,
    Captures,
    InputSummary,
)
from vlserve.errors import CaptureUnwritable, LedgerFull
from vlserve.settings import Settings
from vlserve_worker.capture import (
    PLAN,
    Plan,
    keep_input,
    locked_total,
    name_of,
    read_plan,
    total_of,
)

ALL = Plan(share=1.0, days=7.0, max_bytes=10**6)
WEEK_S = 7 * 24 * 3600
BLOCK = 4096


@pytest.fixture
def captures(tagger: Control) -> Captures:
    return tagger.service.captures


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.state_dir / FOLDER / "tagger"


@pytest.fixture
def full_ledger(tagger: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise LedgerFull("the ledger is full")

    monkeypatch.setattr(tagger.ledger, "record", refuse)


def _full_disk(folder: Path) -> None:
    """Have no plan be written into the folder."""
    (folder / f".{PLAN}.part").mkdir(parents=True)


def _keep(folder: Path, *names: str) -> None:
    for name in names:
        assert keep_input(folder, name, {"text": b"x"}, 10**6)


def _age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


def _kinds(control: Control) -> list[str]:
    return [event.kind for event in control.ledger.events("tagger")]


def test_each_start_draws_a_salt_that_its_history_does_not_tell(
    tagger: Control, captures: Captures, folder: Path
) -> None:
    salts = set()
    for _ in range(2):
        captures.start("tagger", ALL)
        plan = read_plan(folder)
        assert plan is not None and len(plan.salt) == 32
        salts.add(plan.salt)
    assert len(salts) == 2
    (event, *_) = [
        event for event in tagger.ledger.events("tagger") if event.kind == "capture_started"
    ]
    assert set(event.detail) == {"share", "days", "max_bytes"}
    assert (folder / PLAN).stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("full_ledger")
def test_what_is_not_in_the_history_is_not_in_force(captures: Captures, folder: Path) -> None:
    with pytest.raises(LedgerFull):
        captures.start("tagger", ALL)
    assert read_plan(folder) is None


def test_a_plan_that_cannot_be_written_is_an_error(captures: Captures, folder: Path) -> None:
    _full_disk(folder)
    with pytest.raises(CaptureUnwritable, match="plan of what is kept of tagger"):
        captures.start("tagger", ALL)
    assert read_plan(folder) is None


@pytest.mark.usefixtures("full_ledger")
@pytest.mark.parametrize("word", ["stop", "purge"])
def test_keeping_ends_on_a_full_disk(
    tagger: Control,
    captures: Captures,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    word: str,
) -> None:
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(ALL.to_json(), encoding="utf-8")
    _keep(folder, "a", "b")
    _full_disk(folder)
    with caplog.at_level(logging.WARNING):
        status = getattr(captures, word)("tagger")
    assert status.plan is None and "not in its history" in caplog.text
    captures.expire()
    count = captures.status("tagger").inputs
    assert count == {"stop": 2, "purge": 0}[word]  # for lack of a plan nothing is old
    assert word != "stop" or "until `vlserve capture purge tagger`" in caplog.text
    assert captures.purge("tagger").inputs == 0 and not folder.exists()


def test_a_purge_deletes_under_another_name(
    tagger: Control, captures: Captures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures.start("tagger", ALL)
    _keep(folder, "a")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(CaptureUnwritable, match="by hand"):
            captures.purge("tagger")
    (trash,) = folder.parent.iterdir()
    with pytest.raises(FileNotFoundError), locked_total(folder):
        pass
    assert (trash / name_of("a")).exists() and not folder.exists()
    captures.expire()
    assert list(folder.parent.iterdir()) == []
    assert _kinds(tagger)[-2:] == ["capture_started", "capture_stopped"]


def test_old_inputs_and_files_of_killed_workers_are_deleted(
    captures: Captures, folder: Path
) -> None:
    captures.start("tagger", ALL)
    _keep(folder, "old", "new")
    _age(folder / name_of("old"), WEEK_S + 1)
    parts = [folder / f".{name_of('x')}.{pid}" for pid in (1, 2)]
    for part in parts:
        part.write_bytes(b"half")
    _age(parts[0], LEFT_OVER_S + 1)
    link = folder / ".gone"
    link.symlink_to("nowhere")  # as a file that its worker deletes between two looks at it
    captures.expire()
    names = {file.name for file in folder.iterdir() if file != link}
    assert names == {PLAN, "total", name_of("new"), parts[1].name}
    assert total_of(folder) == BLOCK


def test_workers_write_while_old_inputs_are_looked_for(
    captures: Captures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures.start("tagger", ALL)
    _keep(folder, "old", "a")
    _age(folder / name_of("old"), WEEK_S + 1)
    look = captures_module._inputs

    def look_slowly(folder: Path) -> Any:
        yield from list(look(folder))
        _keep(folder, "b")  # with one try for the lock

    monkeypatch.setattr(captures_module, "_inputs", look_slowly)
    captures.expire()
    assert total_of(folder) == 2 * BLOCK


def test_a_thread_deletes_old_inputs(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = threading.Semaphore(0)

    def fail() -> None:
        rounds.release()
        raise RuntimeError("this round")

    monkeypatch.setattr(captures, "expire", fail)
    monkeypatch.setattr(captures_module, "EXPIRE_EVERY_S", 0.001)
    expiry = CaptureExpiry(captures)
    expiry.start()
    assert all(rounds.acquire(timeout=60) for _ in range(3))
    expiry.stop()


def test_pages_get_no_bytes_of_images(captures: Captures, folder: Path) -> None:
    captures.start("tagger", ALL)
    fields = {"image": b"x" * 2048, "text": "字".encode() * (MOST_TEXT_CHARS + 1)}
    keep_input(folder, "a", fields, 10**6)
    summary = InputSummary("字" * MOST_TEXT_CHARS, MOST_TEXT_CHARS + 1, {"image": 2048})
    assert captures.summary_of("tagger", "a") == summary
    keep_input(folder, "b", {"text": b"x"}, 10**6)
    keep_input(folder, "b", {"text": b"y"}, 10**6)  # nobody knows which of them a pair is of
    assert captures.newest_summaries("tagger") == [summary]
    assert captures.status("tagger").inputs == 1 and captures.summary_of("tagger", "b") is None
