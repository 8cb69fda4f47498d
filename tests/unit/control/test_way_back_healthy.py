"""The way back onto a version of which one instance hangs, is down, or answers wrong."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import start
from vlserve.control.assembly import Control
from vlserve.errors import NotReady


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine(("engine-0", "engine-1"))
    yield engine
    engine.let_go.set()


@pytest.mark.parametrize("silent", ["engine-0", "engine-1"])
@pytest.mark.parametrize("how", ["hung", "down"])
def test_one_that_says_nothing_does_not_keep_it(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway, how: str, silent: str
) -> None:
    """The one that hangs is let go only after the way back is done."""
    start(tagger)
    getattr(engine, how).add(silent)
    tagger.service.rollouts.abort("tagger")
    assert gateway.route().weights == {1: 100}
    engine.hung.clear()
    engine.down.clear()
    tagger.service.release("tagger", 2)
    getattr(engine, how).add(silent)
    assert tagger.service.rollback("tagger").version == 1
    assert gateway.route().weights == {1: 100}
    assert not engine.let_go.is_set()
    assert {route.name for route in gateway.routing.instances} == {"engine-0", "engine-1"}


@pytest.mark.parametrize("wrong", ["engine-0", "engine-1"])
def test_one_that_answers_wrong_does(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway, wrong: str
) -> None:
    tagger.service.release("tagger", 2)
    engine.answer_wrong.add((wrong, "tagger", 1))
    with pytest.raises(NotReady, match=f"not healthy.*{wrong}"):
        tagger.service.rollback("tagger")
    assert gateway.route().weights == {2: 100}


def test_where_none_answers_it_is_refused(
    tagger: Control, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.control.lifecycle.probes._FIRST_ANSWER_S", 0.05)
    tagger.service.release("tagger", 2)
    engine.hung |= {"engine-0", "engine-1"}
    with ThreadPoolExecutor(1) as pool:
        rollback = pool.submit(tagger.service.rollback, "tagger")
        engine.let_go.set()
        with pytest.raises(NotReady, match="does not answer"):
            rollback.result()


def test_forward_asks_all(tagger: Control, engine: FakeEngine) -> None:
    """To give a version traffic for the first time is no emergency."""
    engine.hung.add("engine-1")
    engine.let_go.set()
    with pytest.raises(NotReady, match="does not answer"):
        tagger.service.release("tagger", 2)
