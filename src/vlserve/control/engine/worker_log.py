"""Why a TorchServe worker did not come up: TorchServe itself only says that it did not."""

import re
from dataclasses import dataclass
from pathlib import Path

MODEL_LOG = "model_log.log"
"""TorchServe's file of what workers print; a line names its worker, W-<port>-<model>_<version>."""

_LINE = re.compile(
    r"\[\w+ *\] W-(?P<port>\d+)-(?P<model>.+)_(?P<version>\d+)-(?P<stream>stdout|stderr)"
    r" MODEL_LOG - (?P<text>.*)"
)
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*(?P<error>[A-Za-z_]\w*(?::.*)?)$")
_ENDED = re.compile(r"the worker ended with exit code \d+")
"""As vlserve_worker.last_words writes it."""
_CRASHED = "Fatal Python error: "
"""Before the name of a signal, as Python's faulthandler writes it, with the stack behind it."""
_TRACEBACK = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"


MAX_READ_BYTES = 8 * 1024**2
"""Of the log's newest lines: a handler may print without end."""

MAX_FAILURE_CHARACTERS = 10_000
"""Of an exception that a worker wrote."""


def log_size(folder: Path) -> int:
    """Bytes of the log so far; a later `read_since` starts there."""
    file = folder / MODEL_LOG
    return file.stat().st_size if file.is_file() else 0


def read_since(folder: Path, size: int) -> str:
    """What was logged after the log had ``size`` bytes, MAX_READ_BYTES at most; all of it when it
    was rotated since."""
    file = folder / MODEL_LOG
    if not file.is_file():
        return ""
    with file.open("rb") as log:
        now = file.stat().st_size
        log.seek(max(size if now >= size else 0, now - MAX_READ_BYTES))
        return log.read(MAX_READ_BYTES).decode("utf-8", "replace")


def failure(file: Path) -> str | None:
    """Return what a worker wrote to ``file`` as a load failed, MAX_FAILURE_CHARACTERS at most."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline(MAX_FAILURE_CHARACTERS).strip() or None


@dataclass(frozen=True)
class LastWords:
    """``exception``: the first that a worker of the version died of. ``printed``: what it last
    wrote to stderr, with the signal or the exit code. None: it left no such word."""

    exception: str | None = None
    printed: str | None = None

    @property
    def reason(self) -> str | None:
        return self.exception or self.printed


def last_words(log: str, model: str, version: int) -> LastWords:
    """Return what the workers of a version left in the log."""
    streams: dict[tuple[str, str], list[str]] = {}  # two pipes, whose lines mingle in the log
    stderr: list[str] = []
    for line in log.splitlines():
        match = _LINE.search(line)
        if not match or (match["model"], match["version"]) != (model, str(version)):
            continue
        streams.setdefault((match["port"], match["stream"]), []).append(match["text"])
        if match["stream"] == "stderr" and match["text"].strip():
            stderr.append(match["text"].strip())
    exceptions = filter(None, map(_first_exception, streams.values()))
    return LastWords(next(exceptions, None), _printed(stderr))


def _printed(stderr: list[str]) -> str | None:
    crash = next((i for i, line in enumerate(stderr) if line.startswith(_CRASHED)), None)
    if crash is not None:  # faulthandler's list of threads follows
        signal = stderr[crash].removeprefix(_CRASHED)
        before = stderr[max(crash - 1, 0) : crash]
        return "; ".join((*before, f"the worker was ended by a signal: {signal}"))
    end = next(filter(_ENDED.fullmatch, stderr), None)
    lines = [line for line in stderr if not _ENDED.fullmatch(line)]
    return "; ".join(filter(None, (*lines[-1:], end))) or None


def _first_exception(lines: list[str]) -> str | None:
    """The line that ends the first traceback, without the module path of the exception. Where that
    exception was raised again as another one (``raise … from``), it is the other's line."""
    reason, inside = None, False
    for line in lines:
        if line == _TRACEBACK:
            if reason is not None:
                return reason
            inside = True
        elif line == _CAUSE:
            reason = None
        elif inside and line and not line[0].isspace():
            match = _EXCEPTION.match(line)
            reason, inside = match["error"] if match else line, False
    return reason
