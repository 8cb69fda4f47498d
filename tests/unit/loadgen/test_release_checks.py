"""Every check on a made-up run that is right, and on the same run with one thing wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import StressError
from vlserve.loadgen.release_checks import (
    Check,
    Limits,
    Step,
    WatchedRelease,
    check_release,
    rollback_ms,
)
from vlserve.loadgen.request_record import RequestRecord, read_records

STABLE, CANDIDATE = 1, 2
LIMITS = Limits(max_error_rate=0.0, max_p99_ms=100.0)
STEPS = (Step(20, 0.0, 10.0), Step(60, 11.0, 20.0), Step(100, 21.0, 30.0))
RELEASE = WatchedRelease(CANDIDATE, STABLE, STEPS, True, "every gate is clear", 31.0)
CALLERS = 50


def answer(
    sent_at: float, latency_ms: float, version: int | None = None, **fields: Any
) -> RequestRecord:
    """A request that was sent when it was due."""
    return RequestRecord(0.0, 0.0, latency_ms, version, sent_at=sent_at, **fields)


def spread(number: int, weight: int) -> int:
    """The candidate for ``weight`` of each hundred numbers; who has it keeps it at a higher one."""
    return CANDIDATE if number * 37 % 100 < weight else STABLE


def right_run() -> list[RequestRecord]:
    """40 free requests, 100 of callers with a key and 10 that ask, in each step; and the time
    after the rollback."""
    requests = []
    for step in STEPS:
        span = step.ended - step.begun - 0.5

        def at(place: float, start: float = step.begun, span: float = span) -> float:
            return start + 0.2 + span * place

        requests += [answer(at(n / 40), 20, version=spread(n, step.weight)) for n in range(40)]
        requests += [
            answer(
                at(n / 100), 20, sticky_key=f"c{n % CALLERS}", version=spread(2 * n, step.weight)
            )
            for n in range(2 * CALLERS)
        ]
        requests += [
            answer(at(n / 10), 20, requested_version=1 + n % 2, version=1 + n % 2)
            for n in range(10)
        ]
    return requests + [answer(31.0 + n / 10, 20, version=STABLE) for n in range(10)]


def checks(requests: list[RequestRecord], release: WatchedRelease = RELEASE) -> dict[str, Check]:
    return {check.name: check for check in check_release(requests, release, LIMITS)}


def broken(requests: list[RequestRecord], release: WatchedRelease = RELEASE) -> list[str]:
    return [name for name, check in checks(requests, release).items() if not check.passed]


def test_a_right_run_holds_every_check() -> None:
    assert broken(right_run()) == []
    assert list(checks(right_run())) == [
        "promoted", "split 20 %", "split 60 %", "split 100 %", "sticky", "monotone", "asked for",
        "none lost", "version 1", "version 2", "rollback",
    ]  # fmt: skip


def test_no_calls_at_all_hold_nothing_that_needs_them() -> None:
    assert set(broken([])) == set(checks([])) - {"promoted"}


def changed(
    requests: list[RequestRecord], which: Callable[[RequestRecord], bool], **fields: object
) -> list[RequestRecord]:
    return [replace(request, **fields) if which(request) else request for request in requests]  # type: ignore[arg-type]


def in_first_step(request: RequestRecord) -> bool:
    return request.sent_at < 10


def test_a_split_that_the_weight_does_not_explain() -> None:
    free_requests = changed(
        right_run(),
        lambda c: in_first_step(c) and not c.sticky_key and not c.requested_version,
        version=CANDIDATE,
    )
    assert broken(free_requests) == ["split 20 %"]
    assert "40 of 40 requests" in checks(free_requests)["split 20 %"].said
    keyed_requests = changed(
        right_run(), lambda c: in_first_step(c) and bool(c.sticky_key), version=STABLE
    )
    assert broken(keyed_requests) == ["split 20 %"]
    assert "0 of 50 callers" in checks(keyed_requests)["split 20 %"].said


def test_a_single_request_to_stable_at_100_is_wrong() -> None:
    requests = [*right_run(), answer(25.0, 20, version=STABLE)]
    assert broken(requests) == ["split 100 %"]


def test_a_step_with_too_few_requests_says_nothing() -> None:
    few = [c for c in right_run() if not in_first_step(c) or c.sticky_key or c.requested_version]
    assert broken(few) == ["split 20 %"]


def test_a_release_of_which_no_step_was_seen() -> None:
    unseen = replace(RELEASE, steps=())
    assert {"split", "sticky", "monotone"} <= set(broken(right_run(), unseen))


def test_a_caller_who_changes_his_version_within_a_step() -> None:
    request = next(
        c for c in right_run() if c.sticky_key and c.version == CANDIDATE and c.sent_at < 3
    )
    requests = [*right_run(), replace(request, sent_at=9.5, version=STABLE)]
    assert broken(requests) == ["sticky"]
    assert f"{request.sticky_key} at 20 %" in checks(requests)["sticky"].said


def test_a_caller_who_goes_back_when_the_weight_rises() -> None:
    request = next(
        c for c in right_run() if c.sticky_key and c.version == CANDIDATE and c.sent_at < 3
    )
    requests = changed(
        right_run(),
        lambda c: c.sticky_key == request.sticky_key and 11 <= c.sent_at < 20,
        version=STABLE,
    )
    assert broken(requests) == ["monotone"]


def test_callers_who_never_come_again_prove_nothing() -> None:
    requests = [
        replace(request, sticky_key=f"{request.sticky_key}-{number}")
        if request.sticky_key
        else request
        for number, request in enumerate(right_run())
    ]
    assert broken(requests) == ["sticky", "monotone"]


def test_requests_at_a_change_belong_to_either_step() -> None:
    request = next(
        c for c in right_run() if c.sticky_key and c.version == CANDIDATE and c.sent_at < 3
    )
    under_way = replace(request, sent_at=9.95, latency_ms=90, version=STABLE)
    between = replace(request, sent_at=10.5, version=STABLE)
    just_after = replace(request, sent_at=11.05, version=STABLE)
    requests = [*right_run(), under_way, between, just_after]
    assert broken(requests) == []


def test_a_version_asked_for_and_not_given() -> None:
    requests = [*right_run(), answer(5.0, 20, requested_version=CANDIDATE, version=STABLE)]
    assert broken(requests) == ["asked for"]


def test_a_lost_request_counts_wherever_it_was() -> None:
    requests = [*right_run(), answer(10.5, 20, failure="HTTP 503 overloaded")]
    assert broken(requests) == ["none lost"]
    assert "HTTP 503 overloaded: 1" in checks(requests)["none lost"].said


def test_latency_and_errors_of_a_version() -> None:
    slow = changed(right_run(), lambda c: c.version == CANDIDATE, latency_ms=150.0)
    assert broken(slow) == ["version 2"]
    requests = [*right_run(), answer(25.0, 20, version=CANDIDATE, failure="HTTP 500")]
    assert broken(requests) == ["none lost", "version 2"]


def test_a_rollback_that_is_felt_late() -> None:
    late_requests = [*right_run(), answer(31.1, 80, version=CANDIDATE)]
    assert rollback_ms(late_requests, RELEASE) == pytest.approx(180, abs=0.2)
    assert broken(late_requests) == ["rollback"]
    earlier_requests = [*right_run(), answer(30.9, 900, version=CANDIDATE)]
    assert rollback_ms(earlier_requests, RELEASE) == 0
    version_requests = [
        *right_run(),
        answer(35.0, 20, version=CANDIDATE, requested_version=CANDIDATE),
    ]
    assert rollback_ms(version_requests, RELEASE) == 0


def test_a_rollback_after_which_nobody_called() -> None:
    requests = [request for request in right_run() if request.sent_at < 31]
    assert broken(requests) == ["rollback"]
    assert broken(right_run(), replace(RELEASE, rolled_back_at=None)) == ["rollback"]


def test_a_release_that_was_taken_back() -> None:
    assert broken(right_run(), replace(RELEASE, promoted=False)) == ["promoted"]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    requests = [
        answer(1.5, 2.5, 1, sticky_key="a"),
        answer(2.0, 3.0, requested_version=2, failure="timeout"),
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text(
        "".join(request.line() for request in requests) + '{"started": 3', encoding="utf-8"
    )
    assert read_records(file) == requests
    with pytest.raises(StressError, match="no readable"):
        read_records(tmp_path / "none.jsonl")
