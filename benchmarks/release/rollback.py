"""How soon clients feel a rollback: rollbacks by hand, aborted releases, and the judge's own.

    .venv/bin/python -m benchmarks.release.rollback --rate 60 --rounds 20

Starts a stack of its own with versions without weights. Callers ask at a steady rate, a third of
them with sticky keys. Each round sends traffic to the candidate and takes it back; measured is the
time from the answer of the control service to the last response of the candidate to a request that
began after it. Prints a table; the exit code says whether a request was lost.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.client import ControlClient
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.release_traffic import ReleaseTraffic, running_traffic
from vlserve.loadgen.request_record import RequestRecord

MODEL = "rolled"
STABLE, GOOD, SLOW = 1, 2, 3
ON_CANDIDATE_S, AFTER_S = 0.5, 0.7
JUDGED = {
    "weights": [50, 100],
    "hold_s": 60,
    "unit": "request",
    "minimum": {"candidate": 40, "stable": 40, "units": 40, "pairs": 40},
}


@dataclass(frozen=True)
class Round:
    """Times are Unix times, s. ``answered_at``: of the word that took the candidate back."""

    word: str
    candidate: int
    command_ms: float | None
    """None: there was no command."""
    answered_at: float
    ended_at: float


def by_hand(control: ControlClient) -> Round:
    control.release(MODEL, GOOD)
    return _timed("rollback", GOOD, lambda: control.rollback(MODEL))


def by_abort(control: ControlClient) -> Round:
    control.start_rollout(MODEL, GOOD, {"weights": [50, 100]})
    return _timed("abort", GOOD, lambda: control.abort(MODEL))


def by_judge(control: ControlClient) -> Round:
    """From the first answer that says so; nobody waits for the judge's own."""
    control.start_rollout(MODEL, SLOW, JUDGED)
    while control.rollout(MODEL).status.under_way:
        time.sleep(0.02)
    return _rest("the judge", SLOW, None, time.time())


def _timed(word: str, candidate: int, take_back: Callable[[], object]) -> Round:
    time.sleep(ON_CANDIDATE_S)
    asked_at = time.time()
    take_back()
    answered_at = time.time()
    return _rest(word, candidate, (answered_at - asked_at) * 1000, answered_at)


def _rest(word: str, candidate: int, command_ms: float | None, answered_at: float) -> Round:
    time.sleep(AFTER_S)
    return Round(word, candidate, command_ms, answered_at, time.time())


def felt_ms(requests: Sequence[RequestRecord], round_: Round) -> float:
    """0: no request that began after the answer went to the candidate."""
    late = [
        request.ended_at - round_.answered_at
        for request in requests
        if request.version == round_.candidate
        and round_.answered_at <= request.sent_at < round_.ended_at
    ]
    return max(late, default=0.0) * 1000


def stable_ms(requests: Sequence[RequestRecord], round_: Round) -> float:
    """The slowest answer of the version that got its traffic back, in the time after."""
    return max(
        request.latency_ms
        for request in requests
        if request.version == STABLE
        and request.latency_ms is not None
        and round_.answered_at <= request.sent_at < round_.ended_at
    )


def row(word: str, rounds: Sequence[Round], requests: Sequence[RequestRecord]) -> list[str]:
    def median_and_worst(values: list[float]) -> str:
        return f"{np.median(values):.0f}, {max(values):.0f}" if values else "-"

    return [
        word,
        str(len(rounds)),
        median_and_worst([round_.command_ms for round_ in rounds if round_.command_ms is not None]),
        median_and_worst([felt_ms(requests, round_) for round_ in rounds]),
        median_and_worst([stable_ms(requests, round_) for round_ in rounds]),
    ]


def run(rate_per_s: float, rounds: int) -> tuple[list[Round], list[RequestRecord]]:
    with tempfile.TemporaryDirectory(prefix="vlserve-rollback-") as scratch:
        folder = Path(scratch)
        with own_stack(folder) as stack:
            control = stack.control
            for version, delay_ms in ((STABLE, 3), (GOOD, 3), (SLOW, 40)):
                archive = pack_echo(folder, MODEL, version, delay_ms=delay_ms)
                control.register(archive)
            control.release(MODEL, STABLE)
            plan = ReleaseTraffic(
                url=stack.settings.gateway_url,
                model=MODEL,
                archive=archive,
                rate_per_s=rate_per_s,
                sticky_share=0.33,
                sticky_keys=100,
            )
            with running_traffic(plan, folder / "traffic") as traffic:
                results = [by_hand(control) for _ in range(rounds)]
                results += [by_abort(control) for _ in range(rounds)]
                results += [by_judge(control) for _ in range(max(1, rounds // 4))]
                return results, traffic.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rate", type=float, default=60.0, help="Requests a second.")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rounds, requests = run(options.rate, options.rounds)
    words = dict.fromkeys(round_.word for round_ in rounds)
    heads = ("BY", "ROUNDS", "COMMAND ms", "FELT AFTER IT ms", "STABLE'S SLOWEST ANSWER ms")
    rows = [
        row(word, [round_ for round_ in rounds if round_.word == word], requests) for word in words
    ]
    print_line("median, worst")
    print_table(heads, rows)
    losses = sum(request.failure is not None for request in requests)
    print_line(f"{losses} of {len(requests)} requests lost")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
