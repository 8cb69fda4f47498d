"""How fast callers may be: well below what the machine can do, which has other work as well."""

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from vlserve.errors import StressError
from vlserve.loadgen.probe_requests import varied_bodies
from vlserve.runtime.headers import API_KEY
from vlserve.settings import Settings

_MEASURED_S = 2.0
_PART = 0.4
"""Of what one caller alone is answered; a shadow and a load beside it fit in, too."""
_SLOWEST_PER_S = 0.5


@dataclass(frozen=True)
class Pace:
    """``rate_per_s``: that callers may keep; ``latency_s``: of one request on the idle model."""

    rate_per_s: float
    latency_s: float


def measured_pace(settings: Settings, model: str, archive: Path, fastest_per_s: float) -> Pace:
    """By asking ``model`` for two seconds, one request at a time. StressError if it does not
    answer."""
    key = next(iter(settings.gateway.api_keys), "")
    headers = {"Content-Type": "application/json"} | ({API_KEY: key} if key else {})
    bodies = varied_bodies(archive, 20, seed=1)
    answered, began = 0, time.monotonic()
    with httpx.Client(
        base_url=settings.gateway_url, headers=headers, timeout=40.0, trust_env=False
    ) as http:
        while (passed_s := time.monotonic() - began) < _MEASURED_S:
            body = bodies[answered % len(bodies)].body
            try:
                response = http.post(f"/predictions/{model}", content=body)
            except httpx.HTTPError as error:
                raise StressError(f"{model} does not answer: {error!r}") from error
            if response.is_error:
                raise StressError(f"{model} does not answer: {response.status_code}")
            answered += 1
    rate = min(fastest_per_s, _PART * answered / passed_s)
    if settings.gateway.rate_limit_per_s is not None:
        rate = min(rate, settings.gateway.rate_limit_per_s / 2)
    return Pace(max(_SLOWEST_PER_S, float(f"{rate:.2g}")), passed_s / answered)
