"""The judge for others: two versions of the gateway's log, or of what another gateway observed."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.rollout_traffic import Behaviour, Requests, start
from vlserve.control.assembly import Control, assemble
from vlserve.control.judge import Action, Verdict
from vlserve.control.rollouts import verdicts
from vlserve.control.rollouts.verdicts import Question, VerdictReport, read_since_text
from vlserve.errors import NoRelease, VerdictUnanswerable, VersionNotFound
from vlserve.settings import Settings

TAGS = ("music", "sport", "food")


class NamedRequests:
    """Lines of requests that another tool split: each names its version."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._chance = random.Random(0)
        self._number = 0
        logs.mkdir(parents=True, exist_ok=True)

    def send(
        self,
        count: int,
        fail_rate: float = 0.0,
        slower: float = 1.0,
        at: datetime | None = None,
        **fields: Any,
    ) -> None:
        """``fail_rate``, ``slower``: of version 2."""
        when = at or datetime.now(UTC)
        with (
            (self._logs / "access.jsonl").open("a", encoding="utf-8") as access,
            (self._logs / "answers.jsonl").open("a", encoding="utf-8") as answers,
        ):
            for _ in range(count):
                self._number += 1
                version = self._number % 2 + 1
                candidate = version == 2
                about = {
                    "request_id": f"r{self._number}",
                    "model": "tagger",
                    "at": when.isoformat(),
                }
                failed = candidate and self._chance.random() < fail_rate
                duration = 10 * self._chance.uniform(0.8, 1.2) * (slower if candidate else 1)
                scores = {self._chance.choice(TAGS): 0.9}
                answers.write(json.dumps(about | {"version": version, "scores": scores}) + "\n")
                line = about | {
                    "version": str(version),
                    "path": "/predictions/tagger",
                    "status": 500 if failed else 200,
                    "duration_ms": duration,
                }
                access.write(json.dumps(line | fields) + "\n")


@pytest.fixture
def named_requests(settings: Settings) -> NamedRequests:
    return NamedRequests(settings.state_dir / "logs")


@pytest.fixture
def long_ago(tagger: Control) -> str:
    """Time enough for the policy's hold."""
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def ask(control: Control, since: str = "", **more: Any) -> VerdictReport:
    return control.service.verdicts.answer(
        Question("tagger", since=since, **{"candidate": "2", **more})
    )


def alarms(report: VerdictReport) -> list[str]:
    return [gate.gate for gate in report.gates if gate.verdict is Verdict.ALARM]


def test_a_candidate_like_stable_advances(
    tagger: Control, named_requests: NamedRequests, long_ago: str
) -> None:
    named_requests.send(2000)
    report = ask(tagger, long_ago)
    assert report.verdict is Action.ADVANCE
    assert (report.candidate, report.stable, report.requests) == ("2", "1", 2000)
    gates = {gate.gate: gate for gate in report.gates}
    assert set(gates) == {"errors", "latency_p50", "latency_p99", "tags"}
    assert gates["errors"].figures["candidate"] == 1000
    assert gates["tags"].figures["candidate"] == 1000


@pytest.mark.parametrize(
    ("worse", "gate"), [({"fail_rate": 0.2}, "errors"), ({"slower": 2.0}, "latency_p50")]
)
def test_a_worse_candidate_rolls_back(
    tagger: Control,
    named_requests: NamedRequests,
    long_ago: str,
    worse: dict[str, float],
    gate: str,
) -> None:
    named_requests.send(2000, **worse)
    report = ask(tagger, long_ago)
    assert (report.verdict, gate in alarms(report)) == (Action.ROLLBACK, True)


def test_too_few_requests_hold(
    tagger: Control, named_requests: NamedRequests, long_ago: str
) -> None:
    named_requests.send(100)
    report = ask(tagger, long_ago)
    assert report.verdict is Action.HOLD
    assert "requests to the candidate: 50 of 400" in report.reason


def test_a_rollouts_own_judge_answers_for_it(tagger: Control, requests: Requests) -> None:
    with pytest.raises(NoRelease, match="name the `candidate`"):
        ask(tagger, candidate="")
    start(tagger)
    requests.send(400, {2: Behaviour(fail_rate=0.0)})
    tagger.rollout_loop.tick()
    report = ask(tagger, candidate="")
    decision = tagger.service.rollouts.latest("tagger").decision
    assert decision is not None
    assert (report.candidate, report.stable) == ("2", "1")
    assert (report.verdict, report.gates) == (decision.action, decision.gates)


def test_what_was_before_or_is_no_traffic_does_not_count(
    tagger: Control, named_requests: NamedRequests, long_ago: str
) -> None:
    named_requests.send(400, fail_rate=1.0, at=datetime.now(UTC) - timedelta(hours=2))
    named_requests.send(400, fail_rate=1.0, model="retriever")
    named_requests.send(400, status=401)  # who has no key has no say
    named_requests.send(1000)
    report = ask(tagger, long_ago)
    assert (report.verdict, report.requests) == (Action.ADVANCE, 1000)


def test_a_log_is_read_once_and_again_after_a_restart(
    tagger: Control, named_requests: NamedRequests, long_ago: str, settings: Settings
) -> None:
    reports = []
    for _ in range(5):
        named_requests.send(300, fail_rate=0.02)
        reports.append(ask(tagger, long_ago))
    assert [report.requests for report in reports] == [300, 600, 900, 1200, 1500]
    service = tagger.service.verdicts
    service._known.clear()
    assert ask(tagger, long_ago).gates == reports[-1].gates


def test_an_answer_reads_so_much_of_a_log_and_holds_until_it_has_all(
    tagger: Control, named_requests: NamedRequests, long_ago: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "MOST_BYTES", 64 * 1024)
    monkeypatch.setattr(verdicts, "_CHUNK_BYTES", 32 * 1024)
    monkeypatch.setattr(verdicts, "_BEHIND_BYTES", 1024)
    named_requests.send(3000)
    first = ask(tagger, long_ago)
    assert first.verdict is Action.HOLD
    assert first.unread_bytes > 100_000
    for _ in range(20):
        report = ask(tagger, long_ago)
        if not report.unread_bytes:
            break
    assert (report.verdict, report.requests) == (Action.ADVANCE, 3000)


def test_the_split_is_judged_where_the_weight_is_said(
    tagger: Control, named_requests: NamedRequests, long_ago: str
) -> None:
    named_requests.send(2000)
    assert ask(tagger, long_ago, weight=50).verdict is Action.ADVANCE
    report = ask(tagger, long_ago, weight=10)
    assert (report.verdict, alarms(report)) == (Action.HOLD, ["sample_ratio"])


def test_what_makes_no_comparison_is_refused(tagger: Control) -> None:
    for more, problem in (
        ({"candidate": "two"}, "no version of this stack"),
        ({"candidate": "1"}, "both 1"),
        ({"candidate": "2", "stable": "2"}, "both 2"),
        ({"candidate": "", "source": "observations"}, "say `since`"),
    ):
        with pytest.raises(VerdictUnanswerable, match=problem):
            ask(tagger, **more)
    with pytest.raises(VersionNotFound):
        ask(tagger, candidate="7")


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("90s", NOW - 90),
        ("2h", NOW - 7200),
        ("2026-01-31T09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC).timestamp()),
        ("2026-01-31T09:30:00", datetime(2026, 1, 31, 9, 30, tzinfo=UTC).timestamp()),
        ("0001-01-01", datetime(1, 1, 1, tzinfo=UTC).timestamp()),
    ],
)
def test_a_time_or_a_span_before_now(text: str, since: float) -> None:
    assert read_since_text(text, NOW) == since


@pytest.mark.parametrize(
    "text",
    ["garbage", "", "1e9", "-5m", "99999999d", "2126-01-01", "9999-12-31T23:59:59-14:00", "٣m"],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(VerdictUnanswerable):
        read_since_text(text, NOW)


def lines(count: int, fail_rate: float = 0.0, **fields: Any) -> bytes:
    """Observations of another gateway, half of each version."""
    chance = random.Random(1)
    texts = []
    for number in range(count):
        version = ("stable", "candidate")[number % 2]
        failed = version == "candidate" and chance.random() < fail_rate
        line: Mapping[str, Any] = {
            "version": version,
            "status": 503 if failed else 200,
            "latency_ms": 10 * chance.uniform(0.8, 1.2),
        }
        texts.append(json.dumps({**line, **fields}))
    return "\n".join(texts).encode()


def observed(control: Control, since: str, **more: Any) -> VerdictReport:
    return ask(control, since, candidate="", source="observations", **more)


def test_what_another_gateway_saw_is_judged_alike(tagger: Control, long_ago: str) -> None:
    take = tagger.service.observations.take
    assert take("tagger", lines(1200)).accepted == 1200
    report = observed(tagger, long_ago)
    assert (report.verdict, report.requests) == (Action.ADVANCE, 1200)
    assert (report.candidate, report.stable) == ("candidate", "stable")
    assert "tags" not in {gate.gate for gate in report.gates}
    take("tagger", lines(1200, fail_rate=0.3, label="music"))
    report = observed(tagger, long_ago)
    assert (report.verdict, alarms(report)) == (Action.ROLLBACK, ["errors"])
    assert "tags" in {gate.gate for gate in report.gates}


def test_observations_of_other_names_and_times_do_not_count(tagger: Control, long_ago: str) -> None:
    take = tagger.service.observations.take
    before = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    take("tagger", lines(400, fail_rate=1.0, at=before))
    take("tagger", lines(400, fail_rate=1.0, version="another"))
    take("retriever", lines(400, fail_rate=1.0))
    take("tagger", lines(1000))
    assert observed(tagger, long_ago).requests == 1000
    assert ask(tagger, candidate="another", source="observations").requests == 400 + 200 + 500


def test_observations_outlive_the_service(
    tagger: Control, long_ago: str, settings: Settings, engine: Any, gateway: Any
) -> None:
    tagger.service.observations.take("tagger", lines(1000))
    before = observed(tagger, long_ago)
    tagger.stop()
    second = assemble(settings, engine, gateway)
    try:
        assert observed(second, long_ago).gates == before.gates
    finally:
        second.stop()
