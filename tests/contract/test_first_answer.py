"""How long the answer to a probe is waited for."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.fake_torchserve import FakeTorchServe
from vlserve.control.engine import group as engine_group
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.errors import EngineUnavailable
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

ALLOWED_S, MARGIN_S = 1, 0.5


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineGroup]:
    monkeypatch.setattr(engine_group, "_MARGIN_S", MARGIN_S)
    settings = Settings(
        state_dir=tmp_path / "state", engine=EngineSettings(response_timeout_s=ALLOWED_S)
    )
    with closing(EngineGroup(endpoints(settings), settings.engine)) as group:
        yield group


def test_a_first_answer_may_take_as_long_as_a_worker_may(group: EngineGroup) -> None:
    with FakeTorchServe("engine-0", "token", delay_s=ALLOWED_S) as engine:
        answer = group.predict(engine.instance(), "tagger", 2, {"text": "late"}, just_loaded=True)
    assert answer == {"engine": "engine-0", "version": 2}


def test_what_takes_longer_is_given_up(group: EngineGroup) -> None:
    with (
        FakeTorchServe("engine-0", "token", delay_s=ALLOWED_S + 2 * MARGIN_S) as engine,
        pytest.raises(EngineUnavailable, match="tagger 2 on engine-0 does not answer"),
    ):
        group.predict(engine.instance(), "tagger", 2, {"text": "later"}, just_loaded=True)


def test_a_version_that_serves_is_not_waited_for_as_long(
    group: EngineGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_group, "_ANSWER_TIMEOUT_S", 0.2)
    with (
        FakeTorchServe("engine-0", "token", delay_s=ALLOWED_S) as engine,
        pytest.raises(EngineUnavailable, match="tagger 2 on engine-0 does not answer"),
    ):
        group.predict(engine.instance(), "tagger", 2, {"text": "late"})
