"""Load on the real stack: what Locust measures, and what the dashboard's metrics say of it."""

import re
from pathlib import Path

import pytest
import yaml

from support.dashboard import unanswered
from support.engines import on_triton
from vlserve.control.engine.endpoints import endpoints
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.testing import RunningStack

pytestmark = on_triton(tier="long")

TESTS = Path(__file__).parents[1]
LENIENT_MS = 60_000.0


@pytest.fixture(scope="module")
def model(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with version 1 in force and version 2 ready."""
    model = "stressed"
    for version in (1, 2):
        stack.control.register(pack_echo(tmp_path_factory.mktemp("echo"), model, version))
    stack.control.release(model, 1)
    return model


def test_both_loops_hold_on_the_real_stack(stack: RunningStack, model: str, tmp_path: Path) -> None:
    times = {"duration_s": 3, "warm_up_s": 1, "max_p99_ms": LENIENT_MS}
    closed_loop = StressPlan(url=stack.gateway_url, model=model, users=4, sticky_share=0.5, **times)
    by_users = run_stress(closed_loop, tmp_path / "closed")
    assert by_users.breaches == (), by_users.figures.failures
    assert by_users.figures.requests > 0
    assert set(by_users.figures.versions) == {1}

    open_loop = StressPlan(url=stack.gateway_url, model=model, rate_per_s=20, version=2, **times)
    by_rate = run_stress(open_loop, tmp_path / "open")
    assert by_rate.breaches == (), by_rate.figures.failures
    assert by_rate.figures.requests >= 59
    assert set(by_rate.figures.versions) == {2}


def test_what_the_gateway_refuses_is_counted_by_kind(
    stack: RunningStack, model: str, tmp_path: Path
) -> None:
    plan = StressPlan(url=stack.gateway_url, model=model, rate_per_s=10, version=9, duration_s=1)
    result = run_stress(plan, tmp_path)
    assert result.figures.failures == {"HTTP 404 version_not_found": result.figures.requests}
    assert not result.passed


def names_exported(stack: RunningStack, page: str) -> set[str]:
    response = stack.http.get(page)
    assert response.headers["content-type"].startswith("text/plain")  # Prometheus 3 insists
    lines = [line for line in response.text.splitlines() if line and not line.startswith("#")]
    return {re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0]) for line in lines}


def test_metrics_have_the_names_that_the_dashboard_is_checked_against(
    stack: RunningStack, model: str, tmp_path: Path
) -> None:
    plan = StressPlan(url=stack.gateway_url, model=model, rate_per_s=10, duration_s=1)
    assert run_stress(plan, tmp_path).figures.failures == {}

    metrics = f"http://127.0.0.1:{stack.settings.gateway.metrics_port}/stats/prometheus"
    lines = (TESTS / "unit" / "gateway_metrics.txt").read_text(encoding="utf-8").splitlines()
    by_gateway = names_exported(stack, metrics)
    assert {line.split()[0] for line in lines} - by_gateway == set()

    for endpoint in endpoints(stack.settings):
        page = f"http://127.0.0.1:{endpoint.metrics_port}/metrics"
        assert of_the_engine(stack) - names_exported(stack, page) == set()
    other = {"torchserve": "triton", "triton": "torchserve"}[stack.settings.engine.kind]
    assert unanswered(stack, other=other) == {}


def of_the_engine(stack: RunningStack) -> set[str]:
    """Return names of an engine's own metrics."""
    if stack.settings.engine.kind == "triton":
        return {"nv_inference_queue_duration_us"}
    file = stack.settings.config_dir / "torchserve" / "metrics.yaml"
    stages = yaml.safe_load(file.read_text(encoding="utf-8"))["model_metrics"]["histogram"]
    names = {metric["name"] for metric in stages}
    return names | {"ts_inference_requests_total", "ts_queue_latency_microseconds"}
