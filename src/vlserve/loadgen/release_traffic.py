"""The callers of loadtest/gray_release.py, while something is done to the model that they call."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.errors import StressError
from vlserve.loadgen.caller_record import Call, read_calls
from vlserve.loadgen.locust_process import last_words, load_file, running_locust

START_UP_S = 60
_TIMEOUT_S = 35
_POLL_S = 0.1


@dataclass(frozen=True)
class CallersPlan:
    """Who calls ``{url}/predictions/{model}``, and how often. Requests are made of the probes of
    ``archive``, unless there is ``data``: JSON lines ``{"id", "img", "text"}``."""

    url: str
    model: str
    archive: Path
    rate_per_s: float
    data: Path | None = None
    sticky_share: float = 0.0
    """Share of the requests with an X-Sticky-Key, of one of so many ``callers``."""
    callers: int = 1
    ask: tuple[int, ...] = ()
    """The versions that ``ask_share`` of the requests ask for, in turns."""
    ask_share: float = 0.0
    api_key: str = field(default="", repr=False)


class RunningCallers:
    """Locust, and what it wrote: ``folder`` has report.html (at the end), calls.jsonl and
    locust.log."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.report = folder / "report.html"

    def check(self) -> None:
        """StressError if Locust has come to an unwanted end."""
        if self._process.poll() not in (None, 0):
            raise StressError(
                f"Locust ended with exit code {self._process.returncode}; its log, "
                f"{self._folder / 'locust.log'}, ends with: {last_words(self._folder)}"
            )

    def calls(self) -> list[Call]:
        """Those that have ended."""
        self.check()
        return read_calls(self._folder / "calls.jsonl")

    def end(self) -> list[Call]:
        """No more requests; all that were sent, once the last is answered."""
        self._process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_TIMEOUT_S + 20)
        return self.calls()


@contextmanager
def calling(plan: CallersPlan, folder: Path) -> Iterator[RunningCallers]:
    """Callers from the first answer on until `RunningCallers.end`, or until we leave."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in ("calls.jsonl", "report.html"):
        (folder / earlier).unlink(missing_ok=True)
    with running_locust(_options(plan, folder), folder, plan.api_key) as process:
        running = RunningCallers(process, folder)
        deadline = time.monotonic() + START_UP_S
        record = folder / "calls.jsonl"
        while not (record.exists() and running.calls()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StressError(
                    f"no request was sent within {START_UP_S} s; the end of Locust's log, "
                    f"{folder / 'locust.log'}: {last_words(folder)}"
                )
            time.sleep(_POLL_S)
        yield running


def _options(plan: CallersPlan, folder: Path) -> dict[str, object]:
    options: dict[str, object] = {
        "--locustfile": load_file("gray_release.py"),
        "--host": plan.url,
        "--users": 1,
        "--stop-timeout": _TIMEOUT_S + 5,
        "--exit-code-on-error": 0,
        "--html": folder.resolve() / "report.html",
        "--model": plan.model,
        "--archive": plan.archive.resolve(),
        "--rate": plan.rate_per_s,
        "--sticky-share": plan.sticky_share,
        "--callers": plan.callers,
        "--ask-share": plan.ask_share,
        "--request-timeout": _TIMEOUT_S,
        "--record": folder.resolve() / "calls.jsonl",
    }
    if plan.data is not None:
        options["--data"] = plan.data.resolve()
    if plan.ask:
        options["--ask"] = ",".join(map(str, plan.ask))
    return options
