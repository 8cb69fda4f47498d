"""Locust as a subprocess, which ends before we do."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vlserve.settings import load_settings


def load_file(name: str) -> Path:
    """Return a file of loadtest/, which users edit: the project's own, else the packaged one."""
    return load_settings().folder("loadtest") / name


@contextmanager
def running_locust(
    options: Mapping[str, object], out_dir: Path, api_key: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Locust, in a session of its own (so that Ctrl-C reaches us alone), gone when we leave. It
    writes ``out_dir``/locust.log."""
    words = [str(word) for pair in options.items() for word in pair]
    with (out_dir / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "locust", "--headless", "--only-summary", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(api_key),
            cwd=out_dir,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def last_words(out_dir: Path) -> str:
    """The end of Locust's log."""
    lines = (out_dir / "locust.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line for line in lines[-5:] if line.strip()) or "nothing"


def _environment(api_key: str) -> dict[str, str]:
    """Ours without LOCUST_* (they would change the run), with the key, which no list of processes
    may show."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    return kept | {"VLSERVE_STRESS_API_KEY": api_key}
