"""Run Locust on a file of loadtest/ as a subprocess that ends before we do."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vlserve.errors import StressError
from vlserve.loadgen.load_plan import API_KEY_VARIABLE, LoadPlan
from vlserve.loadgen.request_record import RequestRecord, read_records
from vlserve.settings import load_settings

START_UP_S = 60
"""Locust imports, reads the dataset and writes its report in this time, also on a busy machine."""
_TERMINATE_S = 5


class LocustProcess:
    """Locust, and the files that it writes into a folder: report.html (at the end),
    requests.jsonl and locust.log."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, timeout_s: int) -> None:
        self.pid = process.pid
        self.report = folder / "report.html"
        self.log = folder / "locust.log"
        self.record = folder / "requests.jsonl"
        self._process = process
        self._timeout_s = timeout_s

    def ended(self) -> bool:
        """Tell whether Locust has ended."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> None:
        """Wait for Locust's end, at most ``timeout_s``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=timeout_s)

    def check(self) -> None:
        """Raise StressError if Locust has failed."""
        if self._process.poll() not in (None, 0):
            raise self.error(f"Locust ended with exit code {self._process.returncode}")

    def error(self, reason: str) -> StressError:
        """Return an error that quotes the end of Locust's log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        end = " | ".join(line for line in lines[-5:] if line.strip()) or "nothing"
        return StressError(f"{reason}; its log, {self.log}, ends with: {end}")

    def records(self) -> list[RequestRecord]:
        """Return the requests that have ended. StressError if Locust has failed."""
        self.check()
        return read_records(self.record)

    def finish(self) -> list[RequestRecord]:
        """Send no more requests; return all, once the last one has ended."""
        self._process.send_signal(signal.SIGUSR1)
        self.wait(self._timeout_s + 20)
        return self.records()


@contextmanager
def running_locust(
    load_file: str, plan: LoadPlan, options: Mapping[str, object], folder: Path
) -> Iterator[LocustProcess]:
    """Start Locust, and end it when the body is left.

    Args:
        load_file: Name of a file in the project's loadtest/.
        plan: What every load file needs to know.
        options: The file's own options and Locust's; None leaves one out.
        folder: Gets Locust's files; earlier ones are removed.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "requests.jsonl"):
        (folder / name).unlink(missing_ok=True)
    words = {**_common_options(load_file, plan, folder), **options}
    arguments = [str(word) for pair in words.items() if pair[1] is not None for word in pair]
    command = [sys.executable, "-P", "-m", "locust", "--headless", "--only-summary"]
    command += ["--end-with-parent"]
    with (folder / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(plan.api_key),
            cwd=folder,
            start_new_session=True,  # so that Ctrl-C reaches us alone
        )
    try:
        yield LocustProcess(process, folder, plan.timeout_s)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_TERMINATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _common_options(load_file: str, plan: LoadPlan, folder: Path) -> dict[str, object]:
    return {
        "--locustfile": load_settings().folder("loadtest") / load_file,
        "--host": plan.url,
        "--stop-timeout": plan.timeout_s + 5,
        "--exit-code-on-error": 0,
        "--html": folder / "report.html",
        "--model": plan.model,
        "--data": plan.data and plan.data.resolve(),
        "--archive": plan.archive and plan.archive.resolve(),
        "--request-timeout": plan.timeout_s,
        "--record": folder / "requests.jsonl",
    }


def _environment(api_key: str) -> dict[str, str]:
    """Return ours without LOCUST_*, which would change the run, and with the key, which no list of
    processes may show."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    return ours | {API_KEY_VARIABLE: api_key}
