"""Short runs of the programs: each says how it is called, and comes to its end.

They run in this process, so that what they import is imported once. Those that leave a stack as it
was share one, each with a model of its own.

Peers are left out: each needs an environment of its own. So is models.quantized, which needs a
trained checkpoint and two archives of it.
"""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import CHECKOUT
from benchmarks.lib.own_stack import own_stack
from benchmarks.serving import scale
from vlserve.control.domain import State
from vlserve.demo import release_demo
from vlserve.errors import ControlError
from vlserve.exporter.echo import pack_echo
from vlserve.testing.stack import RunningStack
from vlserve.testing.stand_in_engine import stand_in

pytestmark = pytest.mark.long

ROOMS = ("endurance", "models", "offline", "release", "serving")
PROGRAMS = sorted(
    f"{room}.{file.stem}"
    for room in ROOMS
    for file in (CHECKOUT / "benchmarks" / room).glob("*.py")
    if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
)
VERDICTS = (0, 1)
"""Exit codes of a drill. 1: a time was above its limit, as it may be on a busy machine."""
SMALL = {
    "epochs": 1,
    "image_height": 32,
    "image_width": 32,
    "resnet_layers": (1, 1, 1, 1),
    "resnet_width": 4,
    "hidden": 8,
}
"""Training options of a demo that is soon trained."""

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program and return what it printed."""

    def run_program(program: str, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
        module = import_module(f"benchmarks.{program}")
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *map(str, arguments)])
        try:
            code = module.main() or 0
        except SystemExit as system_exit:
            code = system_exit.code or 0
        output, errors = capsys.readouterr()
        assert code in codes, output + errors
        return output

    return run_program


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with own_stack(tmp_path_factory.mktemp("stack"), workers=1) as stack:
        yield stack


@pytest.fixture
def run_on_the_stack(
    run: Run, module_stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Run a program that takes the shared stack for its own; its idle versions leave with it."""

    def run_program(program: str, *arguments: object, asks: str = "", **options: object) -> str:
        opens = import_module(f"benchmarks.{asks or program}")
        monkeypatch.setattr(opens, "own_stack", lambda *_, **__: nullcontext(module_stack))
        return run(program, *arguments, **options)

    yield run_program
    for model in module_stack.control.models():
        with suppress(ControlError):
            module_stack.control.abort(model.model)
        for version in module_stack.control.model(model.model).versions:
            if version.state is State.READY and not version.weight:
                module_stack.control.unload(model.model, version.version)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_how_it_is_called(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{program}", raising=False)
    with pytest.raises(SystemExit) as system_exit:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
    assert not system_exit.value.code
    assert f"{program.rpartition('.')[2]}.py [-h]" in capsys.readouterr().out


def test_speed_writes_its_table_its_cells_and_its_plot(
    run_on_the_stack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.serving.speed.usable_cores", lambda: 1)
    archive = pack_echo(tmp_path, "swift", 1)
    short = ("--connections", "1,4", "--rounds", 1, "--seconds", 0.5, "--warm-up", 0.3)
    out = ("--out", tmp_path / "out")
    run_on_the_stack(
        "serving.speed",
        "--archive",
        archive,
        "--stacks",
        "torchserve",
        *short,
        *out,
        asks="lib.sides",
    )
    table = (tmp_path / "out" / "serving.md").read_text(encoding="utf-8")
    assert "| server | 1 conn. | 4 conn. | failures |" in table
    cells = (tmp_path / "out" / "serving.csv").read_text(encoding="utf-8").splitlines()
    assert len(cells) == 1 + 1 + 2 * 2  # heads; the limit; with and without the gateway
    assert (tmp_path / "out" / "serving.png").stat().st_size


def test_scale_writes_its_figures_and_plots(
    run_on_the_stack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "WIDTHS", (320, scale.BASE_WIDTH))
    monkeypatch.setattr(scale, "LENGTHS", (1, scale.BASE_LENGTH))
    archive = pack_echo(tmp_path, "small", 1)
    short = ("--models", "1,2", "--rounds", 1, "--seconds", 0.3)
    run_on_the_stack("serving.scale", "--archive", archive, *short, "--out", tmp_path)
    figures = (tmp_path / "scale.csv").read_text(encoding="utf-8").splitlines()
    assert [line for line in figures if line.startswith("models,2,failures")] == [
        "models,2,failures,0.00"
    ]
    assert len(list(tmp_path.glob("scale-*.png"))) == 3


def test_warm_up_compares_stretches_of_answers(run_on_the_stack: Run, tmp_path: Path) -> None:
    out = tmp_path / "warm_up.json"
    archive = pack_echo(tmp_path, "warming", 1, delay_ms=20)
    short = ("--rounds", 2, "--seconds", 8, "--stretch", 20, "--connections", 2)
    run_on_the_stack("serving.warm_up", "--archive", archive, *short, "--out", out)
    assert [stretch["number"] for stretch in json.loads(out.read_text(encoding="utf-8"))] == [1, 2]


def test_hostile_requests_stay_within_their_costs(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "hostile.json"
    run("serving.hostile", "--only", "million", "--out", out, codes=VERDICTS)
    answers = {
        entry["request"]: entry["answer"] for entry in json.loads(out.read_text(encoding="utf-8"))
    }
    assert len(answers) > 3
    assert set(answers.values()) == {"body_too_complex"}


def test_load_asks_one_url(run: Run) -> None:
    with stand_in("engine-0") as engine:
        url = f"http://{engine.host}:{engine.port}/predictions/tagger/1"
        headers = (f"Authorization:Bearer {engine.token}", "X-Request-Id:load")
        options = [part for header in headers for part in ("--header", header)]
        short = ("--seconds", 0.3, "--warm-up", 0.1)
        output = run("serving.load", "--url", url, *options, *short, "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["connections"] for line in lines] == [1, 4, 16, 64]
    assert all(line["answered"] and not line["failures"] for line in lines)


def test_hot_update_loses_no_request(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "hot_update.json"
    run("release.hot_update", "--rounds", 1, "--rate", 20, "--out", out, codes=VERDICTS)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["rounds"], result["lost"], result["wrong"]) == (1, {}, {})


def test_recovery_of_a_worker_breaches_nothing(run_on_the_stack: Run, tmp_path: Path) -> None:
    out = tmp_path / "recovery.json"
    short = ("--only", "worker", "--rate", 20, "--clients", 6)
    run_on_the_stack("release.recovery", *short, "--out", out)
    (crash,) = json.loads(out.read_text(encoding="utf-8"))["crashes"]
    assert (crash["killed"], crash["breaches"]) == ("worker", [])


def test_rollback_times_each_way_back(run_on_the_stack: Run) -> None:
    table = run_on_the_stack("release.rollback", "--rounds", 1, "--rate", 20)
    assert all(word in table for word in ("rollback", "abort", "the judge"))


def test_shadow_costs_no_request(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "shadow.json"
    run("release.shadow", "--rounds", 1, "--seconds", 1, "--rate", 60, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["lost"] == 0
    assert all(bool(kind["copies"]) == bool(kind["percent"]) for kind in result["kinds"])


def test_offline_ways_are_held_against_the_limit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "offline.json"
    monkeypatch.setattr("benchmarks.offline.batch.PHOTOS", 2)
    folder = tmp_path / "bench" / "archives"
    monkeypatch.setattr("benchmarks.offline.batch.default_folder", lambda: folder)
    archive = pack_echo(tmp_path, "offline", 1)
    short = ("--rows", 48, "--workers", 1, "--rounds", 1, "--ways", "job,pool", "--out", out)
    table = run("offline.batch", "--archive", archive, *short)
    assert "vlserve batch" in table and "multiprocessing" in table
    (turns,) = json.loads(out.read_text(encoding="utf-8"))
    assert [turn["way"] for turn in turns] == ["limit", "vlserve batch", "multiprocessing"]


def test_covers_have_the_gateways_answers(
    run_on_the_stack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "covers.json"
    demo = partial(release_demo, items=60, options=SMALL)
    monkeypatch.setattr("benchmarks.offline.covers.release_demo", demo)
    monkeypatch.setattr("vlserve.demo.VERSIONS", (1,))
    run_on_the_stack("offline.covers", "--rows", 30, "--out", out)
    outcomes = json.loads(out.read_text(encoding="utf-8"))
    assert [outcome["kind"] for outcome in outcomes] == ["parquet", "jsonl", "tar"]
    assert all(outcome["rows"] == 30 and outcome["other_labels"] == 0 for outcome in outcomes)
    assert max(outcome["largest_difference"] for outcome in outcomes) <= 1e-6


def test_kills_lose_no_row(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    short = ("--rows", 3000, "--workers", 1, "--driver-kill", 2, "--worker-kill", 2)
    run("offline.kills", *short, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["driver_kills"] and result["wrong"] == []


def test_split_is_by_weight(run: Run) -> None:
    assert run("release.split", "--callers", 100).splitlines()[-1] == "passed"


def test_judge_simulation_prints_both_tables(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "judge.json"
    run("release.judge_simulation", "--releases", 5, "--looks", 20, "--json", out)
    assert len(json.loads(out.read_text(encoding="utf-8"))) > 20


def test_soak_answers_right_and_refuses_what_is_bad(run_on_the_stack: Run, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    short = ("--seconds", 4, "--rate", 10, "--clients", 4)
    run_on_the_stack("endurance.soak", *short, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["requests"] and not result["failures"] and not result["processes_replaced"]
    assert result["refused"] and all(status.startswith("4") for status in result["refused"])


def test_operators_are_refused_or_obeyed(run_on_the_stack: Run, tmp_path: Path) -> None:
    out = tmp_path / "operators.json"
    short = ("--operations", 60, "--operators", 3, "--rate", 5)
    run_on_the_stack("endurance.operators", *short, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["operations"], result["faults"]) == (60, [])


def test_the_consoles_pages_have_their_costs(
    run_on_the_stack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "console.json"
    monkeypatch.setattr("benchmarks.serving.console._PAUSE_S", 0.1)
    short = ("--seconds", 1, "--rounds", 1, "--lines", 2000, "--viewers", 3)
    run_on_the_stack("serving.console", *short, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["viewers"] == 3 and "models/watched/rollout" in result["page_ms"]


def test_fuzz_finds_no_server_error(run_on_the_stack: Run, tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    run_on_the_stack("endurance.fuzz", "--examples", 5, "--rate", 5, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["exit_codes"] == {"gateway": 0, "control": 0}
    assert all(result["requests"].values())


def test_slow_bodies_leave_another_caller_served(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "slow_bodies.json"
    run("endurance.slow_bodies", "--bodies", 8, "--mib", 2, "--seconds", 3, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result["outcomes"]) == {"answered"} and result["largest_mib"] > 0


def test_attention_measures_memory_and_time() -> None:
    """It measures in a process of its own."""
    words = ["--measure", "chunk 4", "--visual", "525", "--runs", "1"]
    command = [sys.executable, "-m", "benchmarks.models.attention", *words]
    result = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    cost = json.loads(result.stdout)
    assert cost["peak_mib"] > 0 and cost["time_ms"] > 0


def test_attention_quality_compares_kinds_of_keys(run: Run) -> None:
    table = run("models.attention_quality", "--items", 60, "--epochs", 1, "--seeds", 1)
    assert all(f"| {kind} |" in table for kind in ("full", "chunk 4", "sparse 4"))
