"""The files that Envoy watches: clusters and routes."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlserve.control.gateway.envoy_clusters import Config


@dataclass(frozen=True)
class DiscoveryFile:
    """A discovery file, and how Envoy's statistics call the subscription to it."""

    path: Path
    stat: str

    def text(self) -> str:
        """Return what it holds; empty where it is not there."""
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""

    def resources(self) -> list[Config]:
        """Return its resources; none where it is damaged, so that it is written anew."""
        return list(_parsed(self.text()).get("resources", []))


def version_of(text: str) -> str:
    """Return the version that Envoy tells of a discovery file with this text, once it has it."""
    return str(_parsed(text).get("version_info", ""))


@lru_cache(maxsize=4)  # two files, before a change and after: they are looked at each tick
def _parsed(text: str) -> Config:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}
