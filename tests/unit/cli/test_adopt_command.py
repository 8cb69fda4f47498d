"""`vlserve adopt`: what it prints, several archives at once, answers of the former server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from support import legacy_archives as made
from support.command_line import Run
from vlserve.runtime.archive import manifest_of

pytestmark = pytest.mark.server


class _Former(BaseHTTPRequestHandler):
    """Answers as a server did that somebody comes from."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("X-Kind", "former")
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"old")

    def log_message(self, format: str, *words: object) -> None:
        """Print nothing."""


@pytest.fixture
def former() -> Iterator[str]:
    """The address of a server where the model was served before."""
    with HTTPServer(("127.0.0.1", 0), _Former) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/predictions/One"
        server.shutdown()
        thread.join()


def _store(folder: Path) -> Path:
    for name in ("One", "Two"):
        made.write_legacy(folder / f"{name}.mar", "score:run", made.ENTRY_FUNCTION, modelName=name)
    return folder


def test_it_lists_the_code_that_it_runs_and_says_what_comes_next(run: Run, tmp_path: Path) -> None:
    archive = _store(tmp_path / "store") / "One.mar"

    result = run("adopt", str(archive), "--out", str(tmp_path))

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("runs score.py (sha256 ")
    assert lines[1] == (
        "one 1, formerly One 1.0: batch size 1, probes 1, answered by the handler itself"
    )
    assert lines[-1] == f"next: vlserve register {tmp_path / 'one-1.mar'}"


def test_each_archive_of_a_store_is_adopted(run: Run, tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    requests.mkdir()
    (requests / "Two.json").write_text("[1]", encoding="utf-8")

    result = run(
        "adopt", str(_store(tmp_path / "store")), "--requests", str(requests),
        "--out", str(tmp_path), "--json",
    )  # fmt: skip

    assert result.code == 0, result.err
    assert [entry["model"] for entry in json.loads(result.out)] == ["one", "two"]


def test_several_archives_have_no_one_name(run: Run, tmp_path: Path) -> None:
    result = run("adopt", str(_store(tmp_path / "store")), "--name", "m", "--out", str(tmp_path))

    assert (result.code, "for one archive" in result.err) == (2, True)


def test_several_archives_have_no_one_request(run: Run, tmp_path: Path) -> None:
    request = tmp_path / "a.json"
    request.write_text("{}", encoding="utf-8")

    result = run("adopt", str(_store(tmp_path / "store")), "--requests", str(request))

    assert (result.code, "give a folder with an entry for each" in result.err) == (2, True)


def test_answers_of_the_former_server_become_the_probes_and_differences_are_told(
    run: Run, tmp_path: Path, former: str
) -> None:
    archive = _store(tmp_path / "store") / "One.mar"

    secret = former.replace("http://", "http://bob:s3cret@") + "?token=s3cret"
    result = run("adopt", str(archive), "--record", secret, "--out", str(tmp_path))

    assert result.code == 0, result.err
    assert "s3cret" not in result.out + result.err
    assert "s3cret" not in manifest_of(tmp_path / "one-1.mar").model_dump_json()
    assert "is answered otherwise here than by the server it was recorded from" in result.err
    assert f"answered by {former}" in result.out
    (probe,) = manifest_of(tmp_path / "one-1.mar").probes
    assert probe.answer == {"status": 200, "headers": {"x-kind": "former"}, "text": "old"}


def test_a_former_server_that_does_not_answer_is_told(run: Run, tmp_path: Path) -> None:
    archive = _store(tmp_path / "store") / "One.mar"

    url = "http://bob:s3cret@127.0.0.1:9/x?token=s3cret"
    result = run("adopt", str(archive), "--record", url, "--out", str(tmp_path))

    assert "s3cret" not in result.out + result.err
    assert "http://127.0.0.1:9/x does not answer an empty JSON object" in result.line


def test_an_offline_job_answers_by_the_handler_and_writes_where_it_was_told(
    run: Run, tmp_path: Path
) -> None:
    rows = [
        {"id": "a", "headers": {"content-type": "text/plain"}, "content": "aGVsbG8="},
        {"id": "b", "headers": {}, "content": "AP8="},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run("adopt", str(_store(tmp_path / "store") / "One.mar"))

    result = run("batch", "one-1.mar", "--input", "rows.jsonl", "--output", "out")

    assert result.code == 0, result.err
    lines = (tmp_path / "out" / "part-00000.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [
        "str: 'hello'",
        "bytearray: bytearray(b'\\x00\\xff')",
    ]


def test_an_offline_job_gives_the_handler_no_more_than_its_own_batch(
    run: Run, tmp_path: Path
) -> None:
    rows = [{"id": str(number), "headers": {}, "content": "AP8="} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = "def run(data, context):\n    return data and [str(len(data))] * len(data)\n"
    made.write_legacy(tmp_path / "Counts.mar", "counts:run", source, modelName="Counts")
    run("adopt", "Counts.mar", "--batch-size", "2")

    result = run("batch", "counts-1.mar", "--input", "rows.jsonl", "--output", "out")

    assert result.code == 0, result.err
    lines = (tmp_path / "out" / "part-00000.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["2", "2", "2", "2", "1"]
