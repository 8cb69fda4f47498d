"""Answers to requests: of the server that a model came from, or of the adopted archive itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from vlserve.adopt.requests import LegacyCall
from vlserve.errors import NotAdopted
from vlserve.exporter.probes import answer_by_archive
from vlserve.runtime.exchange import RawAnswer, answer_of

TIMEOUT_S = 120.0
_OF_THE_SERVER = frozenset(
    {
        *("x-request-id", "pragma", "cache-control", "expires", "date", "server", "via"),
        *("content-length", "connection", "keep-alive", "transfer-encoding"),
        *("x-envoy-upstream-service-time", "x-model-version", "server-timing"),
    }
)
"""Headers of an answer that no handler set."""

Recorded = list[tuple[LegacyCall, Mapping[str, Any]]]


def bare(url: str) -> str:
    """Return a URL without what may be a secret in it: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def recorded_from(url: str, calls: Sequence[LegacyCall]) -> Recorded:
    """Send each request to ``url``, the predictions of the model where it is served now.

    Raises:
        NotAdopted: it does not answer, or answers a request in two ways.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise NotAdopted(f"--record {bare(url)}: give the URL of the model's predictions, http://…")
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        rounds = [[_asked(client, url, call) for call in calls] for _ in range(2)]
    return _settled(calls, *rounds)


def recorded_by_itself(archive: Path, calls: Sequence[LegacyCall], path: str) -> Recorded:
    """Ask the packed archive, in worker processes of its own.

    Raises:
        NotAdopted: the handler does not start, fails on a request, or answers it in two ways.
    """
    requests = [call.fields(path) for call in calls]
    rounds = [answer_by_archive(archive, requests) for _ in range(2)]
    for call, answer in zip(calls, rounds[0], strict=True):
        if answer["status"] >= 500:
            raise NotAdopted(
                f"the handler fails on {call.called} ({answer['status']}): give requests that it "
                "answers with --requests"
            )
    return _settled(calls, *rounds)


def _asked(client: httpx.Client, url: str, call: LegacyCall) -> Mapping[str, Any]:
    try:
        response = client.post(url, content=call.content, headers=call.headers)
    except httpx.HTTPError as error:
        raise NotAdopted(
            f"{bare(url)} does not answer {call.called}: {error or type(error).__name__}"
        ) from error
    if response.status_code in (401, 404) or response.status_code >= 500:
        raise NotAdopted(
            f"{bare(url)} answers {call.called} with {response.status_code}: {response.text[:200]}"
        )
    headers = {
        name: value for name, value in response.headers.items() if name not in _OF_THE_SERVER
    }
    return answer_of(RawAnswer(response.status_code, headers, response.content))


def _settled(
    calls: Sequence[LegacyCall],
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
) -> Recorded:
    for call, answer, other in zip(calls, first, second, strict=True):
        if answer != other:
            raise NotAdopted(
                f"{call.called} is answered in two ways, so no later answer can be held against "
                "it: leave it out of --requests"
            )
    return list(zip(calls, first, strict=True))
