"""The log of answers that the handlers write, by request and version."""

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.control.rollouts.log_reader import READ_BYTES, Cursor, as_model, read_since
from vlserve.runtime.answer_log import AnswerLine, read_answer_line
from vlserve.runtime.errors import ErrorCode
from vlserve_worker.v2.item_ids import ItemId, item_id, read_item_id
from vlserve_worker.v2.messages import MAX_ITEMS

KEPT = 20_000
"""Answers that are remembered; older ones are forgotten first."""
REACH_S = 600.0
"""How long ago an answer may have been logged that is still asked for: copies wait two minutes."""
_UNKNOWN = 0
OWN_FAULTS = frozenset(
    {ErrorCode.INFERENCE_FAILED, ErrorCode.ITEMS_TOO_LATE, ErrorCode.REQUEST_KILLED_WORKER}
)
"""Codes of status 500 and above."""


@dataclass(frozen=True)
class LoggedAnswer:
    """One answer. ``scores``: label -> score, best first; empty where the answer has no labels.
    ``failed``: it was an error instead; ``lost``: one that is the version's own fault, not the
    caller's."""

    scores: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    failed: bool = False
    lost: bool = False

    @property
    def label(self) -> str | None:
        """The label with the best score."""
        return next(iter(self.scores), None)


class AnswerLog:
    """The answers of one model, logged after ``begin``."""

    def __init__(self, log: Path, model: str, begin: Cursor) -> None:
        self._log = log
        self._model = model
        self._containing = f'"{model}"'.encode()  # however a writer sets its spaces
        self._cursor = begin
        self._places = deque([(-math.inf, begin)])
        self._by_request: OrderedDict[tuple[str, int], LoggedAnswer | None] = OrderedDict()
        self._items: OrderedDict[str, int] = OrderedDict()

    def begin_at(self, moment: float) -> Cursor:
        """Return where another process may begin to read: what lies before was read REACH_S ago and
        is asked for no more. ``moment``: now, in s of a clock that does not step."""
        self._places.append((moment, self._cursor))
        while self._places[1][0] <= moment - REACH_S:
            self._places.popleft()
        return self._places[0][1]

    def read(self) -> None:
        """Read what was logged since the last call."""
        before = None
        while self._cursor != before:
            before = self._cursor
            self.read_some(READ_BYTES)

    def read_some(self, most: int) -> None:
        """Read on, at most ``most`` bytes of a file."""
        lines, self._cursor = read_since(self._log, self._cursor, self._containing, most)
        model_lines = (line for line in lines if line.get("model") == self._model)
        for line in as_model(model_lines, read_answer_line, self._log):
            self._add(line)
        for table in (self._by_request, self._items):
            while len(table) > KEPT:
                table.popitem(last=False)

    def of(self, request_id: str, version: int) -> LoggedAnswer | None:
        """Return the answer of a version to a request; None while it is not logged, and for a
        request id that came twice: nobody knows which of the two requests it stands for."""
        return self._by_request.get((request_id, version))

    def items_of(self, request_id: str) -> Sequence[str]:
        """Return the ids under which the answers to a request are logged, as far as is known: its
        own, or one for each of several items (V2). None for an id that came with other numbers of
        items: nobody knows how many each of those requests had."""
        count = self._items.get(request_id, 1)
        return [item_id(request_id, at, count) for at in range(count)]

    def _add(self, line: AnswerLine) -> None:
        item = read_item_id(line.request_id) or ItemId(line.request_id, 0, 1)
        if item.items <= MAX_ITEMS:
            count = self._items.setdefault(item.request_id, item.items)
            if count != item.items:
                self._items[item.request_id] = _UNKNOWN
        key = (line.request_id, line.version)
        failed, lost = line.error is not None, line.error in OWN_FAULTS
        answer = LoggedAnswer(line.scores, line.digest, failed, lost)
        self._by_request[key] = None if key in self._by_request else answer
