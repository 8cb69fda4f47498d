"""The log of answers that the handlers write, by request and version."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.control.rollouts.log_reader import Cursor, Line, read_since

KEPT = 20_000
"""AnswerLog that are remembered; older ones are forgotten first."""


@dataclass(frozen=True)
class LoggedAnswer:
    """One answer. ``scores``: label -> score, best first; empty where the answer has no labels.
    ``failed``: it was an error instead."""

    scores: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    failed: bool = False

    @property
    def label(self) -> str | None:
        """The label with the best score."""
        return next(iter(self.scores), None)


class AnswerLog:
    """The answers of one model, logged after ``begin``. After a restart of the control service all
    of them are read again."""

    def __init__(self, log: Path, model: str, begin: Cursor) -> None:
        self._log = log
        self._wanted = f'"model": "{model}"'.encode()
        self._cursor = begin
        self._by_request: OrderedDict[tuple[str, int], LoggedAnswer | None] = OrderedDict()

    def read(self) -> None:
        """Read what was logged since the last call."""
        before = None
        while self._cursor != before:
            before = self._cursor
            lines, self._cursor = read_since(self._log, self._cursor, self._wanted)
            for line in lines:
                self._add(line)
            while len(self._by_request) > KEPT:
                self._by_request.popitem(last=False)

    def of(self, request_id: str, version: int) -> LoggedAnswer | None:
        """Return the answer of a version to a request; None while it is not logged, and for a
        request id that came twice: nobody knows which of the two requests it stands for."""
        return self._by_request.get((request_id, version))

    def _add(self, line: Line) -> None:
        try:
            key = (str(line["request_id"]), int(line["version"]))
            answered = LoggedAnswer(
                scores={str(label): float(s) for label, s in line.get("scores", {}).items()},
                digest=str(line.get("digest", "")),
                failed="error" in line,
            )
        except (KeyError, TypeError, ValueError, AttributeError):  # not a line of ours
            return
        self._by_request[key] = None if key in self._by_request else answered
