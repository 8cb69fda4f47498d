"""Callers around a release: some keep to a version, some do not care, some ask for one.

`vlserve stress MODEL --gray-release` and `vlserve drill MODEL` run this file; by hand:

    locust -f loadtest/gray_release.py --host http://127.0.0.1:8080 --model tagger \
        --archive model_store/tagger/1/tagger-1.mar --rate 20

Requests are made of the archive's own probes, so any task will do. They start evenly spaced in
time, whatever the answers do. Each leaves a line in --record, for the judgement afterwards.
The API key is read from VLSERVE_STRESS_API_KEY.
"""

import itertools
import os
import random
import signal
import time
import uuid
from pathlib import Path
from typing import IO, Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import CatchResponseError
from locust.runners import Runner

from vlserve.loadgen.answer_check import Asked, Judged, judge_any_answer, transport_failure
from vlserve.loadgen.caller_record import Call
from vlserve.loadgen.dataset_requests import read_posts
from vlserve.loadgen.probe_requests import varied_bodies

BODIES = 300
MAX_IN_FLIGHT = 500


class Callers:
    """Who calls, what they send, and the record of how it went."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.path = f"/predictions/{options.model}"
        self.posts = (
            read_posts(options.data) if options.data else varied_bodies(options.archive, BODIES)
        )
        run = uuid.uuid4().hex[:8]  # callers whom no release has met
        self.names = itertools.cycle([f"{run}-{n}" for n in range(options.callers)])
        self.asked = itertools.cycle(int(v) for v in (options.ask or "").split(",") if v)
        self.api_key = os.environ.get("VLSERVE_STRESS_API_KEY", "")
        self.file: IO[str] | None = None
        if options.record:
            self.file = options.record.open("w", encoding="utf-8", buffering=1)

    def draw(self) -> tuple[str | None, int | None]:
        """The next one's sticky key, or the version that he asks for; neither for most."""
        chance = random.random()
        if chance < self.options.sticky_share:
            return next(self.names), None
        if chance < self.options.sticky_share + self.options.ask_share:
            return None, next(self.asked, None)
        return None, None

    def headers(self, caller: str | None, asked: Asked) -> dict[str, str]:
        headers = {"X-Request-Id": asked.request_id}
        if self.api_key:
            headers["X-Api-Key"] = self.api_key
        if caller is not None:
            headers["X-Sticky-Key"] = caller
        if asked.version is not None:
            headers["X-Model-Version"] = str(asked.version)
        return headers

    def write(self, call: Call) -> None:
        if self.file is not None:
            self.file.write(call.line())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class Arrivals(FastHttpUser):
    """Starts requests on a schedule, each in a greenlet of its own."""

    fixed_count = 1
    callers: Callers

    def __init__(self, environment: Environment) -> None:
        self.network_timeout = self.connection_timeout = self.callers.options.request_timeout
        self.concurrency = MAX_IN_FLIGHT
        super().__init__(environment)
        # Every status is ours to judge.
        self.client.client.valid_response_codes = frozenset(range(100, 600))

    def on_start(self) -> None:
        self.in_flight = Pool(MAX_IN_FLIGHT)
        self.due = time.monotonic()

    def wait_time(self) -> float:
        return max(0.0, self.due - time.monotonic())

    @task
    def arrive(self) -> None:
        self.due += 1 / self.callers.options.rate
        self.in_flight.spawn(self.call)

    def on_stop(self) -> None:
        self.in_flight.join(self.callers.options.request_timeout + 1)
        self.in_flight.kill()

    def call(self) -> None:
        caller, version = self.callers.draw()
        asked = Asked(self.callers.options.model, version, str(uuid.uuid4()))
        started, began = time.time(), time.monotonic()
        judged = Judged(failure="not finished", answered=False)
        try:
            judged = self._exchange(caller, asked)
        finally:  # also when Locust ends the greenlet: what was sent is counted
            latency_ms = (time.monotonic() - began) * 1000
            self._report(Call(started, latency_ms, caller, version, judged.version, judged.failure))

    def _exchange(self, caller: str | None, asked: Asked) -> Judged:
        post = random.choice(self.callers.posts)
        headers = {"Content-Type": post.content_type, **self.callers.headers(caller, asked)}
        response = self.client.post(
            self.callers.path, data=post.body, headers=headers, catch_response=True
        )
        if error := response.request_meta["exception"]:
            return Judged(failure=transport_failure(error), answered=False)
        said, echoed = (response.headers.get(n) for n in ("x-model-version", "x-request-id"))
        return judge_any_answer(response.status_code, said, echoed, response.content, asked)

    def _report(self, call: Call) -> None:
        kind = "with a key" if call.caller else "asking for a version" if call.asked else "free"
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{kind}, by version {call.version}",
            response_time=call.latency_ms,
            response_length=0,
            exception=CatchResponseError(call.failure) if call.failure else None,
            context={},
        )
        self.callers.write(call)


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    def add(name: str, **rest: Any) -> None:
        parser.add_argument(name, include_in_web_ui=False, **rest)

    add("--model", default="tagger", help="Name of the model to call.")
    add("--archive", type=Path, help="Requests are made of this archive's probes.")
    add("--data", type=Path, help='Instead: JSON lines {"id", "img", "text"}.')
    add("--rate", type=float, default=20.0, help="Requests a second.")
    add("--sticky-share", type=float, default=0.5, help="Share of requests with a sticky key.")
    add("--callers", type=int, default=100, help="How many sticky keys there are.")
    add("--ask", help="Versions that some ask for: 1,2.")
    add("--ask-share", type=float, default=0.1, help="Share of requests that ask for one.")
    add("--request-timeout", type=float, default=35.0, help="Seconds.")
    add("--record", type=Path, help="Write a JSON line for each request.")


@events.init.add_listener
def read_options(environment: Environment, runner: Runner, **_: Any) -> None:
    Arrivals.callers = Callers(environment.parsed_options)
    # Ends the run as its time would: Locust writes no report on SIGTERM.
    gevent.signal_handler(signal.SIGUSR1, runner.quit)
    gevent.spawn(end_with, os.getppid(), runner)
    gevent.get_hub().loop.update_now()


def end_with(parent: int, runner: Runner) -> None:
    """Nobody else would end the callers of a command that was killed."""
    while os.getppid() == parent:
        gevent.sleep(1)
    runner.quit()


@events.quit.add_listener
def close_record(**_: Any) -> None:
    Arrivals.callers.close()
