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
def released(control: Control, packed: Archive) -> Control:
    """tagger 1 released, then tagger 2."""
    for version in (1, 2):
        register(control, packed("tagger", version))
        control.service.release("tagger", version)
    return control


def test_status_says_all_of_it(released: Control) -> None:
    (model,) = released.service.models()
    assert (model.model, model.stable, model.earlier) == ("tagger", 2, (1,))
    assert [(each.version, each.state, each.weight) for each in model.versions] == [
        (1, State.READY, 0),
        (2, State.STABLE, 100),
    ]
    assert released.service.health().status == "ok"


def test_what_is_ready_is_shown_with_its_workers_before_any_tick(
    control: Control, packed: Archive
) -> None:
    register(control, packed("tagger", 1), packed("tagger", 2))
    shown = [each.workers_ready for each in control.service.model("tagger").versions]
    assert shown == [{"engine-0": 2}, {"engine-0": 2}]


def test_an_older_look_at_the_engine_does_not_replace_a_newer_one(
    control: Control, engine: FakeEngine, packed: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(control, packed("tagger", 1))
    look = engine.loaded

    def slow() -> dict[str, dict[Key, LoadedVersion]]:
        """Looks, and has its answer only after a registration has looked too."""
        seen = {name: dict(holds) for name, holds in look().items()}
        monkeypatch.setattr(engine, "loaded", look)
        register(control, packed("tagger", 2))
        return seen

    monkeypatch.setattr(engine, "loaded", slow)
    control.reconciler.tick()
    shown = [each.workers_ready for each in control.service.model("tagger").versions]
    assert shown == [{"engine-0": 2}, {"engine-0": 2}]


def without_workers(control: Control) -> ModelStatus:
    model = control.service.models()[0]
    return replace(model, versions=tuple(replace(v, workers_ready={}) for v in model.versions))


def test_everything_is_there_again_after_a_restart_of_the_service(
    released: Control, engine: FakeEngine, gateway: FakeGateway, settings: Settings
) -> None:
    before = without_workers(released)
    released.stop()
    again = assemble(settings, engine, gateway)
    assert without_workers(again) == before
    assert again.service.rollback("tagger").version == 1
    again.stop()
