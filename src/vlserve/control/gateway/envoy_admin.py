"""Envoy's admin interface, on a private socket: its statistics, its start, its draining.

https://www.envoyproxy.io/docs/envoy/latest/operations/admin
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from vlserve.tls import PLAIN_HTTP

_TIMEOUT_S = 5.0
_RECEIVED = "http.predictions.downstream_rq_active"


@dataclass(frozen=True)
class Clients:
    """What the clients of the gateway do: ``active`` requests under way, of ``received`` since its
    start, and ``connections`` that are open."""

    active: int
    received: int
    connections: int


class _SocketTransport(httpx.HTTPTransport):
    """Talks over a Unix socket, and tries it first: httpcore forgets to close one that refuses."""

    def __init__(self, path: Path) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # Envoy may be another one since
        super().__init__(uds=str(path), limits=limits, verify=PLAIN_HTTP)
        self._path = str(path)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_TIMEOUT_S)  # one that hangs takes no more than its backlog
                probe.connect(self._path)
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        return super().handle_request(request)


class EnvoyAdmin:
    """Methods raise httpx.HTTPError when Envoy does not answer."""

    def __init__(self, path: Path) -> None:
        """Talk over the socket at ``path``."""
        self._http = httpx.Client(
            base_url="http://gateway",
            timeout=_TIMEOUT_S,
            trust_env=False,
            transport=_SocketTransport(path),
        )

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Return whether Envoy takes requests."""
        return self._http.get("/ready").status_code == 200

    def state(self) -> str:
        """Return how Envoy calls its state: LIVE, DRAINING, INITIALIZING or PRE_INITIALIZING."""
        return str(self._http.get("/server_info").raise_for_status().json()["state"])

    def start(self) -> str:
        """Return what tells this start of Envoy from any other: when it took its bootstrap. Its
        uptime would not do: that follows the system's clock, which may step."""
        reply = self._http.get("/config_dump", params={"mask": "last_updated"}).raise_for_status()
        (bootstrap,) = [each for each in reply.json()["configs"] if "Bootstrap" in each["@type"]]
        return str(bootstrap["last_updated"])

    def reopen_logs(self) -> None:
        """Make Envoy open its log files by their names again."""
        self._http.post("/reopen_logs")

    def end_connections(self) -> None:
        """Make Envoy's answers close their connections; new ones are taken."""
        self._http.post("/healthcheck/fail").raise_for_status()

    def close_listeners(self) -> None:
        """Make Envoy take no new connections."""
        self._http.post("/drain_listeners").raise_for_status()

    def clients(self) -> Clients:
        """Return what the clients do at this moment."""
        stats = self.statistics(r"^http\.predictions\.downstream_(rq_active|rq_total|cx_active)$")
        counts = {name.rpartition(".")[2]: int(value) for name, value in stats.items()}
        return Clients(
            active=counts.get("downstream_rq_active", 0),
            received=counts.get("downstream_rq_total", 0),
            connections=counts.get("downstream_cx_active", 0),
        )

    def unsent_requests(self) -> int:
        """Return how many requests Envoy has begun to receive, and has not sent to any engine. A
        copy for a shadow begins when its request is sent."""
        pattern = (
            r"^(http\.predictions\.downstream_rq|cluster\.[^.]+\.upstream_rq(_pending)?)_active$"
        )
        active = self.statistics(pattern)
        return 2 * int(active.get(_RECEIVED, 0)) - sum(int(value) for value in active.values())

    def subscription(self, stat: str) -> Mapping[str, str | int]:
        """Return what Envoy says of one discovery subscription: version_text, update_rejected,
        update_failure.

        Args:
            stat: the subscription's name in Envoy's statistics.
        """
        pattern = stat.replace(".", r"\.")
        stats = self.statistics(rf"^{pattern}\.(version_text|update_rejected|update_failure)$")
        return {name.rpartition(".")[2]: value for name, value in stats.items()}

    def version(self, stat: str) -> str:
        """Return the version_text of one discovery subscription: Envoy looks for it among a few
        texts, where `subscription` has it look through all numbers of all clusters."""
        name = f"{stat}.version_text"
        query = {"filter": f"^{re.escape(name)}$", "format": "json", "type": "TextReadouts"}
        return str(self._stats(query).get(name, ""))

    def sum(self, pattern: str) -> int:
        """Return the sum of the statistics whose names match the regular expression."""
        return sum(int(value) for value in self.statistics(pattern).values())

    def statistics(self, pattern: str) -> Mapping[str, str | int]:
        """Return name -> value of the statistics whose names match the regular expression."""
        return self._stats({"filter": pattern, "format": "json"})

    def _stats(self, query: Mapping[str, str]) -> Mapping[str, str | int]:
        reply = self._http.get("/stats", params=dict(query)).raise_for_status()
        return {stat["name"]: stat["value"] for stat in reply.json()["stats"] if "name" in stat}


def refusals(subscription: Mapping[str, str | int]) -> int:
    """Return how many updates Envoy has refused, of what `EnvoyAdmin.subscription` returned."""
    return int(subscription.get("update_rejected", 0)) + int(subscription.get("update_failure", 0))
