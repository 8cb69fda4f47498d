"""Load on a served model. `vlserve stress` runs this file; by hand:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --model tagger --data val.jsonl

Closed loop (--users): each user sends the next request when it has its answer, so a server that
stalls gets fewer requests, and its stall shows in few latencies.
Open loop (--rate): requests start evenly spaced in time whatever the answers do, and a latency
counts from the scheduled start, so a stall shows in every request that came due in it.

Without --data and --archive the requests are a drawn demo set. The API key is read from
VLSERVE_STRESS_API_KEY.
"""

import random

from locust.argument_parser import LocustArgumentParser

from vlserve.loadgen.load_options import add_load_options
from vlserve.loadgen.locust_events import connect_to_locust
from vlserve.loadgen.locust_users import (
    ClosedLoopUser,
    OpenLoopUser,
    PredictionRequest,
    PredictionUser,
)

STICKY_KEYS = tuple(f"caller-{number}" for number in range(50))


class Mix(PredictionUser):
    """A share of the requests has one of a few sticky keys; all may go to one version's path."""

    abstract = True

    def next_request(self) -> PredictionRequest:
        """Return what the next request says."""
        is_sticky = random.random() < self.options.sticky_share
        return PredictionRequest(
            sticky_key=random.choice(STICKY_KEYS) if is_sticky else None,
            path_version=self.options.model_version,
        )


class ClosedLoop(Mix, ClosedLoopUser):
    """With --users."""


class OpenLoop(Mix, OpenLoopUser):
    """With --rate."""


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of all load files, and this one's."""
    add_load_options(parser).add_argument(
        "--model-version",
        type=int,
        help="Version whose own path gets the requests. Default: the gateway chooses.",
    )


connect_to_locust(add_options)
