"""Warm-up of a cold engine: Java compiles what it runs often, and answers slower until then. A
worker's own warm-up (vlserve.runtime.pipeline) does not reach that far."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from vlserve.control.domain import Instance
from vlserve.control.ports import Engine
from vlserve.errors import ControlError
from vlserve.runtime.manifest import Manifest

LONGEST_S = 5.0
_CALLERS = 4
_ROUND = 16
"""Requests whose time is taken together."""
_PATIENCE = 10
"""Rounds without a faster one after which it is warm."""
_FASTER = 0.98


def warm_up(
    engine: Engine,
    instances: Sequence[Instance],
    manifest: Manifest,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Ask each instance for the version's probes until the answers come no faster, for `LONGEST_S`
    at the most; return the number of requests. The answers were checked before, so failures are
    ignored."""
    requests, fields = 0, [probe.fields for probe in manifest.probes]

    def ask(instance: Instance, number: int) -> None:
        with suppress(ControlError):
            request = fields[number % len(fields)]
            engine.predict(instance, manifest.model, manifest.version, request)

    with ThreadPoolExecutor(_CALLERS) as pool:
        for instance in instances:
            took_s: list[float] = []
            until = clock() + LONGEST_S / len(instances)
            while not settled(took_s) and clock() < until:
                began = clock()
                list(pool.map(ask, [instance] * _ROUND, range(_ROUND)))
                took_s.append(clock() - began)
                requests += _ROUND
    return requests


def settled(took_s: Sequence[float]) -> bool:
    """Return whether none of the last rounds was faster than all before."""
    before, last = took_s[:-_PATIENCE], took_s[-_PATIENCE:]
    return bool(before) and min(last) > _FASTER * min(before)
