"""Keep-alive clients that ask a served tagger on a schedule, and know what the right answers are.

Each client has one connection and an evenly spaced schedule of its own. A request that comes due
while the last one is still unanswered waits, and its latency counts from when it was due: so a
stall shows in every request that it held up.

The standard library's client: it resends nothing by itself, it says when a request has been sent,
and it costs little of the machine that it shares with the server.
"""

import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from vlserve.control.lifecycle.probes import differences
from vlserve.loadgen.answer_check import RequestOutcome, SentRequest, judge_tagging
from vlserve.loadgen.dataset_requests import RequestBody, read_dataset
from vlserve.training.demo_data import write_demo_data

Answers = Sequence[Mapping[str, Any]]
"""The right answers of one version, in the order of the questions."""

WRONG = ("wrong version", "wrong answer", "wrong model")
NO_CONNECTION = ("connection refused", "connection lost")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Question:
    """One cover and title: as multipart body for a server, as fields for an archive's own code."""

    post: RequestBody
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Exchange:
    """One request. Times are those of the monotonic clock, in seconds."""

    due_s: float
    sent_s: float
    """When the client began to send; later than due when its last request was held up."""
    answered_s: float
    wanted: int | None
    """The version on whose own path it was asked; None: the model's."""
    version: int | None
    """The version that answered."""
    failure: str | None
    """None: status 200 with the answer that this version must give."""

    @property
    def latency_ms(self) -> float:
        return (self.answered_s - self.due_s) * 1000


@dataclass(frozen=True)
class Load:
    """How many clients ask, and how often all together. Every third one asks for a version on its
    own path, every third one with a sticky key, the others ask the model."""

    url: str
    model: str
    clients: int
    rate_per_s: float


class Clients:
    """``right``: version -> its answers; may grow while the clients run."""

    def __init__(
        self, load: Load, questions: Sequence[Question], right: dict[int, Answers]
    ) -> None:
        self.load = load
        self.right = right
        self.exchanges: list[Exchange] = []
        self.connections = 0
        """TCP connections that were opened: as many as clients, when all were kept."""
        self._questions = questions
        self._pinned = tuple(right)
        self._sending = [threading.Lock() for _ in range(load.clients)]
        self._stopping = threading.Event()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Have clients ask while the body runs; afterwards all are answered."""
        with ThreadPoolExecutor(self.load.clients, thread_name_prefix="client") as pool:
            start_s = time.monotonic()
            runs = [pool.submit(self._run, n, start_s) for n in range(self.load.clients)]
            try:
                yield
            finally:
                self._stopping.set()
                for run in runs:
                    run.result()

    def pin(self, *versions: int) -> None:
        """Set the versions that clients ask for by path; returns once no request for another one is
        still to be sent."""
        self._pinned = versions
        for lock in self._sending:
            with lock:
                pass

    def _run(self, number: int, start_s: float) -> None:
        address = urlsplit(self.load.url)
        period_s = self.load.clients / self.load.rate_per_s
        due_s = start_s + number / self.load.rate_per_s
        connection = HTTPConnection(str(address.hostname), address.port, timeout=_TIMEOUT_S)
        with closing(connection):
            while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
                self.exchanges.append(self._ask(connection, number, due_s))
                due_s += period_s

    def _ask(self, connection: HTTPConnection, number: int, due_s: float) -> Exchange:
        question_number = random.randrange(len(self._questions))
        request_id = str(uuid4())
        with self._sending[number]:
            request = SentRequest(self.load.model, self._wanted(number), request_id)
            sent_s = time.monotonic()
            failure = self._send(connection, request, question_number, number)
        outcome = failure or self._judge(connection, request, question_number)
        if not outcome.answered:
            connection.close()
        answered_s = time.monotonic()
        return Exchange(
            due_s, sent_s, answered_s, request.version, outcome.version, outcome.failure
        )

    def _wanted(self, number: int) -> int | None:
        return self._pinned[number // 3 % len(self._pinned)] if number % 3 == 0 else None

    def _send(
        self, connection: HTTPConnection, request: SentRequest, question_number: int, number: int
    ) -> RequestOutcome | None:
        post = self._questions[question_number].post
        headers = {"Content-Type": post.content_type, "X-Request-Id": request.request_id}
        if number % 3 == 1:
            headers["X-Sticky-Key"] = f"caller-{number}"
        path = f"/predictions/{request.model}" + (f"/{request.version}" if request.version else "")
        try:
            if connection.sock is None:
                connection.connect()
                self.connections += 1
            connection.request("POST", path, post.body, headers)
        except (OSError, HTTPException) as error:
            return _unanswered(error)
        return None

    def _judge(
        self, connection: HTTPConnection, request: SentRequest, question_number: int
    ) -> RequestOutcome:
        try:
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, HTTPException) as error:
            return _unanswered(error)
        outcome = judge_tagging(reply.status, reply.getheader("x-request-id"), body, request)
        if outcome.failure or outcome.version is None:
            return outcome
        right = self.right.get(outcome.version)
        if right is None or differences(right[question_number], json.loads(body)):
            return RequestOutcome(outcome.version, "wrong answer")
        return outcome


def _unanswered(error: Exception) -> RequestOutcome:
    if isinstance(error, TimeoutError):
        return RequestOutcome(failure="timeout", answered=False)
    refused = isinstance(error, ConnectionRefusedError)
    return RequestOutcome(failure=NO_CONNECTION[0] if refused else NO_CONNECTION[1], answered=False)


def drawn_questions(folder: Path, count: int = 50) -> list[Question]:
    """Return covers and titles of the demo set, drawn into ``folder``."""
    demo = write_demo_data(folder, items=count * 6 // 5)
    lines = demo.train.read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return [
        Question(post, {"image_path": str(folder / item["img"]), "text": item["text"]})
        for post, item in zip(read_dataset(demo.train), items, strict=True)
    ]
