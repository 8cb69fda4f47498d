"""Releases in steps with callers, judged from outside by `vlserve stress --gray-release`."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from support.engines import on_triton
from support.running_stack import wait_until
from vlserve.cli import app
from vlserve.control.domain import State
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

pytestmark = on_triton

MODEL = "released"
LENIENT_MS = "60000"


@pytest.fixture(autouse=True)
def no_split_is_broken_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight are judged; 1e-7 is over five standard deviations."""
    monkeypatch.setattr("vlserve.loadgen.release_checks.SMALLEST_P", 1e-7)


@pytest.fixture(scope="module")
def model(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 1 in force; 2 is ready and like it, 3 fails a third of its requests."""
    folder = tmp_path_factory.mktemp("echo")
    for version, faults in ((1, {}), (2, {}), (3, {"fail_share": 0.33})):
        stack.control.register(pack_echo(folder, MODEL, version, delay_ms=3, **faults))
    stack.control.release(MODEL, 1)
    return MODEL


def stress(stack: RunningStack, *words: str) -> Result:
    """The command line, with the settings of the stack that is up."""
    settings = stack.settings
    environment = {
        "VLSERVE_STATE_DIR": str(settings.state_dir),
        "VLSERVE_MODEL_STORE": str(settings.model_store),
        "VLSERVE_GATEWAY": settings.gateway.model_dump_json(),
        "VLSERVE_ENGINE": settings.engine.model_dump_json(),
        "VLSERVE_CONTROL": settings.control.model_dump_json(),
    }
    command = ["stress", MODEL, "--gray-release", "--rate", "25", "--max-p99-ms", LENIENT_MS]
    return CliRunner().invoke(app, [*command, *words], env=environment)


def state_of(stack: RunningStack, version: int) -> State:
    return {v.version: v.state for v in stack.control.model(MODEL).versions}[version]


@pytest.mark.long
def test_a_whole_release_holds_every_check_and_leaves_the_model_as_it_was(
    stack: RunningStack, model: str, tmp_path: Path
) -> None:
    result = stress(stack, "--version", "2", "--duration", "4", "--json", "--out", str(tmp_path))
    report = json.loads(result.stdout)
    assert (result.exit_code, report["verdict"]) == (0, "every check held")

    assert [step["weight"] for step in report["steps"]] == [10, 30, 60, 100]
    assert all(step["free"] > 10 and step["callers"] > 10 for step in report["steps"])
    assert [each["version"] for each in report["versions"]] == [1, 2]
    assert all(each["requests"] > 50 for each in report["versions"])
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["passed"] is True
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "every check held" in page and "split 30 %" in page
    assert stack.control.model(MODEL).stable == 1
    assert state_of(stack, 2) is State.READY  # warm, for a second try


def test_a_version_that_is_taken_back_breaks_the_check(
    stack: RunningStack, model: str, tmp_path: Path
) -> None:
    result = stress(stack, "--version", "3", "--duration", "40", "--out", str(tmp_path))
    assert result.exit_code == 1
    verdict = next(line for line in result.stdout.splitlines() if line.startswith(f"{MODEL} 3: "))
    assert "broke: promoted (rolled_back: errors" in verdict
    assert "none lost" in verdict and "HTTP 500 inference_failed" in verdict
    assert stack.control.model(MODEL).stable == 1
    assert state_of(stack, 3) is State.READY


def test_a_version_that_was_taken_back_stays_for_a_look_and_then_drains(
    stack: RunningStack, model: str
) -> None:
    stack.control.start_rollout(MODEL, 2, {"weights": [50, 100], "keep_s": 2})
    stack.control.abort(MODEL)
    start = time.monotonic()
    assert state_of(stack, 2) is State.READY
    wait_until(lambda: state_of(stack, 2) is State.RETIRED, timeout_s=30)
    assert time.monotonic() - start > 2
    assert stack.control.model(MODEL).stable == 1
