"""What one stress run does, and the limits that it must hold."""

from dataclasses import dataclass

from vlserve.errors import StressError
from vlserve.loadgen.load_plan import LoadPlan


@dataclass(frozen=True, kw_only=True)
class StressPlan(LoadPlan):
    """Load on a model, and the limits that it is judged against.

    Give one of ``users`` (closed loop: each sends again when it has its answer) and ``rate_per_s``
    (open loop: requests start on a schedule whatever the answers do, and a latency counts from
    the scheduled start). StressError where the plan contradicts itself.
    """

    users: int | None = None
    rate_per_s: float | None = None
    duration_s: int = 30
    """Judged time, after the warm-up."""
    warm_up_s: int = 3
    max_error_rate: float = 0.0
    max_p99_ms: float = 1000.0
    version: int | None = None
    """Send to this version's own path; an answer by another one is a failure."""
    sticky_share: float = 0.0
    """Share of the requests that carry an X-Sticky-Key, one of a few."""
    processes: int = 1
    """Of Locust's that send: one sends some hundred requests a second."""
    max_in_flight: int = 500
    """Open loop: with so many requests unanswered, those that come due are not sent, and count as
    failures."""

    def __post_init__(self) -> None:
        if (self.users is None) == (self.rate_per_s is None):
            raise StressError("give either a number of users or a rate, not both")
        positive = {
            "users": self.users,
            "rate": self.rate_per_s,
            "duration": self.duration_s,
            "p99 limit": self.max_p99_ms,
            "timeout": self.timeout_s,
            "number of processes": self.processes,
            "limit of requests in flight": self.max_in_flight,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise StressError(f"the {name} must be above 0, not {value}")
        for name, share in (
            ("error rate", self.max_error_rate),
            ("sticky share", self.sticky_share),
        ):
            if not 0 <= share <= 1:
                raise StressError(f"the {name} is a share from 0 to 1, not {share}")

    @property
    def load(self) -> str:
        """Return the load in words."""
        if self.users is not None:
            return f"{self.users} users"
        return f"{self.rate_per_s:g} requests/s"
