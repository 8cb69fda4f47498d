"""The log of answers that the handlers write, by request and version."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.control.rollouts.log_reader import Cursor, as_model, read_since
from vlserve.runtime.answer_log import AnswerLine, read_answer_line

KEPT = 20_000
"""Answers that are remembered; older ones are forgotten first."""


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
        self._model = model
        self._containing = f'"{model}"'.encode()  # however a writer sets its spaces
        self._cursor = begin
        self._by_request: OrderedDict[tuple[str, int], LoggedAnswer | None] = OrderedDict()

    def read(self) -> None:
        """Read what was logged since the last call."""
        before = None
        while self._cursor != before:
            before = self._cursor
            lines, self._cursor = read_since(self._log, self._cursor, self._containing)
            named = (line for line in lines if line.get("model") == self._model)
            for line in as_model(named, read_answer_line, self._log):
                self._add(line)
            while len(self._by_request) > KEPT:
                self._by_request.popitem(last=False)

    def of(self, request_id: str, version: int) -> LoggedAnswer | None:
        """Return the answer of a version to a request; None while it is not logged, and for a
        request id that came twice: nobody knows which of the two requests it stands for."""
        return self._by_request.get((request_id, version))

    def _add(self, line: AnswerLine) -> None:
        key = (line.request_id, line.version)
        answer = LoggedAnswer(line.scores, line.digest, failed=line.error is not None)
        self._by_request[key] = None if key in self._by_request else answer
