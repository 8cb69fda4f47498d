"""Covers and titles against a served model. `vlserve stress` runs this file; by hand:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --model tagger --data val.jsonl

Closed loop (--users): each user asks again as soon as it has its answer, so a server that stalls
is asked less, and its stall shows in few latencies.
Open loop (--rate): requests start evenly spaced in time whatever the answers do, and a latency
counts from the scheduled start, so a stall shows in every request that came due in it.

Without --data it draws the demo set. The API key is read from VLSERVE_STRESS_API_KEY.
"""

import os
import random
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import CatchResponseError

from vlserve.loadgen.answer_check import (
    Asked,
    Judged,
    judge_answer,
    judge_any_answer,
    transport_failure,
)
from vlserve.loadgen.dataset_requests import Post, read_posts
from vlserve.loadgen.probe_requests import varied_bodies
from vlserve.loadgen.request_record import Record
from vlserve.loadgen.stage_times import read_timing
from vlserve.training.demo_data import write_demo_data

STICKY_KEYS = tuple(f"caller-{number}" for number in range(50))
DEMO_ITEMS = 60
ARCHIVE_BODIES = 60
NO_SERVER_PAUSE_S = 0.1
"""A closed-loop user that got no answer at all waits so long, as real clients do."""


def demo_posts() -> tuple[Post, ...]:
    """A few drawn covers and titles."""
    with tempfile.TemporaryDirectory() as folder:
        return read_posts(write_demo_data(Path(folder), items=DEMO_ITEMS).train)


def posts_of(options: Any) -> tuple[Post, ...]:
    if options.data:
        return read_posts(options.data)
    return varied_bodies(options.archive, ARCHIVE_BODIES) if options.archive else demo_posts()


class Run:
    """What all users share: what they send, and the record of how it went."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.posts = posts_of(options)
        version = f"/{options.model_version}" if options.model_version else ""
        self.path = f"/predictions/{options.model}{version}"
        self.api_key = os.environ.get("VLSERVE_STRESS_API_KEY", "")
        self.started = time.monotonic()
        self.file: IO[str] | None = None
        if options.record:
            self.file = options.record.open("w", encoding="utf-8")

    def headers(self, post: Post, request_id: str) -> dict[str, str]:
        headers = {"Content-Type": post.content_type, "X-Request-Id": request_id}
        if self.api_key:
            headers["X-Api-Key"] = self.api_key
        if random.random() < self.options.sticky_share:
            headers["X-Sticky-Key"] = random.choice(STICKY_KEYS)
        return headers

    def write(self, record: Record) -> None:
        if self.file is not None:
            self.file.write(record.line())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class PredictionUser(FastHttpUser):
    """Posts covers and titles, judges the answers, reports both to Locust and to the record."""

    abstract = True
    traffic: Run

    def __init__(self, environment: Environment) -> None:
        options = self.traffic.options
        self.network_timeout = self.connection_timeout = float(options.request_timeout)
        self.concurrency = options.max_in_flight
        super().__init__(environment)
        # Every status is ours to judge; the client's own check decodes both bodies of an error.
        self.client.client.valid_response_codes = frozenset(range(100, 600))

    def ask(self, due: float) -> Judged:
        """One request that was due at ``due`` on the monotonic clock."""
        sent = time.monotonic()
        judged = Judged(failure="not finished", answered=False)
        try:
            judged = self._exchange()
        finally:  # also when Locust ends the greenlet: what was sent is counted
            self._report(due, sent, (time.monotonic() - due) * 1000, judged)
        return judged

    def refuse(self, due: float) -> None:
        """One request that came due while too many were unanswered: counted, not sent."""
        now = time.monotonic()
        limit = self.traffic.options.max_in_flight
        judged = Judged(failure=f"not sent: {limit} in flight", answered=False)
        self._report(due, now, None, judged)

    def _exchange(self) -> Judged:
        traffic = self.traffic
        post = random.choice(traffic.posts)
        asked = Asked(traffic.options.model, traffic.options.model_version, str(uuid.uuid4()))
        response = self.client.post(
            traffic.path,
            data=post.body,
            headers=traffic.headers(post, asked.request_id),
            catch_response=True,  # nothing is reported before it is judged
        )
        if error := response.request_meta["exception"]:
            return Judged(failure=transport_failure(error), answered=False)
        echoed = response.headers.get("x-request-id")
        status, body = response.status_code, response.content
        if traffic.options.archive:
            said = response.headers.get("x-model-version")
            judged = judge_any_answer(status, said, echoed, body, asked)
        else:
            judged = judge_answer(status, echoed, body, asked)
        timing = read_timing(response.headers.get_all("server-timing") or ())
        return replace(judged, timing=timing)

    def _report(self, due: float, sent: float, latency_ms: float | None, judged: Judged) -> None:
        path = self.traffic.path
        self.environment.events.request.fire(
            request_type="POST",
            name=path if judged.failure else f"{path} by version {judged.version}",
            response_time=latency_ms,
            response_length=0,
            exception=CatchResponseError(judged.failure) if judged.failure else None,
            context={},
        )
        self.traffic.write(
            Record(
                due_s=due - self.traffic.started,
                late_ms=(sent - due) * 1000,
                latency_ms=latency_ms,
                version=judged.version,
                failure=judged.failure,
                timing=judged.timing,
            )
        )


class ClosedLoop(PredictionUser):
    """Asks again as soon as it has its answer."""

    wait_time = constant(0)

    @task
    def predict(self) -> None:
        if not self.ask(due=time.monotonic()).answered:
            gevent.sleep(NO_SERVER_PAUSE_S)


class OpenLoop(PredictionUser):
    """One user that starts requests on a schedule, each in a greenlet of its own."""

    fixed_count = 1

    def on_start(self) -> None:
        self.in_flight = Pool(self.traffic.options.max_in_flight)
        self.due = time.monotonic()

    def wait_time(self) -> float:
        return max(0.0, self.due - time.monotonic())

    @task
    def arrive(self) -> None:
        due, self.due = self.due, self.due + 1 / self.traffic.options.rate
        if self.in_flight.full():
            self.refuse(due)
        else:
            self.in_flight.spawn(self.ask, due)

    def on_stop(self) -> None:
        self.in_flight.join(self.traffic.options.request_timeout + 1)
        self.in_flight.kill()


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    def add(name: str, **rest: Any) -> None:
        parser.add_argument(name, include_in_web_ui=False, **rest)  # read once, at the start

    add("--model", default="tagger", help="Name of the model to ask.")
    add("--model-version", type=int, help="Ask this version on its own path.")
    add("--data", type=Path, help='JSON lines {"id", "img", "text"}; default: the demo set.')
    add("--archive", type=Path, help="Of any task: requests are made of this archive's probes.")
    add("--rate", type=float, help="Open loop: requests a second.")
    add("--max-in-flight", type=int, default=500, help="Open loop: arrivals beyond are not sent.")
    add("--sticky-share", type=float, default=0.0, help="Share of requests with a sticky key.")
    add("--request-timeout", type=float, default=35.0, help="Seconds.")
    add("--record", type=Path, help="Write a JSON line for each request.")


@events.init.add_listener
def choose_loop(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    PredictionUser.traffic = Run(options)
    environment.user_classes = [OpenLoop if options.rate else ClosedLoop]
    # Locust counts --run-time from the event loop's cached clock, which stood still since the
    # imports: without this a run ends a second early.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def start_clock(**_: Any) -> None:
    PredictionUser.traffic.started = time.monotonic()


@events.quit.add_listener
def close_record(**_: Any) -> None:
    PredictionUser.traffic.close()
