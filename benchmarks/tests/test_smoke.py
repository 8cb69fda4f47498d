"""Short runs of the programs: each says how it is called, and comes to its end.

Peers are left out: each needs an environment of its own. So is models.quantized, which needs a
trained checkpoint and two archives of it.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import CHECKOUT
from vlserve.exporter.echo import pack_echo
from vlserve.testing.stand_in_engine import stand_in

pytestmark = pytest.mark.long

ROOMS = ("endurance", "models", "offline", "release", "serving")
PROGRAMS = sorted(
    f"{room}.{file.stem}"
    for room in ROOMS
    for file in (CHECKOUT / "benchmarks" / room).glob("*.py")
    if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
)
WITHIN_S = 240.0
VERDICTS = (0, 1)
"""Exit codes of a drill. 1: a time was above its limit, as it may be on a busy machine."""


def run(program: str, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program from the checkout and return what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{program}", *map(str, arguments)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        try:
            output, errors = process.communicate(timeout=WITHIN_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it stops the stack that it started
            raise
    assert process.returncode in codes, output + errors
    return output


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack_echo(tmp_path, "tagger", 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_how_it_is_called(program: str) -> None:
    assert f"{program.rpartition('.')[2]}.py [-h]" in run(program, "--help")


def test_speed_writes_its_table_its_cells_and_its_plot(archive: Path, tmp_path: Path) -> None:
    short = ("--connections", "1,4", "--rounds", 1, "--seconds", 1, "--warm-up", 0.3)
    run("serving.speed", "--archive", archive, *short, "--out", tmp_path / "out")
    table = (tmp_path / "out" / "serving.md").read_text(encoding="utf-8")
    assert "| server | 1 conn. | 4 conn. | failures |" in table
    cells = (tmp_path / "out" / "serving.csv").read_text(encoding="utf-8").splitlines()
    assert len(cells) == 1 + 1 + 2 * 2  # heads; the limit; with and without the gateway
    assert (tmp_path / "out" / "serving.png").stat().st_size


def test_scale_writes_its_figures_and_plots(archive: Path, tmp_path: Path) -> None:
    short = ("--models", "1,2", "--rounds", 1, "--seconds", 0.3)
    run("serving.scale", "--archive", archive, *short, "--out", tmp_path)
    figures = (tmp_path / "scale.csv").read_text(encoding="utf-8").splitlines()
    assert [line for line in figures if line.startswith("models,2,failures")] == [
        "models,2,failures,0.00"
    ]
    assert len(list(tmp_path.glob("scale-*.png"))) == 3


def test_warm_up_compares_stretches_of_answers(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "warm_up.json"
    short = ("--rounds", 2, "--seconds", 8, "--stretch", 20, "--connections", 2)
    run("serving.warm_up", "--archive", archive, *short, "--out", out)
    assert [each["number"] for each in json.loads(out.read_text(encoding="utf-8"))] == [1, 2]


def test_hostile_requests_stay_within_their_costs(tmp_path: Path) -> None:
    out = tmp_path / "hostile.json"
    run("serving.hostile", "--only", "million", "--out", out, codes=VERDICTS)
    answers = {
        each["request"]: each["answer"] for each in json.loads(out.read_text(encoding="utf-8"))
    }
    assert len(answers) > 3
    assert set(answers.values()) == {"body_too_complex"}


def test_load_asks_one_url(tmp_path: Path) -> None:
    with stand_in("engine-0") as engine:
        url = f"http://{engine.host}:{engine.port}/predictions/tagger/1"
        headers = (f"Authorization:Bearer {engine.token}", "X-Request-Id:load")
        options = [part for header in headers for part in ("--header", header)]
        said = run("serving.load", "--url", url, *options, "--seconds", 0.5, "--json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["connections"] for line in lines] == [1, 4, 16, 64]
    assert all(line["answered"] and not line["failures"] for line in lines)


def test_hot_update_loses_no_request(tmp_path: Path) -> None:
    out = tmp_path / "hot_update.json"
    run("release.hot_update", "--rounds", 1, "--rate", 20, "--out", out, codes=VERDICTS)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["rounds"], result["lost"], result["wrong"]) == (1, {}, {})


def test_recovery_of_a_worker_breaches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "recovery.json"
    run("release.recovery", "--only", "worker", "--rate", 20, "--clients", 6, "--out", out)
    (crash,) = json.loads(out.read_text(encoding="utf-8"))["crashes"]
    assert (crash["killed"], crash["breaches"]) == ("worker", [])


def test_rollback_times_each_way_back() -> None:
    table = run("release.rollback", "--rounds", 1, "--rate", 20)
    assert all(word in table for word in ("rollback", "abort", "the judge"))


def test_shadow_costs_no_request(tmp_path: Path) -> None:
    out = tmp_path / "shadow.json"
    run("release.shadow", "--rounds", 1, "--seconds", 1, "--rate", 60, "--out", out)
    assert json.loads(out.read_text(encoding="utf-8"))["lost"] == 0


def test_offline_ways_are_held_against_the_limit(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "offline.json"
    short = ("--rows", 96, "--workers", 2, "--rounds", 1, "--ways", "job,pool", "--out", out)
    table = run("offline.batch", "--archive", archive, *short)
    assert "vlserve batch" in table and "multiprocessing" in table
    (turns,) = json.loads(out.read_text(encoding="utf-8"))
    assert [turn["way"] for turn in turns] == ["limit", "vlserve batch", "multiprocessing"]


def test_covers_have_the_gateways_answers(tmp_path: Path) -> None:
    out = tmp_path / "covers.json"
    run("offline.covers", "--rows", 100, "--out", out)
    outcomes = json.loads(out.read_text(encoding="utf-8"))
    assert [each["kind"] for each in outcomes] == ["parquet", "jsonl", "tar"]
    assert all(each["rows"] == 100 and each["other_labels"] == 0 for each in outcomes)
    assert max(each["largest_difference"] for each in outcomes) <= 1e-6


def test_kills_lose_no_row(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    run("offline.kills", "--rows", 3000, "--driver-kill", 3, "--worker-kill", 2, "--out", out)
    assert json.loads(out.read_text(encoding="utf-8"))["wrong"] == []


def test_split_is_by_weight() -> None:
    assert run("release.split", "--callers", 300).splitlines()[-1] == "passed"


def test_judge_simulation_prints_both_tables(tmp_path: Path) -> None:
    out = tmp_path / "judge.json"
    run("release.judge_simulation", "--releases", 10, "--looks", 50, "--json", out)
    assert len(json.loads(out.read_text(encoding="utf-8"))) > 20


def test_soak_answers_right_and_refuses_what_is_bad(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    run("endurance.soak", "--seconds", 8, "--rate", 10, "--clients", 4, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["requests"] and not result["failures"] and not result["processes_replaced"]
    assert result["refused"] and all(status.startswith("4") for status in result["refused"])


def test_operators_are_refused_or_obeyed(tmp_path: Path) -> None:
    out = tmp_path / "operators.json"
    run("endurance.operators", "--operations", 60, "--operators", 3, "--rate", 5, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["operations"], result["faults"]) == (60, [])


def test_the_consoles_pages_have_their_costs(tmp_path: Path) -> None:
    out = tmp_path / "console.json"
    short = ("--seconds", 1, "--rounds", 1, "--lines", 2000, "--viewers", 3)
    run("serving.console", *short, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["viewers"] == 3 and "models/tagger/rollout" in result["page_ms"]


def test_fuzz_finds_no_server_error(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    run("endurance.fuzz", "--examples", 5, "--rate", 5, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["exit_codes"] == {"gateway": 0, "control": 0}
    assert all(result["requests"].values())


def test_slow_bodies_leave_another_caller_served(tmp_path: Path) -> None:
    out = tmp_path / "slow_bodies.json"
    run("endurance.slow_bodies", "--bodies", 8, "--mib", 2, "--seconds", 3, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result["outcomes"]) == {"answered"} and result["largest_mib"] > 0


def test_attention_measures_memory_and_time() -> None:
    cost = json.loads(run("models.attention", "--measure", "chunk 4", "--visual", 525, "--runs", 1))
    assert cost["peak_mib"] > 0 and cost["time_ms"] > 0


def test_attention_quality_compares_kinds_of_keys() -> None:
    table = run("models.attention_quality", "--items", 60, "--epochs", 1, "--seeds", 1)
    assert all(f"| {kind} |" in table for kind in ("full", "chunk 4", "sparse 4"))
