"""One line for each request of callers around a release: written by loadtest/gray_release.py, read
to judge the release from outside."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vlserve.errors import StressError


@dataclass(frozen=True)
class Call:
    """One request. Its version is the one that the gateway named."""

    started: float
    """Unix time, s, at which it was sent."""
    latency_ms: float
    caller: str | None = None
    """Its X-Sticky-Key."""
    asked: int | None = None
    """Its X-Model-Version."""
    version: int | None = None
    failure: str | None = None

    @property
    def ended(self) -> float:
        return self.started + self.latency_ms / 1000

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_calls(file: Path) -> list[Call]:
    """In the order of their ends; a line that is being written is left out. StressError where
    there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [Call(**json.loads(line)) for line in whole.splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise StressError(f"the callers left no readable {file}: {error}") from error
