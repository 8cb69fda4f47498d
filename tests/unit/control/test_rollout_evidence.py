"""What a log line says of the two versions, and what a copy's answers say of each other."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from vlserve.control.gateway.log_lines import (
    AccessLine,
    ShadowLine,
    read_access_line,
    read_shadow_line,
)
from vlserve.control.judge import Outcome, ShadowPair
from vlserve.control.rollouts import metric_windows
from vlserve.control.rollouts.answer_log import LoggedAnswer
from vlserve.control.rollouts.log_evidence import (
    PATIENCE_S,
    AnsweredCopy,
    Copy,
    Pair,
    compare,
    copies,
    join,
    outcome,
)
from vlserve.control.rollouts.metric_windows import KEPT, LABELS, OTHERS, WINDOW_S, MetricWindows

VERSIONS = Pair(candidate=2, stable=1)
MUSIC, FOOD = LoggedAnswer({"music": 0.7, "food": 0.2}), LoggedAnswer({"food": 0.6, "music": 0.3})


def line(**changes: Any) -> AccessLine:
    usual = {"request_id": "r", "version": "2", "status": 200, "duration_ms": 12, "caller": None}
    return read_access_line(usual | changes)


def copied(**changes: Any) -> ShadowLine:
    usual = {"request_id": "r", "version": "2", "status": 200, "duration_ms": 12}
    return read_shadow_line(usual | changes)


@dataclass(frozen=True)
class Known:
    """Answers by request id and version; ``items``: of requests that have several."""

    answers: dict[tuple[str, int], LoggedAnswer]
    items: dict[str, list[str]] = field(default_factory=dict)

    def of(self, request_id: str, version: int) -> LoggedAnswer | None:
        return self.answers.get((request_id, version))

    def items_of(self, request_id: str) -> list[str]:
        return self.items.get(request_id, [request_id])


def of(answers: dict[tuple[str, int], LoggedAnswer]) -> Known:
    return Known(answers)


THREE = {"r": ["r~0~3", "r~1~3", "r~2~3"]}


def test_a_request_of_several_items_is_one_outcome_with_the_labels_of_all() -> None:
    answers = {("r~0~3", 2): MUSIC, ("r~1~3", 2): FOOD, ("r~2~3", 2): LoggedAnswer(failed=True)}
    result = outcome(line(), VERSIONS, Known(answers, THREE))
    assert result is not None and result.tags == ("music", "food")


@pytest.mark.parametrize(
    ("last", "failed", "refused"),
    [
        (MUSIC, False, False),
        (LoggedAnswer(failed=True), False, True),
        (LoggedAnswer(failed=True, lost=True), True, False),
    ],
)
def test_what_a_partial_answer_lacks_counts_by_whose_fault_it_is(
    last: LoggedAnswer, failed: bool, refused: bool
) -> None:
    """Its status is 200 although an item, or each, has none."""
    bad = LoggedAnswer(failed=True)
    answers = {("r~0~3", 2): bad, ("r~1~3", 2): bad, ("r~2~3", 2): last}
    result = outcome(line(), VERSIONS, Known(answers, THREE))
    assert result is not None and (result.failed, result.refused) == (failed, refused)


def test_each_item_of_a_copied_request_is_a_pair() -> None:
    answers = {("r~0~3", 1): MUSIC, ("r~0~3", 2): FOOD, ("r~1~3", 1): FOOD}
    copies = [Copy("r", 200, 100.0)]
    pairs, copies = join(copies, VERSIONS, Known(answers, THREE), now=101.0)
    assert pairs == [AnsweredCopy("r~0~3", MUSIC, FOOD)]
    assert [copy.request_id for copy in copies] == ["r~1~3", "r~2~3"]
    answers |= {("r~1~3", 2): FOOD}
    pairs, copies = join(copies, VERSIONS, Known(answers, THREE), now=102.0)
    assert pairs == [AnsweredCopy("r~1~3", FOOD, FOOD)]
    assert join(copies, VERSIONS, Known(answers, THREE), now=101.0 + PATIENCE_S) == ([], [])


def test_a_bad_item_takes_no_evidence_from_its_neighbours() -> None:
    """It fails the request with 400 on both versions; the others were answered all the same."""
    bad = LoggedAnswer(failed=True)
    answers = {("r~0~3", version): MUSIC for version in (1, 2)}
    answers |= {("r~1~3", version): bad for version in (1, 2)}
    pairs, _ = join([Copy("r", 400, 100.0)], VERSIONS, Known(answers, THREE), now=101.0)
    assert pairs == [AnsweredCopy("r~0~3", MUSIC, MUSIC)]


def test_an_item_whose_request_the_candidate_lost_is_a_pair_that_differs() -> None:
    answers = {(item, 1): MUSIC for item in THREE["r"]}
    pairs, copies = join([Copy("r", 503, 100.0)], VERSIONS, Known(answers, THREE), now=101.0)
    assert pairs == [AnsweredCopy(item, MUSIC, None) for item in THREE["r"]]
    assert copies == []


def test_an_answered_request() -> None:
    result = outcome(line(caller="anna"), VERSIONS, of({("r", 2): MUSIC}))
    assert result is not None
    assert result == Outcome(True, False, 12.0, caller="anna", tag="music")
    stable = outcome(line(version="1"), VERSIONS, of({}))
    assert stable is not None and stable == Outcome(False, False, 12.0)


@pytest.mark.parametrize("status", [500, 503, 504, 0, None])
def test_what_was_not_answered_failed(status: int | None) -> None:
    result = outcome(line(status=status), VERSIONS, of({("r", 2): MUSIC}))
    assert result is not None
    assert (result.failed, result.tag) == (True, None)


def test_what_was_answered_only_at_another_try_failed_once() -> None:
    retry = outcome(line(tries=2), VERSIONS, of({("r", 2): MUSIC}))
    assert retry is not None and retry.failed
    at_once = outcome(line(tries=1), VERSIONS, of({("r", 2): MUSIC}))
    assert at_once is not None and not at_once.failed


def test_how_slowly_a_request_was_sent_is_no_latency_of_the_version() -> None:
    slow = outcome(line(duration_ms=20_012, received_ms=20_000), VERSIONS, of({}))
    assert slow is not None and (slow.failed, slow.latency_ms) == (False, 12.0)
    earlier = outcome(line(received_ms=None), VERSIONS, of({}))
    assert earlier is not None and earlier.latency_ms == 12.0


@pytest.mark.parametrize(
    ("changes", "failed", "refused"),
    [
        ({"duration_ms": 9000, "received_ms": None, "upstream": None}, False, True),
        ({"duration_ms": 9900, "received_ms": 9000, "upstream": "127.0.0.1:9"}, False, False),
        ({"duration_ms": 9900, "received_ms": 100, "upstream": "127.0.0.1:9"}, True, False),
        ({"duration_ms": 9900, "upstream": "127.0.0.1:9"}, True, False),
    ],
    ids=["before it was sent", "soon", "after a wait", "a line of before"],
)
def test_a_client_that_leaves_speaks_against_a_version_only_once_it_had_to_wait(
    changes: dict[str, Any], failed: bool, refused: bool
) -> None:
    result = outcome(line(status=0, flags="DC", **changes), VERSIONS, of({}))
    assert result is not None
    assert (result.failed, result.refused, result.tag) == (failed, refused, None)


@pytest.mark.parametrize("status", [400, 413, 422, 429])
def test_the_client_s_fault_is_a_draw_and_no_more(status: int) -> None:
    result = outcome(line(status=status), VERSIONS, of({("r", 2): MUSIC}))
    assert result is not None
    assert (result.refused, result.failed, result.tag) == (True, False, None)


@pytest.mark.parametrize("changes", [{"version": "3"}, {"version": None}, {"version": "x"}])
def test_other_versions_say_nothing(changes: dict[str, Any]) -> None:
    assert outcome(line(**changes), VERSIONS, of({})) is None


@pytest.mark.parametrize("changes", [{"status": 401}, {"status": 503, "details": "overload"}])
def test_what_the_gateway_refused_for_any_version_says_nothing(changes: dict[str, Any]) -> None:
    assert outcome(line(**changes), VERSIONS, of({})) is None


def test_copies_that_were_not_even_tried_are_none() -> None:
    lines = [copied(), copied(flags="UO", status=503), copied(flags="UF,URX", status=503)]
    assert copies(lines, now=5.0) == [Copy("r", 200, 5.0), Copy("r", 503, 5.0)]


@pytest.mark.parametrize(
    ("candidate", "pair"),
    [
        (MUSIC, ShadowPair(True, 0.0)),
        (FOOD, ShadowPair(False, 0.7 - 0.3)),
        (LoggedAnswer({"sport": 0.9}), ShadowPair(False, 0.7)),
        (LoggedAnswer(failed=True), ShadowPair(False, 1.0)),
        (None, ShadowPair(False, 1.0)),
    ],
)
def test_two_answers_compared(candidate: LoggedAnswer | None, pair: ShadowPair) -> None:
    assert compare(MUSIC, candidate) == pair


def test_answers_without_labels_agree_if_both_are_there() -> None:
    assert compare(LoggedAnswer(), LoggedAnswer()) == ShadowPair(True, 0.0)
    assert compare(LoggedAnswer(), None) == ShadowPair(False, 1.0)


def test_a_copy_waits_for_both_answers_but_not_for_ever() -> None:
    copy = Copy("r", 200, seen_at=100.0)
    only_candidate = of({("r", 2): MUSIC})
    assert join([copy], VERSIONS, only_candidate, now=101.0) == ([], [copy])
    assert join([copy], VERSIONS, only_candidate, now=100.0 + PATIENCE_S) == ([], [])
    both = of({("r", 1): MUSIC, ("r", 2): MUSIC})
    assert join([copy], VERSIONS, both, now=101.0) == ([AnsweredCopy("r", MUSIC, MUSIC)], [])


def test_a_copy_that_failed_disagrees_if_stable_answered() -> None:
    copy = Copy("r", 500, seen_at=100.0)
    assert join([copy], VERSIONS, of({("r", 1): MUSIC}), now=101.0) == (
        [AnsweredCopy("r", MUSIC, None)],
        [],
    )
    answers = of({("r", 1): LoggedAnswer(failed=True)})
    assert join([copy], VERSIONS, answers, now=101.0) == ([], [])


def outcomes(count: int, candidate: bool, ms: float, tag: str, failures: int = 0) -> list[Outcome]:
    return [
        Outcome(candidate, n < failures, ms, tag=None if n < failures else tag)
        for n in range(count)
    ]


def test_a_window_counts_each_version() -> None:
    some = outcomes(10, True, 30.0, "music", failures=2) + outcomes(20, False, 10.0, "food")
    pairs = [ShadowPair(True, 0.0), ShadowPair(False, 0.5)]
    window = metric_windows.add(MetricWindows(), some, pairs, now=1003.0, step=1, weight=25).current
    assert window is not None
    assert (window.start, window.step, window.weight) == (1000, 1, 25)
    assert (window.candidate.requests, window.candidate.failed) == (10, 2)
    assert window.candidate.labels == {"music": 8}
    assert window.candidate.p50_ms == pytest.approx(30.0, rel=0.06)
    assert (window.stable.requests, window.stable.failed) == (20, 0)
    assert window.stable.p99_ms == pytest.approx(10.0, rel=0.06)
    assert (window.pairs, window.agreeing, window.score_distance) == (2, 1, 0.25)
    assert window.stability_index is not None and window.stability_index > 1


def test_evidence_adds_up_within_a_window_and_a_new_one_begins_later() -> None:
    windows, now = MetricWindows(), 1000.0
    for _ in range(2):
        windows = metric_windows.add(
            windows, outcomes(5, True, 10.0, "x"), [], now=now, step=0, weight=5
        )
    assert windows.current is not None and windows.current.candidate.requests == 10
    windows = metric_windows.add(
        windows, outcomes(5, True, 10.0, "x"), [], now=now, step=1, weight=25
    )
    assert [window.step for window in windows.closed] == [0]
    for turn in range(KEPT + 5):
        now = 2000.0 + turn * WINDOW_S
        windows = metric_windows.add(
            windows, outcomes(1, True, 10.0, "x"), [], now=now, step=1, weight=25
        )
    assert len(windows.closed) == KEPT
    assert metric_windows.add(windows, [], [], now=9e9, step=2, weight=50) is windows


def test_a_window_names_only_so_many_labels() -> None:
    many = [Outcome(True, False, 1.0, tag=f"label-{n}") for n in range(LABELS + 7)]
    window = metric_windows.add(MetricWindows(), many, [], now=0.0, step=0, weight=5).current
    assert window is not None
    assert len(window.candidate.labels) == LABELS + 1
    assert window.candidate.labels[OTHERS] == 7
