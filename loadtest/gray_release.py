"""Requests around a release: some have a sticky key, some ask for a version, the others do neither.

`vlserve stress MODEL --gray-release` and `vlserve drill MODEL` run this file; by hand:

    locust -f loadtest/gray_release.py --host http://127.0.0.1:8080 --model tagger \
        --archive model_store/tagger/1/tagger-1.mar --rate 20

Requests are made of the archive's own probes, so any task will do. They start evenly spaced in
time, whatever the answers do. Each leaves a line in --record, for the judgement afterwards.
The API key is read from VLSERVE_STRESS_API_KEY.
"""

import itertools
import random
import uuid

from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from vlserve.loadgen.load_options import add_load_options
from vlserve.loadgen.locust_events import connect_to_locust
from vlserve.loadgen.locust_users import OpenLoopUser, PredictionRequest


class Mix(OpenLoopUser):
    """Three kinds of requests, by --sticky-share and --ask-share."""

    body_count = 300

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        run = uuid.uuid4().hex[:8]  # keys that no release has seen
        numbers = range(self.options.callers)
        self.sticky_keys = itertools.cycle([f"{run}-{number}" for number in numbers])
        versions = (self.options.ask or "").split(",")
        self.versions = itertools.cycle([int(version) for version in versions if version])

    def next_request(self) -> PredictionRequest:
        """Return what the next request says."""
        place = random.random()
        if place < self.options.sticky_share:
            return PredictionRequest("with a sticky key", sticky_key=next(self.sticky_keys))
        if place < self.options.sticky_share + self.options.ask_share:
            return PredictionRequest("for a version", header_version=next(self.versions, None))
        return PredictionRequest("with neither")


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of all load files, and this one's."""
    group = add_load_options(parser, rate=20.0, sticky_share=0.5)
    group.add_argument("--callers", type=int, default=100, help="How many sticky keys there are.")
    group.add_argument("--ask", help="Versions that some requests ask for: 1,2.")
    group.add_argument(
        "--ask-share", type=float, default=0.1, help="Share of the requests that ask for one."
    )


connect_to_locust(add_options)
