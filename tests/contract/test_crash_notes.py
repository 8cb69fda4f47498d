"""What a worker was at work on when it died, as the other workers read it."""

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlserve_worker import crash_notes
from vlserve_worker.crash_notes import (
    NOTE_BYTES,
    REFUSED_S,
    BatchNotes,
    Suspicions,
    digest_of,
    remove_notes,
)
from vlserve_worker.request_filter import Noted, Refusal, RequestFilter
from vlserve_worker.service import answer_batch, open_filter
from vlserve_worker.time_limit import limit_of

DIES = """
import os, sys
from pathlib import Path
from vlserve_worker.crash_notes import BatchNotes
notes = BatchNotes(Path(sys.argv[1]))
with notes.at_work(sys.argv[3:], alone=sys.argv[2] == "alone"):
    os.abort()
"""
A, B, C = "a" * 32, "b" * 32, "c" * 32


def die_at_work(folder: Path, how: str, *digests: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIES, str(folder), how, *digests], check=False)
    assert process.returncode != 0


def test_what_a_dead_worker_was_at_work_on_is_suspect_then_refused(tmp_path: Path) -> None:
    notes = BatchNotes(tmp_path)
    assert notes.look() == Suspicions()
    die_at_work(tmp_path, "batch", A, B)
    assert notes.look() == Suspicions(suspects=frozenset({A, B}))
    with notes.at_work([A], alone=True):
        pass
    assert notes.look() == Suspicions(suspects=frozenset({B}))
    die_at_work(tmp_path, "alone", B)
    assert notes.look().refused == {B}
    assert BatchNotes(tmp_path).look().refused == {B}  # a worker that starts later knows it too


def test_a_death_is_seen_in_a_folder_that_did_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = DIES.replace("os.abort()", "print(flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "batch", A],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        notes = BatchNotes(tmp_path)
        later_ns = time.time_ns() + 10**11
        monkeypatch.setattr(crash_notes.time, "time_ns", lambda: later_ns)
        assert notes.look() == Suspicions()
        monkeypatch.setattr(crash_notes.os, "scandir", None)  # nothing changed: it is not read
        assert notes.look() == Suspicions()
        monkeypatch.undo()
        other.kill()
        other.wait()
        assert notes.look() == Suspicions(suspects=frozenset({A}))


def test_what_a_full_disk_kept_from_being_marked_is_marked_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, neighbour = BatchNotes(tmp_path), BatchNotes(tmp_path)
    die_at_work(tmp_path, "batch", A)
    with monkeypatch.context() as full:
        full.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert notes.look() == Suspicions()
    for each in (neighbour, notes):
        assert each.look() == Suspicions(suspects=frozenset({A}))


def test_an_unload_leaves_the_notes_of_workers_that_live(tmp_path: Path) -> None:
    """An instance that hangs has not heard of the unload: what it is at work on may end it yet."""
    folder = tmp_path / "tagger-1"
    notes = BatchNotes(folder)
    die_at_work(folder, "batch", A)
    (folder / f"{B}-1{crash_notes.SUSPECT}").touch()
    with notes.at_work([C]):
        remove_notes(folder)
        (file,) = folder.iterdir()
        assert C in file.read_text(encoding="ascii")


def test_an_unload_takes_the_folder_away(tmp_path: Path) -> None:
    folder = tmp_path / "tagger-1"
    remove_notes(folder)
    folder.mkdir()
    die_at_work(folder, "alone", A, B)
    (folder / f"{B}-1{crash_notes.REFUSED}").touch()
    remove_notes(folder)
    assert not folder.exists()


def test_a_batch_that_went_well_leaves_nothing(tmp_path: Path) -> None:
    notes, other = BatchNotes(tmp_path), BatchNotes(tmp_path)
    with notes.at_work([A]):
        assert other.look() == Suspicions()  # it is at work, not dead
    with pytest.raises(RuntimeError), notes.at_work([B]):
        raise RuntimeError  # the handler failed; the worker lives
    del notes
    assert other.look() == Suspicions()


def test_a_refusal_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = BatchNotes(tmp_path)
    die_at_work(tmp_path, "alone", A)
    assert notes.look().refused == {A}
    now = crash_notes.time.monotonic()
    for later in (now + 2 * REFUSED_S, now - REFUSED_S):  # time passed; the machine was restarted
        die_at_work(tmp_path, "alone", A)
        notes.look()
        monkeypatch.setattr(crash_notes.time, "monotonic", lambda later=later: later)
        assert notes.look() == Suspicions()
        monkeypatch.undo()
    assert [path.suffix for path in tmp_path.iterdir()] == [".note"]


def test_a_note_of_many_stays_within_its_size(tmp_path: Path) -> None:
    notes = BatchNotes(tmp_path)
    with notes.at_work([A] * 1000):
        (note,) = tmp_path.glob("*.note")
        assert note.stat().st_size == NOTE_BYTES


def test_equal_requests_have_one_digest() -> None:
    def request(*pairs: tuple[str, bytes]) -> dict[str, Any]:
        return {
            "headers": [],
            "parameters": [{"name": name, "value": value} for name, value in pairs],
        }

    digest = digest_of(request(("text", b"ab"), ("body", b"c")))
    assert digest == digest_of(request(("text", b"ab"), ("body", b"c")))
    assert digest != digest_of(request(("text", b"a"), ("body", b"bc")))
    assert digest != digest_of(request(("body", b"ab"), ("text", b"c")))
    same = request(("text", b"ab"), ("body", b"c"))
    other_query = {"name": b"x-vlserve-path", "value": b"/predictions/m?text=b"}
    assert digest != digest_of(same | {"headers": [other_query]})
    request_id = {"name": b"x-request-id", "value": b"1"}
    assert digest == digest_of(same | {"headers": [request_id]})


class Context:
    """What RequestFilter needs of TorchServe's."""

    def __init__(self, size: int) -> None:
        self.request_processor = [SimpleNamespace(headers={}, status=200) for _ in range(size)]
        self.request_ids = {at: f"id-{at}" for at in range(size)}

    def set_response_status(self, code: int, idx: int) -> None:
        self.request_processor[idx].status = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.request_processor[idx].headers[key] = value

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return {}

    def get_request_id(self, idx: int) -> str:
        return self.request_ids[idx]


def echo(rounds: list[list[str]]) -> Callable[[list[dict[str, str]], Context], list[str]]:
    def handle(data: list[dict[str, str]], context: Context) -> list[str]:
        rounds.append([values["text"] for values in data])
        for at in range(len(data)):
            context.set_response_header(at, "asked", data[at]["text"])
        return [f"{values['text']} {context.get_request_id(at)}" for at, values in enumerate(data)]

    return handle


def asked(
    requests: RequestFilter, data: Sequence[Refusal | Noted]
) -> tuple[list[Any], list[list[str]]]:
    context, rounds = Context(len(data)), list[list[str]]()
    answers = answer_batch(requests, data, context, echo(rounds))
    for at, item in enumerate(data):
        headers = context.request_processor[at].headers
        assert headers.get("asked") == (item.values["text"] if isinstance(item, Noted) else None)
    return answers, rounds


def test_suspects_run_alone_after_their_neighbours(tmp_path: Path) -> None:
    requests = RequestFilter(1, BatchNotes(tmp_path), 100)
    die_at_work(tmp_path, "batch", A, B)
    assert requests.read_batch([]) == []
    data = [Noted({"text": text}, digest) for text, digest in zip("abc", (A, B, C), strict=True)]
    answers, rounds = asked(requests, data)
    assert rounds == [["c"], ["a"], ["b"]]
    assert answers == ["a id-0", "b id-1", "c id-2"]
    requests.read_batch([])
    assert asked(requests, data)[1] == [["a", "b", "c"]]  # both are cleared


def test_a_suspect_that_its_neighbours_made_late_is_not_noted_as_alone(tmp_path: Path) -> None:
    """TorchServe ends a worker that is late with the batch: the last suspect is not the reason."""
    requests = RequestFilter(1, BatchNotes(tmp_path), 100, response_timeout_s=3)
    die_at_work(tmp_path, "batch", A, B)
    requests.read_batch([])
    kinds: list[bytes] = []

    def handle(data: list[dict[str, str]], context: Context) -> list[str]:
        (note,) = tmp_path.glob("*.note")
        kinds.append(note.read_bytes().partition(b"\n")[0])
        time.sleep(1.1)
        return ["said"]

    data = [Noted({"text": text}, digest) for text, digest in zip("ab", (A, B), strict=True)]
    assert answer_batch(requests, data, Context(2), handle) == ["said", "said"]
    assert kinds == [b"alone", b"batch"]


def test_a_batch_of_refusals_alone_asks_no_handler(tmp_path: Path) -> None:
    requests = open_filter("m", 1, str(tmp_path / "engine-0"), tmp_path)
    (answer,), rounds = asked(requests, [Refusal("body_unreadable", "why")])
    assert (rounds, b"why" in answer) == ([], True)
    assert list((tmp_path / "batches" / "m-1").glob("*.note"))


def test_a_handler_with_too_few_answers_is_left_to_torchserve() -> None:
    requests = RequestFilter(1, None, 100)
    data = [Noted({"text": "a"}, A), Refusal("body_unreadable", "why")]
    assert answer_batch(requests, data, Context(2), lambda data, context: ["one", "two"]) == []


def test_without_a_place_for_notes_requests_are_answered(tmp_path: Path) -> None:
    (tmp_path / "batches").write_text("in the way", encoding="utf-8")
    requests = open_filter("m", 1, str(tmp_path / "engine-0"), tmp_path)
    assert asked(requests, [Noted({"text": "a"}, A)])[0] == ["a id-0"]


def test_the_limit_of_bodies_is_the_engine_s_own(tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text("a=1\nmax_request_size=7\n", encoding="utf-8")
    requests = open_filter("m", 1, str(tmp_path), tmp_path)
    header = {"name": b"x-vlserve-content-encoding", "value": b"gzip"}
    body = bytearray(gzip.compress(b"12345678"))
    (refusal,) = requests.read_batch(
        [{"headers": [header], "parameters": [{"name": "body", "value": body}]}]
    )
    assert refusal == Refusal(
        "body_too_large", "the body has more than 7 bytes once it is unpacked"
    )


def test_a_suspect_has_less_time_than_a_batch() -> None:
    assert limit_of(30, alone=False) == 29
    assert limit_of(30, alone=True) == pytest.approx(29 / 3)
    assert limit_of(3, alone=True) == limit_of(3, alone=False) == 2
    assert limit_of(1, alone=False) == 0.5


LATE = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
from vlserve_worker.crash_notes import BatchNotes
from vlserve_worker.request_filter import Noted, RequestFilter
from vlserve_worker.service import answer_batch

class Context(SimpleNamespace):
    def set_response_status(self, code, idx): self.code = code
    def set_response_content_type(self, idx, value): pass
    def set_response_header(self, idx, key, value): pass
    def get_all_request_header(self, idx): return {}
    def get_request_id(self, idx): return "id"

def handle(data, context):
    if any(values["body"] == b"slow" for values in data):
        time.sleep(60)
    return [values["body"].decode() for values in data]

requests = RequestFilter(1, BatchNotes(Path(sys.argv[1])), 100, 3)
batch = [
    {"headers": json.loads(sys.argv[2], object_hook=lambda one: {
        name: value.encode() for name, value in one.items()}),
     "parameters": [{"name": "body", "value": bytearray(text.encode())}]}
    for text in sys.argv[3:]
]
data = [
    Noted({"body": request["parameters"][0]["value"]}, one) if isinstance(one, str) else one
    for one, request in zip(requests.read_batch(batch), batch)
]
ids = {at: str(at) for at in range(len(data))}
context = Context(request_processor=list(data), request_ids=ids)
said = answer_batch(requests, data, context, handle)
print([one if isinstance(one, str) else json.loads(one)["error"]["code"] for one in said])
"""


OF_A_CLIENT = json.dumps([{"name": "x-vlserve-path", "value": "/predictions/m"}])


def test_a_request_that_takes_too_long_is_found(tmp_path: Path) -> None:
    """A batch of it and another, it alone after the other, then its refusal; the control service's
    own probe is never refused."""

    def worker(*texts: str, headers: str = OF_A_CLIENT) -> tuple[str, str]:
        command = [sys.executable, "-c", LATE, str(tmp_path), headers, *texts]
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=50, check=False, encoding="utf-8"
        )
        return process.stdout, process.stderr

    for _ in range(2):
        output, log = worker("slow", "fast")
        assert output == ""
        assert "Timeout (0:00:02" in log
        assert "in handle" in log  # where it was
    assert worker("slow", "fast")[0] == "['request_killed_worker', 'fast']\n"
    for _ in range(3):
        output, log = worker("slow", headers="[]")
        assert (output, "in handle" in log) == ("", True)
