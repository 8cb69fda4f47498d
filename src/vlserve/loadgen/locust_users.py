"""Locust's users: a closed loop and an open loop that send predictions, judge the answers, and
report them to Locust and to the record.

Only files that Locust runs import this module: to import Locust is to patch the standard library
(gevent).
"""

import random
import time
import uuid
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import ClassVar

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, constant, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.exception import CatchResponseError

from vlserve.loadgen.answer_check import (
    RequestOutcome,
    SentRequest,
    judge_exchange,
    judge_prediction,
    judge_tagging,
    transport_failure,
)
from vlserve.loadgen.dataset_requests import RequestBody
from vlserve.loadgen.load_session import LoadSession
from vlserve.loadgen.request_record import RequestRecord
from vlserve.loadgen.stage_times import read_timing
from vlserve.runtime.headers import API_KEY, MODEL_VERSION, REQUEST_ID, STICKY_KEY

NO_SERVER_PAUSE_S = 0.1
"""How long a user of the closed loop waits after a request without an answer, as clients do."""
_OVERDUE = RequestOutcome(failure="timeout", answered=False)


@dataclass(frozen=True)
class PredictionRequest:
    """What a request says beside its body."""

    kind: str = ""
    """Its row in Locust's report, in a few words."""
    sticky_key: str | None = None
    """Its X-Sticky-Key."""
    header_version: int | None = None
    """Its X-Model-Version."""
    path_version: int | None = None
    """The version in its path."""

    @property
    def version(self) -> int | None:
        """The version that alone may answer; None: any."""
        return self.path_version or self.header_version

    def path(self, model: str) -> str:
        """Return the path of the prediction."""
        version = f"/{self.path_version}" if self.path_version else ""
        return f"/predictions/{model}{version}"

    def headers(self) -> dict[str, str]:
        """Return the headers that route the request."""
        headers = {}
        if self.sticky_key is not None:
            headers[STICKY_KEY] = self.sticky_key
        if self.header_version is not None:
            headers[MODEL_VERSION] = str(self.header_version)
        return headers


class PredictionUser(FastHttpUser):
    """Sends predictions. A file in loadtest/ says in `next_request` which."""

    abstract = True
    body_count: ClassVar[int] = 60
    """How many different bodies are made of an archive's probes."""
    session: ClassVar[LoadSession]

    def __init__(self, environment: Environment) -> None:
        options = self.session.options
        self.network_timeout = self.connection_timeout = options.request_timeout
        self.concurrency = options.max_in_flight
        super().__init__(environment)
        # Every status is ours to judge; the client's own check decodes both bodies of an error.
        self.client.client.valid_response_codes = frozenset(range(100, 600))  # type: ignore[misc]

    @property
    def options(self) -> Namespace:
        """The command line's."""
        return self.session.options

    def next_request(self) -> PredictionRequest:
        """Return what the next request says: here, nothing beside its body."""
        return PredictionRequest()

    def send(self, due: float) -> RequestOutcome:
        """Send one request, report it, and return its outcome; ``due`` is on the monotonic clock.

        What Locust cuts off at the end of a run is neither answered nor failed, and not reported,
        unless it has had its time.
        """
        request, sent_at, start = self.next_request(), time.time(), time.monotonic()
        try:
            outcome = self._exchange(request, random.choice(self.session.bodies))
        except gevent.GreenletExit:
            # The client's own time limit starts anew with every packet.
            if time.monotonic() - start >= self.options.request_timeout:
                self._report(request, _OVERDUE, due, start, sent_at, _ms_since(due))
            raise
        self._report(request, outcome, due, start, sent_at, _ms_since(due))
        return outcome

    def skip(self, due: float) -> None:
        """Report one request that is not sent because too many are unanswered."""
        failure = f"not sent: {self.options.max_in_flight} in flight"
        outcome = RequestOutcome(failure=failure, answered=False)
        now = time.monotonic()
        self._report(self.next_request(), outcome, due, now, time.time(), latency_ms=None)

    def _exchange(self, request: PredictionRequest, body: RequestBody) -> RequestOutcome:
        sent_request = SentRequest(self.options.model, request.version, str(uuid.uuid4()))
        response = self.client.post(
            request.path(sent_request.model),
            data=body.body,  # type: ignore[arg-type]  # bytes are sent as they are
            headers=self._headers(request, body, sent_request.request_id),
            catch_response=True,  # nothing is reported before it is judged
        )
        if error := response.request_meta["exception"]:
            return RequestOutcome(failure=transport_failure(error), answered=False)
        assert response.headers is not None
        timing = read_timing(response.headers.get_all("server-timing") or ())
        return replace(self._judge(response, sent_request), timing=timing)

    def _judge(self, response: ResponseContextManager, sent_request: SentRequest) -> RequestOutcome:
        status, content = response.status_code, response.content or b""
        id_header = _header(response, "x-request-id")
        if self.options.archive:
            version_header = _header(response, "x-model-version")
            judge = judge_exchange if self.session.is_raw else judge_prediction
            return judge(status, version_header, id_header, content, sent_request)
        return judge_tagging(status, id_header, content, sent_request)

    def _headers(
        self, request: PredictionRequest, body: RequestBody, request_id: str
    ) -> dict[str, str]:
        headers = {REQUEST_ID: request_id}
        if body.content_type:
            headers["Content-Type"] = body.content_type
        if self.session.api_key:
            headers[API_KEY] = self.session.api_key
        return headers | request.headers()

    def _report(
        self,
        request: PredictionRequest,
        outcome: RequestOutcome,
        due: float,
        start: float,
        sent_at: float,
        latency_ms: float | None,
    ) -> None:
        row = [request.path(self.options.model), request.kind]
        if outcome.version is not None:
            row.append(f"by version {outcome.version}")
        self.environment.events.request.fire(
            request_type="POST",
            name=" ".join(filter(None, row)),
            response_time=latency_ms,
            response_length=0,
            exception=CatchResponseError(outcome.failure) if outcome.failure else None,
            context={},
        )
        self.session.write(
            RequestRecord(
                due_s=self.session.since_start_s(due),
                late_ms=(start - due) * 1000,
                latency_ms=latency_ms,
                version=outcome.version,
                failure=outcome.failure,
                timing=outcome.timing,
                sent_at=sent_at,
                sticky_key=request.sticky_key,
                requested_version=request.version,
            )
        )


class ClosedLoopUser(PredictionUser):
    """Sends the next request when it has the answer to the last one."""

    abstract = True
    wait_time = constant(0)

    @task
    def predict(self) -> None:
        """Send one request."""
        if not self.send(due=time.monotonic()).answered:
            gevent.sleep(NO_SERVER_PAUSE_S)


class OpenLoopUser(PredictionUser):
    """Starts requests on a schedule, whatever the answers do, each in a greenlet of its own.

    One user keeps the whole schedule; with several processes each has one, with its part of the
    rate, and of the requests that may be unanswered.
    """

    abstract = True
    fixed_count = 1

    def on_start(self) -> None:
        """Start the schedule."""
        self.in_flight = Pool(max(1, self.options.max_in_flight // self.fixed_count))
        self.interval_s = self.fixed_count / self.options.rate
        first = random.random() * self.interval_s if self.fixed_count > 1 else 0.0
        self.due = time.monotonic() + first

    def wait_time(self) -> float:
        """Return the seconds until the next request is due."""
        return max(0.0, self.due - time.monotonic())

    @task
    def arrive(self) -> None:
        """Start the request that is due."""
        due, self.due = self.due, self.due + self.interval_s
        if self.in_flight.full():
            self.skip(due)
        else:
            self.in_flight.spawn(self.send, due)

    def on_stop(self) -> None:
        """Wait until every request has its answer or has had its time."""
        self.in_flight.join(self.options.request_timeout + 1)
        self.in_flight.kill()


def _header(response: ResponseContextManager, name: str) -> str | None:
    assert response.headers is not None
    return ", ".join(response.headers.get_all(name) or ()) or None


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000
