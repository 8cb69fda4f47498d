"""Keep-alive clients that ask a served tagger on a schedule, and know what the right answers are.

Each client has one connection and an evenly spaced schedule of its own. A request that comes due
while the last one is still unanswered waits, and its latency counts from when it was due: so a
stall shows in every request that it held up.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from vlserve.control.probes import differences
from vlserve.stress.answer import Asked, Judged, judge_answer
from vlserve.stress.covers import Post, read_posts
from vlserve.training.demo_data import write_demo_data

Answers = Sequence[Mapping[str, Any]]
"""The right answers of one version, in the order of the questions."""

WRONG = ("wrong version", "wrong answer", "wrong model")
NO_CONNECTION = ("connection refused", "connection lost")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Question:
    """One cover and title: as multipart body for a server, as fields for an archive's own code."""

    post: Post
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


@dataclass
class Clients:
    """``right``: version -> its answers. ``pinned``: the versions that clients ask for by path.
    Both may change while the clients run."""

    load: Load
    questions: Sequence[Question]
    right: dict[int, Answers]
    pinned: tuple[int, ...]
    exchanges: list[Exchange] = field(default_factory=list)
    connections: int = 0
    """TCP connections that were opened; as many as clients when all were kept."""
    stopping: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        """Ask until `stopping` is set, and wait for the last answers."""
        began_s = time.monotonic()
        period_s = self.load.clients / self.load.rate_per_s
        async with asyncio.TaskGroup() as group:
            for number in range(self.load.clients):
                first_s = began_s + period_s * number / self.load.clients
                group.create_task(self._ask_on_schedule(number, first_s, period_s))

    async def _ask_on_schedule(self, number: int, due_s: float, period_s: float) -> None:
        async with httpx.AsyncClient(
            base_url=self.load.url,
            timeout=_TIMEOUT_S,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_TIMEOUT_S),
            trust_env=False,
        ) as http:
            while not self.stopping.is_set():
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                self.exchanges.append(await self._ask(http, number, due_s))
                due_s += period_s

    async def _ask(self, http: httpx.AsyncClient, number: int, due_s: float) -> Exchange:
        asked = Asked(self.load.model, self._wanted(number), str(uuid4()))
        chosen = len(self.exchanges) % len(self.questions)
        post = self.questions[chosen].post
        headers = {"Content-Type": post.content_type, "X-Request-Id": asked.request_id}
        if number % 3 == 1:
            headers["X-Sticky-Key"] = f"caller-{number}"
        path = f"/predictions/{asked.model}" + (f"/{asked.version}" if asked.version else "")
        trace = {"trace": self._count_connection}
        sent_s = time.monotonic()
        try:
            reply = await http.post(path, content=post.body, headers=headers, extensions=trace)
        except httpx.TransportError as error:
            judged = Judged(failure=_transport_failure(error), answered=False)
        else:
            judged = self._judge(reply, asked, chosen)
        answered_s = time.monotonic()
        return Exchange(due_s, sent_s, answered_s, asked.version, judged.version, judged.failure)

    def _wanted(self, number: int) -> int | None:
        return self.pinned[number // 3 % len(self.pinned)] if number % 3 == 0 else None

    def _judge(self, reply: httpx.Response, asked: Asked, chosen: int) -> Judged:
        judged = judge_answer(
            reply.status_code, reply.headers.get("x-request-id"), reply.content, asked
        )
        if judged.failure or judged.version is None:
            return judged
        right = self.right.get(judged.version)
        if right is None or differences(right[chosen], json.loads(reply.content)):
            return Judged(judged.version, "wrong answer")
        return judged

    async def _count_connection(self, event: str, _: Mapping[str, Any]) -> None:
        self.connections += event == "connection.connect_tcp.complete"


def _transport_failure(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "connection refused"
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return "connection lost"


@contextmanager
def asking(clients: Clients) -> Iterator[Clients]:
    """The clients ask, in a thread of their own, while the body runs; all are answered after."""
    thread = threading.Thread(target=asyncio.run, args=(clients.run(),), name="clients")
    thread.start()
    try:
        yield clients
    finally:
        clients.stopping.set()
        thread.join()


def drawn_questions(folder: Path, count: int = 50) -> list[Question]:
    """Covers and titles of the demo set, drawn into ``folder``."""
    drawn = write_demo_data(folder, items=count * 6 // 5)
    lines = drawn.train.read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return [
        Question(post, {"image_path": str(folder / item["img"]), "text": item["text"]})
        for post, item in zip(read_posts(drawn.train), items, strict=True)
    ]
