"""What the benchmark of rollbacks calls felt."""

import pytest

from benchmarks.release.rollback import GOOD, STABLE, Round, felt_ms, row, stable_ms
from vlserve.loadgen.request_record import RequestRecord

DONE = Round("abort", GOOD, 40.0, answered_at=10.0, ended_at=11.0)


def request(sent_at: float, latency_ms: float, version: int) -> RequestRecord:
    """A request that was sent when it was due."""
    return RequestRecord(0.0, 0.0, latency_ms, version, sent_at=sent_at)


AFTER = request(10.5, 30, version=STABLE)


@pytest.mark.parametrize(
    ("late", "expected_ms"),
    [
        (AFTER, 0.0),
        (request(9.9, 500, version=GOOD), 0.0),  # began before the answer
        (request(10.1, 50, version=GOOD), 150.0),
        (request(11.2, 50, version=GOOD), 0.0),  # the next round's
    ],
)
def test_the_last_response_of_the_candidate_to_what_began_after_the_answer(
    late: RequestRecord, expected_ms: float
) -> None:
    assert felt_ms([AFTER, late], DONE) == pytest.approx(expected_ms)


def test_stable_s_slowest_answer_after_it() -> None:
    requests = [AFTER, request(10.2, 90, version=STABLE), request(9.0, 400, version=STABLE)]
    assert stable_ms(requests, DONE) == 90


def test_a_row_has_median_and_worst_and_no_command_where_there_was_none() -> None:
    requests = [AFTER, request(10.1, 50, version=GOOD)]
    assert row("abort", [DONE], requests) == ["abort", "1", "40, 40", "150, 150", "30, 30"]
    judge_round = Round("the judge", GOOD, None, 10.0, 11.0)
    assert row("the judge", [judge_round], requests)[2] == "-"
