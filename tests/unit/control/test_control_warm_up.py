"""A cold engine is asked until it gets no faster, a warm one is left alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine
from support.rollout_traffic import register
from vlserve.control.assembly import Control
from vlserve.control.domain import Instance
from vlserve.control.lifecycle.warm_up import settled, warm_up
from vlserve.errors import NotReady
from vlserve.runtime.archive import verify_archive

Archive = Callable[..., Path]


@pytest.mark.parametrize(
    ("durations_s", "is_settled"),
    [
        ([], False),
        ([1.0] * 10, False),
        ([1.0] * 11, True),
        ([1.0 / n for n in range(1, 30)], False),
        ([1.0, 0.5] + [0.495] * 9, False),
        ([1.0, 0.5] + [0.495] * 10, True),
    ],
)
def test_settled_once_no_round_was_faster(durations_s: list[float], is_settled: bool) -> None:
    assert settled(durations_s) is is_settled


class Clocked(FakeEngine):
    """Each answer takes as long as it is told; counts them."""

    now = 0.0
    takes_s = 0.001
    asked = 0

    def predict(
        self, instance: Instance, model: str, version: int, fields: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self.asked += 1
        self.now += self.takes_s
        raise NotReady("it need not be right")


def test_it_ends_when_settled_or_when_the_time_is_over(pack: Archive) -> None:
    manifest = verify_archive(pack())
    steady = Clocked()
    assert warm_up(steady, steady.instances(), manifest, lambda: steady.now) == steady.asked == 176
    slow = Clocked(("engine-0", "engine-1"))
    slow.takes_s = 1.0
    assert warm_up(slow, slow.instances(), manifest, lambda: slow.now) == slow.asked == 32


def test_only_the_first_version_of_an_instance_warms_it(
    control: Control, engine: FakeEngine, pack: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    lifecycle = "vlserve.control.lifecycle.lifecycle.warm_up"
    monkeypatch.setattr(
        lifecycle, lambda _, cold, __: calls.append([instance.name for instance in cold])
    )
    register(control, pack("tagger", 1), pack("tagger", 2))
    assert calls == [["engine-0"]]


def test_an_instance_that_did_not_say_what_it_holds_is_left_alone(
    control: Control, engine: FakeEngine, pack: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(control, pack("tagger", 1))
    monkeypatch.setattr(engine, "loaded", dict)  # it answers the next question again
    monkeypatch.setattr(
        "vlserve.control.lifecycle.lifecycle.warm_up", lambda *_: pytest.fail("was warmed")
    )
    control.service._lifecycle._warm_up(control.ledger.version("tagger", 1))
