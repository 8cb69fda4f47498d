"""Runs of `vlserve stress` as the console reads them, from what the load kit itself writes."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from vlserve.control.api.console.load_runs import StagePart, load_tests_screen, newest_runs
from vlserve.loadgen.stage_times import StageMeans, WhereTimeWent
from vlserve.loadgen.stress_run import StressResult
from vlserve.loadgen.stress_summary import ClientUse, LoadSummary

_FIGURES = LoadSummary(
    requests=100,
    failures={},
    error_rate=0.0,
    rps=50.0,
    p50_ms=10.0,
    p95_ms=20.0,
    p99_ms=30.0,
    max_ms=40.0,
    versions={2: 100},
    longest_gap_ms=50.0,
)
_MEANS = StageMeans(100, 20.0, {"engine": 5.0, "infer": 15.0})
RESULT = StressResult(
    url="http://127.0.0.1:8080",
    model="tagger",
    load="4 callers",
    duration_s=30,
    max_error_rate=0.0,
    max_p99_ms=1000.0,
    figures=_FIGURES,
    warm_up=_FIGURES,
    client=ClientUse(1, 0.5, 1.0),
    client_saturated=False,
    breaches=(),
    passed=True,
    verdict="the limits held",
    stages=WhereTimeWent(1.0, _MEANS, _MEANS),
    report=Path("report.html"),
    result=Path("result.json"),
)


def _write(folder: Path, result: StressResult, at: float) -> None:
    folder.mkdir(parents=True)
    file = folder / "result.json"
    file.write_text(json.dumps(asdict(result), default=str), encoding="utf-8")
    os.utime(file, (at, at))


def test_runs_are_read_newest_first(tmp_path: Path) -> None:
    _write(tmp_path / "tagger-1", RESULT, 1000.0)
    _write(tmp_path / "tagger-2" / "rate-20", replace(RESULT, stages=None), 3000.0)
    _write(tmp_path / "other-1", replace(RESULT, model="other"), 2000.0)
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "result.json").write_text('{"checks": []}', encoding="utf-8")
    (tmp_path / "huge").mkdir()
    with (tmp_path / "huge" / "result.json").open("wb") as file:
        file.truncate(2**30)
    runs = newest_runs(tmp_path)
    assert [run.folder for run in runs] == ["tagger-2/rate-20", "other-1", "tagger-1"]
    assert runs[0].stages == () and runs[0].at.startswith("1970-01-01T00:50")
    assert runs[2].stages == (
        StagePart("engine", 5.0, 0.0, 25.0),
        StagePart("infer", 15.0, 25.0, 75.0),
    )
    assert runs[2].result.figures.versions == {2: 100}
    screen = load_tests_screen(runs, "other")
    assert [run.folder for run in screen["runs"]] == ["other-1"]
    assert screen["models"] == ["other", "tagger"]


def test_no_folder_has_no_runs(tmp_path: Path) -> None:
    assert newest_runs(tmp_path / "gone") == []
