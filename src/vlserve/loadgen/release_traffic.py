"""Requests to a model while its versions change: loadtest/gray_release.py."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlserve.loadgen.load_plan import LoadPlan
from vlserve.loadgen.locust_process import START_UP_S, LocustProcess, running_locust

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ReleaseTraffic(LoadPlan):
    """Open-loop requests of up to three kinds: with a sticky key, for one version, and neither."""

    rate_per_s: float
    sticky_share: float = 0.0
    """Share of the requests with an X-Sticky-Key."""
    sticky_keys: int = 1
    """How many different keys there are."""
    versions: tuple[int, ...] = ()
    """The versions that ``version_share`` of the requests ask for, in turns."""
    version_share: float = 0.0


@contextmanager
def running_traffic(plan: ReleaseTraffic, folder: Path) -> Iterator[LocustProcess]:
    """Send requests while the body runs, or until `LocustProcess.finish`.

    The body begins when the first request has ended. StressError if none does within a minute.
    """
    with running_locust("gray_release.py", plan, _options(plan), folder) as locust:
        deadline = time.monotonic() + START_UP_S
        while not (locust.record.exists() and locust.records()):
            if locust.ended() or time.monotonic() > deadline:
                raise locust.error(f"no request has ended within {START_UP_S} s")
            time.sleep(_POLL_S)
        yield locust


def _options(plan: ReleaseTraffic) -> dict[str, object]:
    return {
        "--users": 1,
        "--rate": plan.rate_per_s,
        "--sticky-share": plan.sticky_share,
        "--callers": plan.sticky_keys,
        "--ask": ",".join(map(str, plan.versions)) or None,
        "--ask-share": plan.version_share,
    }
