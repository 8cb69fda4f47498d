"""What Argo Rollouts and Flagger call, as serving_config/kubernetes/judge has them call it, and the
lines of another gateway, over HTTP."""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from support.control_api_server import RunningControl
from vlserve.control.rollouts.observations import MAX_LINES

FOLDER = Path(__file__).parents[2] / "serving_config" / "kubernetes" / "judge"
LINES = "application/x-ndjson"


class Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SecretKey(Exact):
    name: str
    key: str


class ValueFrom(Exact):
    secretKeyRef: SecretKey


class Argument(Exact):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None


class Header(Exact):
    key: str
    value: str


class Web(Exact):
    url: str
    timeoutSeconds: int
    headers: list[Header]
    jsonPath: str = Field(pattern=r"^\{\$\.[a-z]+\}$")


class Provider(Exact):
    web: Web


class Metric(Exact):
    name: str
    interval: str = Field(pattern=r"^\d+s$")
    consecutiveSuccessLimit: int
    failureLimit: int
    inconclusiveLimit: int
    consecutiveErrorLimit: int
    successCondition: str = Field(pattern=r'^result == "[a-z]+"$')
    failureCondition: str = Field(pattern=r'^result == "[a-z]+"$')
    provider: Provider


class Analysis(Exact):
    args: list[Argument]
    metrics: list[Metric]


class Hook(Exact):
    name: str
    type: str = Field(
        pattern="^(confirm-rollout|pre-rollout|rollout|confirm-traffic-increase"
        "|confirm-promotion|post-rollout|rollback|event)$"
    )
    url: str
    timeout: str = Field(pattern=r"^\d+s$")


class CanaryAnalysis(Exact):
    interval: str
    threshold: int
    maxWeight: int
    stepWeight: int
    webhooks: list[Hook]


def loaded(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def metric() -> Metric:
    (template,) = loaded("analysis-template.yaml")
    assert template["kind"] == "AnalysisTemplate"
    analysis = Analysis.model_validate(template["spec"])
    names = {argument.name for argument in analysis.args}
    (metric,) = analysis.metrics
    references = set(re.findall(r"\{\{\s*args\.([a-z-]+)\s*\}\}", metric.model_dump_json()))
    assert references == names
    return metric


@pytest.fixture(scope="module")
def hooks() -> dict[str, Hook]:
    (canary,) = loaded("flagger-canary.yaml")
    analysis = CanaryAnalysis.model_validate(canary["spec"]["analysis"])
    return {hook.type: hook for hook in analysis.webhooks}


def test_what_kubernetes_itself_knows_is_valid() -> None:
    for part in loaded("key-proxy.yaml"):
        kubernetes_validate.validate(part, "1.37", strict=True)


def send(control_api: RunningControl, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{control_api.url}/models/tagger/observations",
        content=body,
        headers=control_api.headers | {"Content-Type": LINES} | headers,
    )


def observe(control_api: RunningControl, names: tuple[str, str], failing: bool = False) -> None:
    """Tell of 500 requests of each version, of which the second fails half of them."""
    lines = [
        {"version": name, "status": 500 if failing and number % 2 and at else 200, "latency_ms": 10}
        for number in range(500)
        for at, name in enumerate(names)
    ]
    answer = send(control_api, "\n".join(map(json.dumps, lines)).encode())
    assert answer.json() == {"accepted": 1000, "repeated": 0}


def measured(metric: Metric, control_api: RunningControl, args: Mapping[str, str]) -> str:
    """Take one measurement as Argo's web provider does."""

    def fill(text: str) -> str:
        return re.sub(r"\{\{\s*args\.([a-z-]+)\s*\}\}", lambda match: args[match[1]], text)

    web = metric.provider.web
    address = urlsplit(fill(web.url))
    answer = httpx.get(
        f"{control_api.url}{address.path}?{address.query}",
        headers={header.key: fill(header.value) for header in web.headers},
    )
    if answer.status_code >= 300:
        return "Error"
    result = answer.json()[web.jsonPath.removeprefix("{$.").removesuffix("}")]
    if f'result == "{result}"' == metric.failureCondition:
        return "Failed"
    return "Successful" if f'result == "{result}"' == metric.successCondition else "Inconclusive"


def test_argo_rollouts_measures_verdicts(control_api: RunningControl, metric: Metric) -> None:
    args = {
        "model": "tagger",
        "candidate": "6c54544bf9",
        "stable": "7d9f8b6c55",
        "control-key": control_api.key,
    }
    assert measured(metric, control_api, args) == "Inconclusive"
    observe(control_api, ("7d9f8b6c55", "6c54544bf9"))
    assert measured(metric, control_api, args) == "Successful"
    observe(control_api, ("7d9f8b6c55", "6c54544bf9"), failing=True)
    assert measured(metric, control_api, args) == "Failed"
    assert measured(metric, control_api, args | {"control-key": "wrong"}) == "Error"


def called(hook: Hook, control_api: RunningControl) -> bool:
    """Call a hook as Flagger does, once key-proxy.yaml has added the key; return its success."""
    payload = {
        "name": "tagger",
        "namespace": "default",
        "phase": "Progressing",
        "checksum": "85d557f47b",
        "metadata": {},
    }
    address = urlsplit(hook.url)
    answer = httpx.post(
        f"{control_api.url}{address.path}?{address.query}",
        json=payload,
        headers=control_api.headers,
    )
    assert answer.status_code in (200, 409), answer.text
    return answer.status_code <= 202


def test_flagger_reads_the_status_of_its_hooks(
    control_api: RunningControl, hooks: dict[str, Hook]
) -> None:
    def statuses() -> dict[str, bool]:
        return {kind: called(hook, control_api) for kind, hook in hooks.items()}

    on = ("confirm-traffic-increase", "confirm-promotion")
    assert statuses() == {"rollout": True, "rollback": False} | dict.fromkeys(on, False)
    observe(control_api, ("tagger-primary", "tagger"))
    assert statuses() == {"rollout": True, "rollback": False} | dict.fromkeys(on, True)
    observe(control_api, ("tagger-primary", "tagger"), failing=True)
    assert statuses() == {"rollout": False, "rollback": True} | dict.fromkeys(on, False)


def test_the_key_proxy_lets_through_what_flagger_asks(hooks: dict[str, Hook]) -> None:
    config = loaded("key-proxy.yaml")[0]["data"]["default.conf.template"]
    (location,) = re.findall(r"location ~ (\S+) \{", config)
    assert all(re.search(location, urlsplit(hook.url).path) for hook in hooks.values())
    assert not re.search(location, "/models/tagger/releases")


def test_the_own_gateways_log_is_asked_by_version(
    control_api: RunningControl, two_versions: None
) -> None:
    url = f"{control_api.url}/models/tagger/verdict"
    answer = httpx.get(url, params={"candidate": "2"}, headers=control_api.headers)
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert (view["verdict"], view["candidate"], view["stable"]) == ("hold", "2", "1")
    assert {gate["gate"] for gate in view["gates"]} == {"errors", "latency_p50", "latency_p99"}
    for params, status, code in (
        ({}, 409, "no_release"),
        ({"candidate": "9"}, 404, "version_not_found"),
        ({"candidate": "x"}, 422, "verdict_unanswerable"),
        ({"candidate": "2", "since": "garbage"}, 422, "verdict_unanswerable"),
        ({"candidate": "2", "since": "1" * 41}, 422, "request_invalid"),
        ({"candidate": "2", "weight": "100"}, 422, "request_invalid"),
        ({"candidate": "2", "source": "file"}, 422, "request_invalid"),
    ):
        refusal = httpx.get(url, params=params, headers=control_api.headers)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (status, code), params
    assert httpx.get(url).status_code == 401


def test_bodies_of_observations_are_bounded(control_api: RunningControl) -> None:
    line = b'{"version": "stable", "status": 200, "latency_ms": 1}\n'
    gzip_body = gzip.compress(line * 2_000_000)
    endless = (line * 1000 for _ in range(10_000))
    for body, headers, status, code in (
        (line * (MAX_LINES + 1), {}, 413, "observations_too_many"),
        (line.replace(b"stable", b"x" * 5000), {}, 413, "observation_too_long"),
        (line.replace(b"stable", b"x" * 10_000_000), {}, 413, "too_large"),
        (endless, {}, 413, "too_large"),
        (gzip_body, {}, 422, "observation_invalid"),
        (gzip_body, {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        (line, {"Content-Type": "application/json"}, 415, "unsupported_media_type"),
        (line.replace(b"1}", b"NaN}"), {}, 422, "observation_invalid"),
    ):
        refusal = send(control_api, body, **headers)  # type: ignore[arg-type]
        outcome = (refusal.status_code, refusal.json()["error"]["code"])
        assert outcome == (status, code), refusal.text
    assert (
        httpx.post(
            f"{control_api.url}/models/tagger/observations",
            content=line,
            headers={"Content-Type": LINES},
        ).status_code
        == 401
    )
    assert not (control_api.settings.state_dir / "logs" / "observations.jsonl").exists()
