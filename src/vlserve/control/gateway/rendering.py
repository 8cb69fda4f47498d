"""A routing in the text of Envoy's discovery files, made once for each routing."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from vlserve.control.domain import Routing
from vlserve.control.gateway import envoy_clusters, envoy_routes
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.envoy_config import discovery
from vlserve.settings import Settings


@dataclass(frozen=True)
class Rendered:
    """One routing as Envoy reads it. ``clusters``: sorted by name, as they are in their text."""

    clusters: Sequence[Config]
    clusters_text: str
    routes: Config
    routes_text: str


def sorted_clusters(clusters: Sequence[Config]) -> list[Config]:
    """Return clusters in the order in which they stand in their file."""
    return sorted(clusters, key=itemgetter("name"))


class Renderer:
    """Renders routings, and keeps the last one: every tick asks for the same again, and to render
    100 models takes a tenth of a second of processor time. One thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._content: object = None
        self._rendered: Rendered | None = None

    def render(self, routing: Routing) -> Rendered:
        """Return ``routing`` as Envoy reads it."""
        content = _content(routing)
        if self._rendered is None or content != self._content:
            self._rendered = self._render(routing)
            self._content = content
        return self._rendered

    def _render(self, routing: Routing) -> Rendered:
        clusters = sorted_clusters(envoy_clusters.clusters(routing, self._settings))
        routes = envoy_routes.routes(routing, self._settings)
        return Rendered(clusters, discovery(clusters), routes, discovery([routes]))


def _content(routing: Routing) -> object:
    """Return all that the text is made of, to compare: two routings are equal that have the same
    weights in another order, or other manifests."""
    more = [(list(route.weights.items()), dict(route.manifests)) for route in routing.models]
    return routing, more
