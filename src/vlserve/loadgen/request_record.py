"""One line of JSON for each request of a load run: Locust's process writes it, the judgement reads
it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.errors import StressError

_JSON_NAMES = {"sent_at": "started", "sticky_key": "caller", "requested_version": "asked"}
"""Field -> its name in the file, where the two differ."""


@dataclass(frozen=True)
class RequestRecord:
    """One request that was due."""

    due_s: float
    """When it was due, seconds from the start of the run. In a closed loop: when it was sent."""
    late_ms: float
    """How long after that the client sent it."""
    latency_ms: float | None
    """From due to the end of the answer, or to the failure. None: it was never sent."""
    version: int | None = None
    """The version that answered."""
    failure: str | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by name, of the answer's Server-Timing."""
    sent_at: float = 0.0
    """Unix time, s."""
    sticky_key: str | None = None
    """Its X-Sticky-Key."""
    requested_version: int | None = None
    """The version that it asked for, by path or by X-Model-Version."""

    @property
    def ended_at(self) -> float:
        """Unix time, s, of the end of the answer."""
        if self.latency_ms is None:
            return self.sent_at
        return self.sent_at + (self.latency_ms - self.late_ms) / 1000

    def line(self) -> str:
        """Return the record as a line of JSON."""
        fields = {_JSON_NAMES.get(name, name): value for name, value in vars(self).items()}
        return json.dumps(fields) + "\n"


def parse_record(line: str) -> RequestRecord:
    """Return the record that `RequestRecord.line` wrote; ValueError, KeyError or TypeError where
    it did not."""
    fields = json.loads(line)
    for name, json_name in _JSON_NAMES.items():
        fields[name] = fields.pop(json_name)
    return RequestRecord(**fields)


def read_records(file: Path) -> list[RequestRecord]:
    """Return the records of a run in the order of their ends.

    A last line without its end is still being written, and is left out. StressError where the file
    cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        return [parse_record(line) for line in complete.splitlines()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StressError(f"the load run left no readable {file}: {error!r}") from error
