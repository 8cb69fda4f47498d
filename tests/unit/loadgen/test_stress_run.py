"""Real Locust runs against a server in a thread. A run takes four to six seconds."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.answering_server import Behaviour, serve
from vlserve.errors import DataError, StressError
from vlserve.loadgen.max_rate import find_limit
from vlserve.loadgen.stage_times import STAGES
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import StressResult, run_stress
from vlserve.loadgen.stress_tables import (
    limit_table,
    limit_verdict,
    run_table,
    stage_table,
)

pytestmark = pytest.mark.server


def run(behaviour: Behaviour, folder: Path, **plan: Any) -> StressResult:
    with serve(behaviour) as url:
        times = {"duration_s": 2, "warm_up_s": 1}
        return run_stress(StressPlan(url=url, model="tagger", **(times | plan)), folder)


def real_covers(name: str) -> Path:
    """Write a.jpg and a data set whose line has the cover ``name``, into the working folder."""
    Path("a.jpg").write_bytes(b"\xff\xd8")
    data = Path("data.jsonl")
    data.write_text(f'{{"id": "1", "img": "{name}", "text": "标题"}}\n', encoding="utf-8")
    return data


@pytest.mark.long
def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(tmp_path: Path) -> None:
    stall = {"delay_s": 0.01, "stall_from_s": 1.5, "stall_s": 1.0}
    closed_loop = run(Behaviour(**stall), tmp_path / "closed", users=2).figures
    open_loop = run(Behaviour(**stall), tmp_path / "open", rate_per_s=40).figures

    assert closed_loop.failures == open_loop.failures == {}
    assert closed_loop.longest_gap_ms > 900 and open_loop.longest_gap_ms > 900
    # Half of the open loop's requests came due in the stall, and waited for half of it on average.
    # Of the closed loop's, two did: one a user.
    assert open_loop.p95_ms is not None and open_loop.p95_ms > 500
    assert closed_loop.p95_ms is not None and closed_loop.p95_ms < open_loop.p95_ms


def test_a_closed_loop_keeps_its_connections_and_tells_versions_apart(tmp_path: Path) -> None:
    behaviour = Behaviour(version=7, delay_s=0.005)
    result = run(
        behaviour, tmp_path, users=3, version=7, sticky_share=0.5, api_key="k-1", max_p99_ms=60_000
    )

    assert result.passed and result.breaches == ()
    figures = result.figures
    assert set(figures.versions) == {7}
    assert figures.requests + result.warm_up.requests == behaviour.seen
    assert len(behaviour.connections) == 3
    assert behaviour.keys == {"k-1"}
    assert 0 < behaviour.sticky < behaviour.seen
    assert "/predictions/tagger/7 by version 7" in result.report.read_text(encoding="utf-8")
    record = json.loads(result.result.read_text(encoding="utf-8"))
    assert record["figures"]["p99_ms"] == figures.p99_ms
    assert record["passed"] is True
    assert record["verdict"] == result.verdict
    page = result.report.read_text(encoding="utf-8")
    assert f"<h1>passed</h1><p>{result.verdict}" in page
    heads, rows = run_table(result)
    assert heads == ("", "3 users", "warm-up")
    assert [row[1] for row in rows if row[0] == "answers by"] == [f"version 7: {figures.requests}"]
    assert result.verdict.startswith("3 users held")
    assert result.stages is not None and result.stages.share == 1
    assert result.stages.all.stage_ms["queue"] == pytest.approx(0.5)
    assert [row[0] for row in stage_table(result.stages)[1]] == [*STAGES, "together"]
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    everything = (tmp_path / "locust.log").read_text(encoding="utf-8") + json.dumps(record)
    assert "k-1" not in everything


@pytest.mark.parametrize(
    "load",
    [
        pytest.param({"users": 4}, id="closed", marks=pytest.mark.long),
        pytest.param({"rate_per_s": 40}, id="open"),
    ],
)
def test_several_processes_send_one_load_of_real_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = real_covers("a.jpg")  # Locust runs in another folder
    behaviour = Behaviour(delay_s=0.02)
    out = tmp_path / "out"
    result = run(behaviour, out, processes=2, max_p99_ms=60_000, data=data, **load)
    assert result.breaches == () and result.figures.failures == {}
    assert result.client.processes == 2 and result.client.cpu_share > 0
    assert 0 < result.figures.requests + result.warm_up.requests <= behaviour.seen
    assert len(behaviour.connections) >= 2
    if "rate_per_s" in load:
        assert 78 <= result.figures.requests <= 82
    (row,) = [row for row in run_table(result)[1] if row[0] == "client"]
    assert row[1].startswith("2 processes, busiest ")


def test_failures_are_counted_and_decide(tmp_path: Path) -> None:
    behaviour = Behaviour(fail_every=4)
    result = run(behaviour, tmp_path, rate_per_s=40, max_error_rate=0.2)

    total = result.figures.requests + result.warm_up.requests
    failures = [f.failures["HTTP 503 overloaded"] for f in (result.figures, result.warm_up)]
    assert total == behaviour.seen
    assert sum(failures) == behaviour.seen // 4
    assert not result.passed
    assert result.breaches[0].startswith("error rate 2")
    assert "broke: error rate" in result.verdict
    page = result.report.read_text(encoding="utf-8")
    assert "<h1>FAILED</h1><p>40 requests/s broke: error rate" in page


def test_an_answer_that_is_wrong_in_form_is_a_failure(tmp_path: Path) -> None:
    result = run(Behaviour(version=2, echo_id=False), tmp_path, rate_per_s=20)
    assert result.figures.failures == {"request id not echoed": result.figures.requests}
    assert result.figures.versions == {2: result.figures.requests}
    assert result.breaches == ("no request was answered right",)


def test_overload_is_counted_and_not_hidden(tmp_path: Path) -> None:
    behaviour = Behaviour(delay_s=0.5, slots=1)
    result = run(behaviour, tmp_path, rate_per_s=40, max_in_flight=4, timeout_s=10)

    both = (result.figures, result.warm_up)
    unsent = sum(figures.failures.get("not sent: 4 in flight", 0) for figures in both)
    assert unsent + behaviour.seen == sum(figures.requests for figures in both)
    assert unsent > behaviour.seen
    # The schedule went on: what was due was neither put off nor forgotten.
    assert sum(figures.requests for figures in both) >= 100
    assert not result.passed


def test_a_request_without_an_answer_times_out_and_counts(tmp_path: Path) -> None:
    behaviour = Behaviour(stall_from_s=1.5, stall_s=20)
    result = run(behaviour, tmp_path, rate_per_s=20, timeout_s=1)

    assert set(result.figures.failures) == {"timeout"}
    both = (result.figures, result.warm_up)
    assert sum(figures.requests for figures in both) == behaviour.seen
    assert result.figures.longest_gap_ms > 1000


def test_no_server_is_a_verdict_not_a_crash(tmp_path: Path) -> None:
    with serve(Behaviour()) as url:
        pass
    plan = StressPlan(url=url, model="tagger", users=2, duration_s=1, warm_up_s=0)
    result = run_stress(plan, tmp_path)
    assert set(result.figures.failures) == {"connection refused"}
    assert not result.passed
    assert result.figures.requests < 100  # users pause where there is no server


def test_a_cover_that_is_not_there_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="line 1"):
        run(Behaviour(), tmp_path / "out", rate_per_s=20, data=real_covers("b.jpg"))


def test_an_interrupt_ends_locust(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    pids: list[int] = []

    def interrupt(message: str) -> None:
        children = psutil.Process().children(recursive=True)
        pids.extend(child.pid for child in children if child.pid not in before)
        raise KeyboardInterrupt

    plan = StressPlan(url="http://127.0.0.1:9", model="tagger", users=1, duration_s=60)
    with pytest.raises(KeyboardInterrupt):
        run_stress(plan, tmp_path, interrupt)
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0])


def test_locust_failing_is_an_error_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loadtest").mkdir()
    (tmp_path / "loadtest" / "locustfile.py").write_text(
        "raise RuntimeError('no such mix')\n", encoding="utf-8"
    )
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", os.fspath(tmp_path))
    plan = StressPlan(url="http://127.0.0.1:9", model="tagger", users=1)
    with pytest.raises(StressError, match=r"exit code 1.*no such mix"):
        run_stress(plan, tmp_path / "out")


@pytest.mark.long
def test_the_limit_of_a_server_with_a_known_capacity(tmp_path: Path) -> None:
    behaviour = Behaviour(delay_s=0.02, slots=1)  # at most 50 a second
    with serve(behaviour) as url:
        plan = StressPlan(url=url, model="tagger", rate_per_s=40, duration_s=2, warm_up_s=1)
        limit = find_limit(plan, tmp_path, precision=4.0)

    # 80 a second for 3 s leaves at least 90 requests waiting, the last one for more than 1.8 s.
    assert limit.highest_held_per_s is not None
    assert limit.highest_held_per_s < 80
    assert limit.lowest_broken_per_s is not None
    assert limit.lowest_broken_per_s <= 80
    heads, rows = limit_table(limit)
    assert len(rows) == len(limit.steps) and len(heads) == len(rows[0])
    assert f"held: {limit.highest_held_per_s:g} requests/s" in limit_verdict(limit)
    record = json.loads((tmp_path / "limit.json").read_text(encoding="utf-8"))
    assert record["highest_held_per_s"] == limit.highest_held_per_s
    assert all(Path(step["result"]["report"]).is_file() for step in record["steps"])
