"""What the benchmark of rollbacks calls felt."""

import pytest

from benchmarks.release.rollback import GOOD, STABLE, Round, felt_ms, row, stable_ms
from vlserve.loadgen.caller_record import Call

DONE = Round("abort", GOOD, 40.0, answered_at=10.0, ended_at=11.0)
AFTER = Call(10.5, 30, version=STABLE)


@pytest.mark.parametrize(
    ("call", "felt"),
    [
        (AFTER, 0.0),
        (Call(9.9, 500, version=GOOD), 0.0),  # began before the answer
        (Call(10.1, 50, version=GOOD), 150.0),
        (Call(11.2, 50, version=GOOD), 0.0),  # the next round's
    ],
)
def test_the_last_response_of_the_candidate_to_what_began_after_the_answer(
    call: Call, felt: float
) -> None:
    assert felt_ms([AFTER, call], DONE) == pytest.approx(felt)


def test_stable_s_slowest_answer_after_it() -> None:
    calls = [AFTER, Call(10.2, 90, version=STABLE), Call(9.0, 400, version=STABLE)]
    assert stable_ms(calls, DONE) == 90


def test_a_row_has_median_and_worst_and_no_command_where_there_was_none() -> None:
    calls = [AFTER, Call(10.1, 50, version=GOOD)]
    assert row("abort", [DONE], calls) == ["abort", "1", "40, 40", "150, 150", "30, 30"]
    judged = Round("the judge", GOOD, None, 10.0, 11.0)
    assert row("the judge", [judged], calls)[2] == "-"
