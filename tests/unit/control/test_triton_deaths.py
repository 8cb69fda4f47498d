"""A process that ends is told of at once, with its version."""

import queue
import subprocess
import sys
from contextlib import closing

from vlserve.control.domain import Key
from vlserve.control.engine.triton_deaths import DeathWatch


def _sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])


def test_the_version_of_each_process_that_ends_is_told_once() -> None:
    reports: queue.Queue[Key] = queue.Queue()
    sleepers = [_sleeper() for _ in range(3)]
    first, second, third = sleepers
    try:
        with closing(DeathWatch(reports.put, "deaths")) as deaths:
            for _ in range(2):  # as each tick says it again
                deaths.watch(("tagger", 1), [first.pid, second.pid])
                deaths.watch(("tagger", 2), [third.pid])
            third.kill()
            assert reports.get(timeout=60.0) == ("tagger", 2)
            third.wait()
            deaths.watch(("tagger", 2), [third.pid])  # it has ended
            first.kill()
            assert reports.get(timeout=60.0) == ("tagger", 1)
            assert reports.empty()
    finally:
        for each in sleepers:
            each.kill()
            each.wait()
