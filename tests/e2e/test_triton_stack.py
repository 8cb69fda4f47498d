"""A whole stack on Triton: the four verbs, and what Triton itself does not mend. Real parts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.background_load import load_on
from support.dashboard import unanswered
from support.engine_workers import worker_pids
from support.request_bodies import GOOD_JSON
from support.running_stack import make_settings, wait_until
from support.running_triton import need_triton
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.errors import LoadFailed
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.testing import RunningStack, running_stack
from vlserve_worker.crash_notes import notes_folder

MODEL = "on-triton"
JSON = {"Content-Type": "application/json"}
_BACK_S = 240.0


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Version 1 has the traffic, version 2 is ready."""
    need_triton()
    folder = tmp_path_factory.mktemp("on-triton")
    settings = make_settings(folder, workers=2)
    engine = settings.engine.model_copy(update={"kind": "triton", "response_timeout_s": 5})
    with running_stack(settings.model_copy(update={"engine": engine})) as stack:
        for version in (1, 2):
            stack.control.register(pack_echo(folder, MODEL, version, delay_ms=20))
        stack.control.release(MODEL, 1)
        yield stack
    assert _shared_memory(stack) == []


def _shared_memory(own_stack: RunningStack) -> list[Path]:
    (endpoint,) = endpoints(own_stack.settings)
    conf = (own_stack.settings.state_dir / "supervisor" / "supervisord.conf").read_text("utf-8")
    prefix = conf.partition('SHM_PREFIX="')[2].partition('"')[0]
    assert prefix.endswith(f"-{endpoint.name}-")
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def _version(own_stack: RunningStack) -> str:
    response = own_stack.http.post(f"/predictions/{MODEL}", content=GOOD_JSON, headers=JSON)
    assert response.status_code == 200, response.text
    return str(response.headers["x-model-version"])


def test_release_and_roll_back(own_stack: RunningStack) -> None:
    assert _version(own_stack) == "1"
    own_stack.control.release(MODEL, 2)
    assert _version(own_stack) == "2"
    assert own_stack.control.rollback(MODEL).version == 1
    assert _version(own_stack) == "1"
    assert own_stack.control.health().status == "ok"


def test_a_bad_request_is_answered_as_on_torchserve(own_stack: RunningStack) -> None:
    response = own_stack.http.post(f"/predictions/{MODEL}", content=b"{bad", headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "body_unreadable")


def test_stress_tells_stage_times_and_each_panel_has_its_metrics(
    own_stack: RunningStack, tmp_path: Path
) -> None:
    plan = StressPlan(
        url=own_stack.gateway_url, model=MODEL, rate_per_s=10, duration_s=1, max_p99_ms=60_000.0
    )
    result = run_stress(plan, tmp_path)
    assert result.figures.failures == {}
    assert result.stages is not None and result.stages.share == 1.0
    assert all(value > 0 for value in result.stages.all.stage_ms.values()), result.stages
    assert unanswered(own_stack, other="torchserve") == {}


def test_its_own_api_is_closed_without_the_tokens(own_stack: RunningStack) -> None:
    (endpoint,) = endpoints(own_stack.settings)
    with httpx.Client(base_url=f"http://127.0.0.1:{endpoint.inference_port}") as bare:
        for method, path in (
            ("POST", f"/v2/models/{MODEL}-1/infer"),
            ("POST", "/v2/repository/index"),
            ("POST", f"/v2/repository/models/{MODEL}-1/unload"),
            ("GET", "/v2/systemsharedmemory/status"),
            ("GET", "/v2/logging"),
            ("GET", f"/v2/models/{MODEL}-1/config"),
        ):
            assert bare.request(method, path).status_code == 403, path
    assert _version(own_stack) == "1"


def test_what_fails_to_load_says_why_and_leaves_nothing(
    own_stack: RunningStack, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, MODEL, 3)
    before = worker_pids(own_stack.settings, MODEL)
    limit = own_stack.settings.engine.model_copy(update={"worker_memory_mib": 1})
    (endpoint,) = endpoints(own_stack.settings)
    group = EngineGroup([endpoint], limit)
    try:
        with pytest.raises(LoadFailed, match="on-triton 3 on engine-0: "):
            group.load(MODEL, 3, archive)
    finally:
        group.close()
    assert worker_pids(own_stack.settings, MODEL) == before
    # The stack's own control service takes away what it does not know, at the same time.
    wait_until(lambda: not list(endpoint.store.glob(f"{MODEL}-3*")))


@pytest.mark.parametrize(
    "fault",
    [psutil.Process.kill, pytest.param(psutil.Process.suspend, marks=pytest.mark.long)],
    ids=["killed", "suspended"],
)
def test_one_of_two_workers_that_ends_under_load_costs_no_request(
    own_stack: RunningStack, fault: Callable[[psutil.Process], None]
) -> None:
    old = worker_pids(own_stack.settings, MODEL)[1]

    def is_replaced() -> bool:
        new = worker_pids(own_stack.settings, MODEL)[1]
        return len(new) == len(old) and len(set(new) - set(old)) == 1

    with load_on(own_stack.gateway_url, MODEL, [None] * 4) as load:
        wait_until(lambda: len(load.requests) > 20, _BACK_S)
        fault(psutil.Process(old[0]))
        wait_until(is_replaced, _BACK_S)
        wait_until(lambda: own_stack.control.health().status == "ok", _BACK_S)
        count = len(load.requests)
        wait_until(lambda: len(load.requests) > count + 20, _BACK_S)
    assert {each.status for each in load.requests} == {200}


def test_a_server_that_dies_comes_back_with_its_versions(own_stack: RunningStack) -> None:
    (endpoint,) = endpoints(own_stack.settings)
    pid = endpoint.pid_file.read_text(encoding="utf-8")
    psutil.Process(int(pid)).kill()

    def is_back() -> bool:
        response = own_stack.http.post(f"/predictions/{MODEL}", content=GOOD_JSON, headers=JSON)
        another = endpoint.pid_file.read_text(encoding="utf-8") != pid
        both = another and sorted(worker_pids(own_stack.settings, MODEL)) == [1, 2]
        return both and response.is_success and own_stack.control.health().status == "ok"

    wait_until(is_back, _BACK_S)


def test_an_unloaded_version_leaves_nothing(own_stack: RunningStack) -> None:
    (endpoint,) = endpoints(own_stack.settings)
    notes = notes_folder(own_stack.settings.state_dir, MODEL, 2)
    assert notes.is_dir()
    own_stack.control.unload(MODEL, 2)
    assert not notes.exists()
    assert sorted(worker_pids(own_stack.settings, MODEL)) == [1]
    assert not list(endpoint.store.glob(f"{MODEL}-2*"))
    assert not (endpoint.folder / "repository" / f"{MODEL}-2").exists()
