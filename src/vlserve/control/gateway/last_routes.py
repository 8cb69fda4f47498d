"""The routes that the gateway had last, read back from the file that it watches."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlserve.control.domain import EngineKind, Key
from vlserve.control.gateway import envoy_triton
from vlserve.settings import Settings


@dataclass(frozen=True)
class LastRoute:
    """``versions``: those whose path was open. ``weights``: version -> share, in the order of the
    routes: stable comes last."""

    versions: frozenset[int] = frozenset()
    weights: Mapping[int, int] = field(default_factory=dict)

    @property
    def stable(self) -> int | None:
        """The version that a rollout under way would have gone back to; None without traffic."""
        return list(self.weights)[-1] if self.weights else None


def routes_file(settings: Settings) -> Path:
    """Return the file with the routes in force."""
    return settings.state_dir / "gateway" / "dynamic" / "routes.json"


def last_routes(settings: Settings) -> Mapping[str, LastRoute]:
    """Return model -> its last route; nothing where the file is not there or not ours."""
    file = routes_file(settings)
    try:
        routes = list(_routes(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    last: dict[str, LastRoute] = {}
    for route in routes:
        clusters = route.get("weighted_clusters", {}).get("clusters", [])
        shares = [(*_version(share["name"]), int(share["weight"])) for share in clusters]
        if shares:
            model = shares[0][0]
            weights = {version: weight for _, version, weight in shares}
            last[model] = LastRoute(last.get(model, LastRoute()).versions | {*weights}, weights)
        elif "cluster" in route:
            model, version = _version(route["cluster"])
            before = last.get(model, LastRoute())
            last[model] = LastRoute(before.versions | {version}, before.weights)
    return last


def last_engines(settings: Settings) -> Mapping[Key, EngineKind]:
    """Return version -> the engine that its requests went to last; nothing of versions that no
    route named, or where the gateway's files are not there or not ours."""
    file = routes_file(settings).with_name("clusters.json")
    try:
        clusters = json.loads(file.read_text(encoding="utf-8"))["resources"]
        own = [each for each in clusters if "." not in each["name"]]  # a shadow's have a dot
        return {_version(cluster["name"]): _engine(cluster) for cluster in own}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _engine(cluster: Mapping[str, Any]) -> EngineKind:
    """Return the engine that answers at the cluster's path; before there was one, TorchServe did"""
    path = cluster["metadata"]["filter_metadata"]["vlserve"].get("path")
    return "triton" if path == envoy_triton.infer_path(*_version(cluster["name"])) else "torchserve"


def _routes(discovery: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for host in discovery["resources"][0]["virtual_hosts"]:
        for entry in host["routes"]:
            if "route" in entry:
                yield entry["route"]


def _version(cluster: str) -> tuple[str, int]:
    model, _, version = cluster.rpartition("-")
    return model, int(version)
