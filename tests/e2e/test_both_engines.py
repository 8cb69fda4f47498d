"""A stack of both engines: each version on its own, and traffic that goes from one to the other
without a lost request. Real TorchServe, Triton and Envoy."""

import threading
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest

from support.request_bodies import GOOD_JSON
from support.running_stack import make_settings, wait_until
from support.running_triton import need_triton
from vlserve.control.domain import RolloutStatus
from vlserve.control.engine.endpoints import endpoints
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack, running_stack, with_free_ports

MODEL = "on-both"
JSON = {"Content-Type": "application/json"}
_BACK_S = 240.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Version 1 is on TorchServe and has the traffic, version 2 is on Triton."""
    need_triton()
    folder = tmp_path_factory.mktemp("on-both")
    settings = make_settings(folder, workers=2)
    engine = settings.engine.model_copy(update={"kind": "both"})
    with running_stack(with_free_ports(settings.model_copy(update={"engine": engine}))) as stack:
        stack.control.register(pack_echo(folder, MODEL, 1), engine="torchserve")
        stack.control.register(pack_echo(folder, MODEL, 2), engine="triton")
        stack.control.release(MODEL, 1)
        yield stack


class Callers:
    """Two callers who ask one after the other until they are told to stop."""

    def __init__(self, both: RunningStack) -> None:
        self._both = both
        self.answers: Counter[str] = Counter()
        """Status and version -> answers."""
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def answered(self, what: str) -> bool:
        return self.answers[what] > 20

    def _ask(self) -> None:
        with httpx.Client(base_url=self._both.gateway_url, timeout=60.0, trust_env=False) as http:
            while not self._stopping.wait(0.01):
                response = http.post(f"/predictions/{MODEL}", content=GOOD_JSON, headers=JSON)
                version = response.headers.get("x-model-version", "none")
                self.answers[f"{response.status_code} by {version}"] += 1


def test_each_version_is_on_its_engine(both: RunningStack) -> None:
    versions = {each.version: each for each in both.control.model(MODEL).versions}
    assert [versions[number].engine for number in (1, 2)] == ["torchserve", "triton"]
    wait_until(
        lambda: (
            [dict(each.workers_ready) for each in both.control.model(MODEL).versions]
            == [{"engine-0": 2}, {"engine-1": 2}]
        )
    )


def test_traffic_moves_to_the_other_engine_and_back(both: RunningStack) -> None:
    with Callers(both) as callers:
        wait_until(lambda: callers.answered("200 by 1"))
        both.control.release(MODEL, 2)
        wait_until(lambda: callers.answered("200 by 2"))
        assert both.control.rollback(MODEL).version == 1
        before = callers.answers["200 by 1"]
        wait_until(lambda: callers.answers["200 by 1"] > before + 20)
    assert set(callers.answers) == {"200 by 1", "200 by 2"}


def test_a_rollout_from_one_engine_to_the_other_is_judged(both: RunningStack) -> None:
    policy = {
        "weights": [50, 100],
        "hold_s": 0,
        "minimum": {"candidate": 20, "stable": 20, "units": 20, "pairs": 20},
    }
    with Callers(both) as callers:
        both.control.start_rollout(MODEL, 2, policy)
        wait_until(lambda: both.control.rollout(MODEL).status is RolloutStatus.PROMOTED, _BACK_S)
        wait_until(lambda: callers.answered("200 by 2"))
    assert set(callers.answers) == {"200 by 1", "200 by 2"}
    assert both.control.rollback(MODEL).version == 1


def test_one_engine_that_dies_leaves_the_other_s_versions(both: RunningStack) -> None:
    triton = endpoints(both.settings)[1]
    pid = triton.pid_file.read_text(encoding="utf-8")
    with Callers(both) as callers:
        psutil.Process(int(pid)).kill()
        wait_until(lambda: callers.answered("200 by 1"))
        wait_until(
            lambda: (
                triton.pid_file.read_text(encoding="utf-8") != pid
                and both.control.health().status == "ok"
                and both.http.post(
                    f"/predictions/{MODEL}/2", content=GOOD_JSON, headers=JSON
                ).is_success
            ),
            _BACK_S,
        )
    assert set(callers.answers) == {"200 by 1"}
