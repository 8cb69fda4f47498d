"""Models and versions in the names of TorchServe's management API."""

from dataclasses import replace

import pytest

from support.version_records import version
from vlserve.control.api import torchserve_views as views
from vlserve.control.domain import ModelStatus, State, VersionStatus
from vlserve.errors import VersionNotFound
from vlserve.runtime.manifest import Adopted, Manifest
from vlserve.settings_sections import EngineSettings

ENGINE = EngineSettings(workers=2, batch_size=8, response_timeout_s=30)
ADOPTED = Adopted(
    name="BERTQA",
    version="1.0",
    sha256="0" * 64,
    handler="handler.py",
    batch_size=1,
    max_batch_delay_ms=100,
    workers=3,
    response_timeout_s=120,
)


def _status(number: int, state: State, original: Adopted | None = None) -> VersionStatus:
    record = version(number, state)
    manifest = Manifest.model_construct(
        model="tagger",
        version=number,
        task="tag",
        family="echo",
        precision="fp32",
        adopted=original,
    )
    return VersionStatus(**vars(replace(record, manifest=manifest)), workers_ready={"engine-0": 1})


def _model(*versions: VersionStatus) -> ModelStatus:
    stack = tuple(each.version for each in versions if each.state is State.STABLE)
    return ModelStatus("tagger", {}, stack, "", versions=versions)


def test_an_adopted_version_is_served_as_its_archive_says() -> None:
    view = views.described(_status(1, State.READY, ADOPTED), settings=ENGINE)
    assert (view.batch_size, view.max_batch_delay) == (1, 100)
    assert (view.min_workers, view.response_timeout) == (3, 120)
    native = views.described(_status(1, State.READY), settings=ENGINE)
    assert (native.batch_size, native.min_workers, native.response_timeout) == (8, 2, 30)


@pytest.mark.parametrize(("timeout_s", "expected"), [(None, 30), (10, 30), (300, 300)])
def test_an_adopted_version_has_the_longer_time_to_start(
    timeout_s: int | None, expected: int
) -> None:
    original = ADOPTED.model_copy(update={"startup_timeout_s": timeout_s})
    status = _status(1, State.READY, original)
    assert views.described(status, settings=ENGINE).startup_timeout == expected


def test_an_adopted_version_has_its_former_number_and_name() -> None:
    model = _model(_status(1, State.READY, ADOPTED), _status(2, State.STABLE))
    assert [views.version_of(model, number).version for number in ("1", "1.0")] == [1, 1]
    assert [views.version_of(model, number).version for number in ("2", "2.0")] == [2, 2]
    assert views.formerly_called([model], "BERTQA") is model
    assert views.formerly_called([model], "tagger") is None


@pytest.mark.parametrize("state", [State.RETIRED, State.FAILED, State.DELETED, State.REGISTERED])
def test_what_is_not_loaded_is_unknown_and_can_be_released(state: State) -> None:
    model = _model(_status(1, state))
    with pytest.raises(VersionNotFound):
        views.version_of(model, "1")
    with pytest.raises(VersionNotFound):
        views.default_of(model)
    assert views.releasable(model, "1").version == 1
    assert views.listed([model], 10, 0).models == ()


def test_workers_are_ready_once_the_version_may_be_asked() -> None:
    def workers(state: State) -> list[str]:
        view = views.described(_status(1, state), settings=ENGINE)
        return [worker.status for worker in view.workers]

    assert workers(State.STABLE) == ["READY", "UNLOADING"]
    assert workers(State.LOADING) == ["UNLOADING", "UNLOADING"]
