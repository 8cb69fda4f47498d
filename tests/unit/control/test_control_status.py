"""What the control service says of its models: current, and the same after a restart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import register
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import Key, LoadedVersion, ModelStatus, State
from vlserve.settings import Settings

Archive = Callable[..., Path]


@pytest.fixture
def tagger(control: Control, pack: Archive) -> Control:
    """tagger 1 released, then tagger 2."""
    for version in (1, 2):
        register(control, pack("tagger", version))
        control.service.release("tagger", version)
    return control


def test_status_says_all_of_it(tagger: Control) -> None:
    (model,) = tagger.service.models()
    assert (model.model, model.stable, model.earlier) == ("tagger", 2, (1,))
    assert [(each.version, each.state, each.weight) for each in model.versions] == [
        (1, State.READY, 0),
        (2, State.STABLE, 100),
    ]
    assert tagger.service.health().status == "ok"


def test_what_is_ready_is_shown_with_its_workers_before_any_tick(
    control: Control, pack: Archive
) -> None:
    register(control, pack("tagger", 1), pack("tagger", 2))
    workers = [each.workers_ready for each in control.service.model("tagger").versions]
    assert workers == [{"engine-0": 2}, {"engine-0": 2}]


def test_an_older_look_at_the_engine_does_not_replace_a_newer_one(
    control: Control, engine: FakeEngine, pack: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(control, pack("tagger", 1))
    look = engine.loaded

    def slow() -> dict[str, dict[Key, LoadedVersion]]:
        """Looks, and has its answer only after a registration has looked too."""
        answer = {name: dict(versions) for name, versions in look().items()}
        monkeypatch.setattr(engine, "loaded", look)
        register(control, pack("tagger", 2))
        return answer

    monkeypatch.setattr(engine, "loaded", slow)
    control.reconciler.tick()
    workers = [each.workers_ready for each in control.service.model("tagger").versions]
    assert workers == [{"engine-0": 2}, {"engine-0": 2}]


def without_workers(control: Control) -> ModelStatus:
    model = control.service.models()[0]
    return replace(
        model, versions=tuple(replace(version, workers_ready={}) for version in model.versions)
    )


def test_everything_is_there_again_after_a_restart_of_the_service(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway, settings: Settings
) -> None:
    before = without_workers(tagger)
    tagger.stop()
    second = assemble(settings, engine, gateway)
    assert without_workers(second) == before
    assert second.service.rollback("tagger").version == 1
    second.stop()
