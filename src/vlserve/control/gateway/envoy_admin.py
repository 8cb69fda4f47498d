"""Envoy's admin interface, on loopback: its statistics, its start, its draining.

https://www.envoyproxy.io/docs/envoy/latest/operations/admin
"""

import time
from collections.abc import Mapping

import httpx

_RECEIVED = "http.predictions.downstream_rq_active"


class EnvoyAdmin:
    """Methods raise httpx.HTTPError when Envoy does not answer."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=5.0,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # Envoy may be another one since
        )

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Return whether Envoy takes requests."""
        return self._http.get("/ready").status_code == 200

    def started_at(self) -> float:
        """Return when Envoy started, to a second or two, on the clock of ``time.monotonic``."""
        info = self._http.get("/server_info").raise_for_status().json()
        return time.monotonic() - float(info["uptime_current_epoch"].removesuffix("s"))

    def reopen_logs(self) -> None:
        """Make Envoy open its log files by their names again."""
        self._http.post("/reopen_logs")

    def drain(self) -> None:
        """Make Envoy take no new connections."""
        self._http.post("/healthcheck/fail").raise_for_status()  # answers close connections
        self._http.post("/drain_listeners").raise_for_status()

    def received_requests(self) -> int:
        """Return how many requests of clients Envoy has begun to receive and not answered."""
        return self.sum(r"^http\.predictions\.downstream_rq_active$")

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

    def sum(self, pattern: str) -> int:
        """Return the sum of the statistics whose names match the regular expression."""
        return sum(int(value) for value in self.statistics(pattern).values())

    def statistics(self, pattern: str) -> Mapping[str, str | int]:
        """Return name -> value of the statistics whose names match the regular expression."""
        query = {"filter": pattern, "format": "json"}
        reply = self._http.get("/stats", params=query).raise_for_status()
        return {stat["name"]: stat["value"] for stat in reply.json()["stats"] if "name" in stat}


def refusals(subscription: Mapping[str, str | int]) -> int:
    """Return how many updates Envoy has refused, of what `EnvoyAdmin.subscription` returned."""
    return int(subscription.get("update_rejected", 0)) + int(subscription.get("update_failure", 0))
