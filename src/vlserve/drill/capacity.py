"""Measure how many requests per second a model can take beside the machine's other work."""

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from vlserve.errors import StressError
from vlserve.loadgen.exchange_requests import exchange_bodies
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.runtime.headers import API_KEY
from vlserve.settings import Settings
from vlserve.tls import trust_of

_MEASURED_S = 2.0
_SHARE = 0.4
"""Of the rate of one client alone; a shadow and the load of a release fit in beside it."""
_SLOWEST_PER_S = 0.5


@dataclass(frozen=True)
class Pace:
    """How fast a model answers."""

    rate_per_s: float
    """What clients may send."""
    latency_s: float
    """Of one request to the idle model."""


def measure_pace(settings: Settings, model: str, archive: Path, fastest_per_s: float) -> Pace:
    """Send requests to ``model`` for two seconds, one at a time, and return its pace.

    Args:
        settings: Of the stack that is up.
        model: Name of the model.
        archive: The requests are made of its probes.
        fastest_per_s: The highest rate that is wanted.

    Raises:
        StressError: The model does not answer.
    """
    key = next(iter(settings.gateway.api_keys), "")
    headers = {API_KEY: key} if key else {}
    bodies = exchange_bodies(archive) or vary_probes(archive, 20, seed=1)
    answers, began = 0, time.monotonic()
    with httpx.Client(
        base_url=settings.gateway_url,
        headers=headers,
        timeout=40.0,
        trust_env=False,
        verify=trust_of(settings.gateway_tls),
    ) as http:
        while (passed_s := time.monotonic() - began) < _MEASURED_S:
            body = bodies[answers % len(bodies)]
            type_header = {"Content-Type": body.content_type} if body.content_type else {}
            try:
                response = http.post(
                    f"/predictions/{model}", content=body.body, headers=type_header
                )
            except httpx.HTTPError as error:
                raise StressError(f"{model} does not answer: {error!r}") from error
            if response.is_error:
                raise StressError(f"{model} does not answer: {response.status_code}")
            answers += 1
    rate = min(fastest_per_s, _SHARE * answers / passed_s)
    if settings.gateway.rate_limit_per_s is not None:
        rate = min(rate, settings.gateway.rate_limit_per_s / 2)
    return Pace(max(_SLOWEST_PER_S, float(f"{rate:.2g}")), passed_s / answers)
