"""Why a worker died, out of lines that TorchServe 0.12 really wrote."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from vlserve.control.engine.worker_log import (
    MAX_FAILURE_CHARACTERS,
    MAX_READ_BYTES,
    MODEL_LOG,
    failure,
    last_words,
    log_size,
    read_since,
)
from vlserve.runtime.errors import ArchiveTampered
from vlserve_worker.last_words import tell_failed_loads


def lines(port: int, version: int, *texts: str, stream: str = "stdout") -> str:
    worker = f"2026-11-21T01:21:10,450 [INFO ] W-{port}-my-tagger_{version}-{stream} MODEL_LOG - "
    return "".join(f"{worker}{text}\n" for text in texts)


RAISED = (
    "Torch worker started.",
    "Failed to load model my-tagger, exception no such graph: model.onnx",
    "Traceback (most recent call last):",
    '  File "ts/model_service_worker.py", line 133, in load_model',
    "    service = model_loader.load(",
    "              ^^^^^^^^^^^^^^^^^^",
    "vlserve.runtime.errors.ArchiveTampered: no such graph: model.onnx",
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "ts/model_service_worker.py", line 301, in <module>',
    "RuntimeError: 500 - Unknown exception",
)
CHAINED = (
    "Traceback (most recent call last):",
    '  File "torchserve_handler.py", line 1, in <module>',
    "ModuleNotFoundError: No module named 'nonexistent'",
    "",
    "During handling of the above exception, another exception occurred:",
    "",
    "Traceback (most recent call last):",
    "ModuleNotFoundError: No module named 'ts.torch_handler.torchserve_handler'",
)
RAISED_FROM = (
    "Traceback (most recent call last):",
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for EchoSettings",
    "answer_shift",
    "  Input should be a valid integer",
    "",
    "The above exception was the direct cause of the following exception:",
    "",
    "Traceback (most recent call last):",
    '    raise ArchiveUnreadable(f"{graph.file} cannot be loaded: {error}") from error',
    "vlserve.runtime.errors.ArchiveUnreadable: graphs/model.onnx cannot be loaded: no such node",
    "Backend worker process died.",
)
SYNTAX = (
    "Traceback (most recent call last):",
    "    def x(:",
    "          ^",
    "SyntaxError: invalid",
)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (RAISED, "ArchiveTampered: no such graph: model.onnx"),
        (CHAINED, "ModuleNotFoundError: No module named 'nonexistent'"),
        (SYNTAX, "SyntaxError: invalid"),
        (RAISED_FROM, "ArchiveUnreadable: graphs/model.onnx cannot be loaded: no such node"),
        (RAISED + RAISED_FROM, "ArchiveTampered: no such graph: model.onnx"),
        (
            RAISED_FROM + RAISED,
            "ArchiveUnreadable: graphs/model.onnx cannot be loaded: no such node",
        ),
        (
            ("Traceback (most recent call last):", '  File "x"', "KeyboardInterrupt"),
            "KeyboardInterrupt",
        ),
        (("Torch worker started.", "model_name: my-tagger, batchSize: 8"), None),
        ((), None),
    ],
)
def test_the_first_exception_is_the_reason(texts: tuple[str, ...], reason: str | None) -> None:
    assert last_words(lines(9500, 2, *texts), "my-tagger", 2).reason == reason


def test_two_workers_that_write_at_the_same_time_are_kept_apart() -> None:
    pairs = zip(RAISED, SYNTAX + ("",) * len(RAISED), strict=False)
    log = "".join(lines(9500, 2, line) + lines(9501, 2, other) for line, other in pairs)
    assert last_words(log, "my-tagger", 2).reason == "ArchiveTampered: no such graph: model.onnx"


@pytest.mark.parametrize("place", range(1, len(RAISED_FROM) + 1))
def test_an_exit_code_among_the_lines_of_a_traceback_is_not_its_end(place: int) -> None:
    exit_line = lines(9500, 2, "the worker ended with exit code 1", stream="stderr")
    log = lines(9500, 2, *RAISED_FROM[:place]) + exit_line + lines(9500, 2, *RAISED_FROM[place:])
    expected = "ArchiveUnreadable: graphs/model.onnx cannot be loaded: no such node"
    assert last_words(log, "my-tagger", 2).reason == expected


def test_other_versions_are_not_looked_at() -> None:
    log = lines(9500, 12, *RAISED) + lines(9501, 2, "Torch worker started.")
    assert last_words(log, "my-tagger", 2).reason is None
    assert last_words(log, "tagger", 12).reason is None


def test_a_worker_that_crashes_leaves_its_last_words_on_stderr() -> None:
    log = lines(9500, 2, "Torch worker started.") + lines(9500, 2, "out of memory", stream="stderr")
    assert last_words(log, "my-tagger", 2).reason == "out of memory"


ENDS = {
    "import os; os._exit(9)": "the worker ended with exit code 9",
    "import sys; sys.exit('no licence')": "no licence; the worker ended with exit code 1",
    "import os, sys; print('no GPU', file=sys.stderr); os._exit(3)": (
        "no GPU; the worker ended with exit code 3"
    ),
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": (
        "the worker was ended by a signal: Segmentation fault"
    ),
    "import os; os.fork() or os._exit(0); os.wait()": None,
    "pass": None,
}


@pytest.mark.parametrize("code", ENDS)
def test_a_worker_says_how_it_ended_without_an_exception(code: str) -> None:
    program = f"from vlserve_worker.last_words import last_words\nwith last_words():\n    {code}\n"
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8"
    )
    log = lines(9500, 2, *process.stderr.splitlines(), stream="stderr")
    assert last_words(log, "my-tagger", 2).reason == ENDS[code]


def test_only_what_was_written_since_is_read(tmp_path: Path) -> None:
    assert (log_size(tmp_path), read_since(tmp_path, 0)) == (0, "")
    log = tmp_path / MODEL_LOG
    log.write_text("before\n", encoding="utf-8")
    size = log_size(tmp_path)
    with log.open("a", encoding="utf-8") as file:
        file.write("since\n")
    assert read_since(tmp_path, size) == "since\n"
    log.write_text("new\n", encoding="utf-8")  # rotated
    assert read_since(tmp_path, size) == "new\n"


def test_of_a_log_without_end_the_newest_lines_are_read(tmp_path: Path) -> None:
    with (tmp_path / MODEL_LOG).open("wb") as log:
        log.truncate(MAX_READ_BYTES * 4)
        log.seek(0, 2)
        log.write(lines(9500, 2, *RAISED).encode())
    text = read_since(tmp_path, 10)
    assert len(text) <= MAX_READ_BYTES
    assert last_words(text, "my-tagger", 2).reason == "ArchiveTampered: no such graph: model.onnx"


FAILS = {
    "raise RuntimeError('no graph ✗')": "RuntimeError: no graph ✗",
    "import none": "ModuleNotFoundError: No module named 'none'",
    "compile('def x(:', 'handler.py', 'exec')": "SyntaxError: invalid syntax",
    "raise ArchiveTampered('two lines\\nin one')": "ArchiveTampered: two lines",
    "try:\n    import none\nexcept ImportError:\n    import vlserve.none": (
        "ModuleNotFoundError: No module named 'none'"
    ),
    "try:\n    import none\nexcept ImportError as e:\n    raise ArchiveTampered('so') from e": (
        "ArchiveTampered: so"
    ),
    "try:\n    import none\nexcept ImportError as e:\n    raise ArchiveTampered('so') from None": (
        "ArchiveTampered: so"
    ),
    "raise KeyError": "KeyError",
    "pass": None,
}


@pytest.mark.parametrize("code", FAILS)
def test_a_load_that_fails_leaves_its_exception_in_a_file(tmp_path: Path, code: str) -> None:
    class Loader:
        def load(self, model: str) -> str:
            exec(code, {"ArchiveTampered": ArchiveTampered})
            return model

    file = tmp_path / "failed_loads" / "my-tagger-2"
    tell_failed_loads(Loader, file)
    with suppress(Exception):
        assert Loader().load(model="my-tagger") == "my-tagger"
    assert failure(file) == FAILS[code]
    assert [each.name for each in tmp_path.rglob("my-tagger*")] == ["my-tagger-2"] * file.exists()


def test_a_failure_that_cannot_be_written_hides_no_exception(tmp_path: Path) -> None:
    class Loader:
        def load(self) -> None:
            raise RuntimeError("no graph")

    (tmp_path / "failed_loads").write_text("a file", encoding="utf-8")
    tell_failed_loads(Loader, tmp_path / "failed_loads" / "my-tagger-2")
    with pytest.raises(RuntimeError, match="no graph"):
        Loader().load()


def test_a_failure_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "my-tagger-2"
    file.write_text("x" * 100_000, encoding="utf-8")
    assert len(failure(file) or "") == MAX_FAILURE_CHARACTERS
