"""What the dashboard's panels ask for, and what the servers of a stack expose."""

import json
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import yaml

from vlserve.control.domain import EngineKind
from vlserve.control.engine.endpoints import endpoints
from vlserve.testing import RunningStack

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serving_config"
DASHBOARD = CONFIG / "grafana" / "dashboards" / "vlserve.json"
GATEWAY_METRICS = ROOT / "tests" / "unit" / "gateway_metrics.txt"
"""Names and types as Envoy 1.40 wrote them on /stats/prometheus, of those that Prometheus keeps."""
TRITON_METRICS = ROOT / "tests" / "unit" / "triton_metrics.txt"
"""Names and types as Triton 2.51 wrote them on /metrics."""


def panels() -> dict[str, list[str]]:
    """Return title -> queries."""
    entries = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in entries}


def metrics_of(query: str) -> set[str]:
    """Return the names of the series that a query reads."""
    names: set[str] = set()

    def note(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "1m")), note)
    return names


def of_gateway() -> set[str]:
    """Return the series that Envoy exports."""
    return _listed(GATEWAY_METRICS)


def of_engine(kind: EngineKind) -> set[str]:
    """Return the series that an engine exports: TorchServe, as serving_config says."""
    if kind == "triton":
        return _listed(TRITON_METRICS)
    names: set[str] = set()
    engine = yaml.safe_load((CONFIG / "torchserve" / "metrics.yaml").read_text(encoding="utf-8"))
    for group in ("ts_metrics", "model_metrics"):
        for how, metrics in engine[group].items():
            names |= {name for metric in metrics for name in _series(metric["name"], how)}
    return names


def exposed_by(stack: RunningStack) -> set[str]:
    """Return the series that a running stack exposes now, and Prometheus' own."""
    pages = [f"http://127.0.0.1:{stack.settings.gateway.metrics_port}/stats/prometheus"]
    pages += [
        f"http://127.0.0.1:{endpoint.metrics_port}/metrics"
        for endpoint in endpoints(stack.settings)
    ]
    return {"up"}.union(*(_exposed(page) for page in pages))


def unanswered(stack: RunningStack, other: EngineKind) -> dict[str, list[str]]:
    """Return panel -> its queries that a running stack has no series for, but for those of the
    ``other`` engine, which it does not run; a panel without any query for this one has them all."""
    series = exposed_by(stack)
    others = of_engine(other)
    gaps = {}
    for title, queries in panels().items():
        hits = [query for query in queries if metrics_of(query) <= series]
        misses = [query for query in queries if query not in hits]
        if not hits or any(not metrics_of(query) <= others for query in misses):
            gaps[title] = misses
    return gaps


def _exposed(page: str) -> set[str]:
    text = httpx.get(page, trust_env=False, timeout=60.0).raise_for_status().text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition(" ")[0].partition("{")[0] for line in lines}


def _listed(file: Path) -> set[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {name for line in lines for name in _series(*line.split())}


def _series(name: str, kind: str) -> set[str]:
    if kind == "histogram":
        return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    if kind == "summary":
        return {name, f"{name}_sum", f"{name}_count"}
    return {name}
