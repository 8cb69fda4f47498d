"""A stack that runs two engines: where a version is loaded, and where its requests go."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.version_records import UP, version
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import EngineKind, LoadedVersion, State
from vlserve.control.outcomes import Registration
from vlserve.control.placement import Placement
from vlserve.control.reconcile.plan import EngineView, GatewayView, LedgerView, Remove, plan
from vlserve.errors import EngineNotRun, EngineUnavailable, NotReady, OnAnotherEngine
from vlserve.settings import Settings

Archive = Callable[..., Path]
BOTH = Placement({"engine-0": "torchserve", "engine-1": "triton"})
FIRST, SECOND = ("tagger", 1), ("tagger", 2)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(("engine-0", "engine-1"), triton=("engine-1",))


def register(
    control: Control, pack: Archive, number: int, engine: EngineKind | None = None
) -> Registration:
    copy = shutil.copy(pack("tagger", number), control.service.incoming / "upload.mar")
    return control.service.register(Path(copy), engine=engine)


@pytest.fixture
def split(control: Control, pack: Archive) -> Control:
    """tagger 1 stable on TorchServe, tagger 2 ready on Triton."""
    control.reconciler.tick()
    register(control, pack, 1)
    register(control, pack, 2, "triton")
    control.service.release("tagger", 1)
    return control


def lacked(gateway: FakeGateway) -> dict[str, frozenset[tuple[str, int]]]:
    return {each.name: each.lacks for each in gateway.routing.instances}


def test_a_version_is_on_its_engine_alone(
    split: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    assert {name: set(versions) for name, versions in engine.held.items()} == {
        "engine-0": {FIRST},
        "engine-1": {SECOND},
    }
    assert lacked(gateway) == {"engine-0": frozenset({SECOND}), "engine-1": frozenset({FIRST})}
    views = {each.version: each for each in split.service.model("tagger").versions}
    assert [(views[n].engine, views[n].instead_of) for n in (1, 2)] == [
        ("torchserve", None),
        ("triton", None),
    ]
    assert (split.service.health().status, split.service.health().restoring) == ("ok", ())


def test_ticks_load_nothing_more(split: Control, engine: FakeEngine) -> None:
    loads = list(engine.loads)
    for _ in range(3):
        actions = split.reconciler.tick()
        assert [type(action).__name__ for action in actions] == ["Route"]
    assert engine.loads == loads


def test_traffic_moves_between_engines_and_back(
    split: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    split.service.release("tagger", 2)
    assert gateway.route().weights == {2: 100}
    split.service.rollback("tagger")
    assert gateway.route().weights == {1: 100}
    engine.down.add("engine-1")
    with pytest.raises(NotReady, match="no instance of triton answers"):
        split.service.release("tagger", 2)


def test_a_load_waits_for_its_engine(control: Control, engine: FakeEngine, pack: Archive) -> None:
    control.reconciler.tick()
    engine.down.add("engine-1")
    with pytest.raises(EngineUnavailable):
        register(control, pack, 1, "triton")
    assert control.ledger.version(*FIRST).state is State.LOADING
    engine.down.clear()
    assert register(control, pack, 1).engine == "triton"
    assert engine.held["engine-0"] == {}


def test_an_unloaded_version_moves_and_a_loaded_one_does_not(
    split: Control, engine: FakeEngine, pack: Archive
) -> None:
    with pytest.raises(OnAnotherEngine, match="tagger 1 is stable on torchserve"):
        register(split, pack, 1, "triton")
    assert register(split, pack, 2).already_registered
    split.service.unload("tagger", 2)
    registration = register(split, pack, 2, "torchserve")
    assert (registration.state, registration.engine) == (State.READY, "torchserve")
    assert [SECOND in versions for versions in engine.held.values()] == [True, False]
    kinds = [event.kind for event in split.ledger.events("tagger")]
    assert kinds[-3:] == ["assigned", "loading", "loaded"]


@pytest.fixture
def without_triton(split: Control, settings: Settings) -> Iterator[Control]:
    """The same ledger in a stack that runs TorchServe alone."""
    split.stop()
    control = assemble(settings, FakeEngine(), FakeGateway())
    yield control
    control.stop()


def test_a_version_serves_though_its_engine_is_not_run(
    without_triton: Control, pack: Archive
) -> None:
    control = without_triton
    control.reconciler._traffic.observe()
    for record in control.ledger.versions():
        control.reconciler._lifecycle.restore(record)
    view = next(each for each in control.service.model("tagger").versions if each.version == 2)
    assert (view.engine, view.instead_of) == ("torchserve", "triton")
    event = control.ledger.events("tagger")[-1]
    assert (event.kind, event.detail) == (
        "recovered",
        {"engine": "torchserve", "instead_of": "triton"},
    )
    with pytest.raises(EngineNotRun, match="runs no triton, but torchserve"):
        register(control, pack, 3, "triton")


def test_what_the_wrong_engine_holds_is_taken_off_it() -> None:
    record = version(2, State.READY, engine="triton")
    busy = LoadedVersion(2, 1)
    for state, expected in ((UP, [Remove("tagger", 2, "torchserve")]), (busy, [])):
        everywhere = {"engine-0": {SECOND: state}, "engine-1": {SECOND: UP}}
        actions = plan(LedgerView([], [record]), EngineView(everywhere), GatewayView([], {}), BOTH)
        assert actions == expected
