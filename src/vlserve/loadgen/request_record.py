"""One line for each request of a run: written by loadtest/locustfile.py, read to judge the run."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlserve.errors import StressError


@dataclass(frozen=True)
class Record:
    """One request. Times count from the start of the run."""

    due_s: float
    """When it was to start; closed loop: when it did."""
    late_ms: float
    """How long after that the client sent it."""
    latency_ms: float | None
    """From due to the whole answer, or to the failure; None: never sent."""
    version: int | None = None
    failure: str | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by name, of the answer's Server-Timing."""

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_records(lines: Iterable[str]) -> list[Record]:
    """The records of a run, in the order of their ends."""
    return [Record(**json.loads(line)) for line in lines]


def read_record_file(file: Path) -> list[Record]:
    """As `read_records`; StressError where the run left none."""
    try:
        with file.open(encoding="utf-8") as lines:
            return read_records(lines)
    except (OSError, ValueError, TypeError) as error:
        raise StressError(f"the run left no readable {file}: {error}") from error
