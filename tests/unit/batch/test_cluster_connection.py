"""Connecting to a cluster whose head node fails to start a process for the client."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vlserve.batch import cluster
from vlserve.errors import BatchError


class Ray(SimpleNamespace):
    """Ray with a head node that fails the first ``failures`` times."""

    def __init__(self, failures: int, error: type[Exception]) -> None:
        super().__init__(failures=failures, error=error, calls=[], __spec__=object())

    def init(self, **_: Any) -> None:
        self.calls.append("init")
        if self.calls.count("init") <= self.failures:
            raise self.error("Starting Ray client server failed")

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def use(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setitem(sys.modules, "ray", ray)


def test_a_head_node_gets_another_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(2, ConnectionAbortedError)
    use(ray, monkeypatch)
    with cluster.connected("ray://head:10001"):
        assert ray.calls == ["init", "shutdown", "init", "shutdown", "init"]
    assert ray.calls[-1] == "shutdown"


@pytest.mark.parametrize(("error", "attempts"), [(ConnectionAbortedError, 3), (ConnectionError, 1)])
def test_what_stays_away_is_named(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], attempts: int
) -> None:
    ray = Ray(9, error)
    use(ray, monkeypatch)
    with (
        pytest.raises(BatchError, match="ray://head:10001 cannot be reached: Starting Ray"),
        cluster.connected("ray://head:10001"),
    ):
        pass
    assert ray.calls.count("init") == attempts
