"""What an adopted version says of itself: its handler's describe_handle, asked in a worker."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.control_fakes import FakeEngine
from support.version_records import ONE, UP, version
from vlserve.control.domain import Instance, State, VersionRecord
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.trials import Trials
from vlserve.control.store.ledger import Ledger
from vlserve.errors import NotReady
from vlserve.runtime.manifest import Adopted, Manifest

ANSWER = {"status": 200, "headers": {}, "text": '{"labels": ["cat"]}'}


class SayingEngine(FakeEngine):
    """Answers each request alike."""

    def __init__(self, answer: Mapping[str, Any] | None) -> None:
        """``answer``: None where none comes."""
        super().__init__()
        self._answer = answer
        self.asked: list[Mapping[str, Any]] = []

    def predict(
        self, instance: Instance, model: str, version: int, fields: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self.asked.append(fields)
        if self._answer is None:
            raise NotReady("timed out")
        return self._answer


def _trials(engine: FakeEngine, held: bool = True) -> Trials:
    instances = {ONE.name: {("tagger", 1): UP}} if held else {}
    traffic = cast(Traffic, SimpleNamespace(held=instances, instances=[ONE]))
    return Trials(cast(Ledger, None), engine, traffic, 1.0)


def _version(*, describes: bool = True) -> VersionRecord:
    original = Adopted(
        name="BERT", version="1.0", sha256="0" * 64, handler="h.py", describes=describes
    )
    return replace(version(1, State.STABLE), manifest=Manifest.model_construct(adopted=original))


def test_its_handler_is_asked_as_torchserve_asks_it() -> None:
    engine = SayingEngine(ANSWER)
    assert _trials(engine).describe_handle(_version()) == {"labels": ["cat"]}
    request = {"path": "/predictions/BERT", "headers": {"describe": "True"}, "content": ""}
    assert engine.asked == [request]


def test_a_handler_without_one_is_not_asked() -> None:
    engine = SayingEngine(ANSWER)
    assert _trials(engine).describe_handle(_version(describes=False)) == {}
    assert _trials(engine).describe_handle(version(1, State.STABLE)) == {}
    assert engine.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {**ANSWER, "text": "[1]"},
        {**ANSWER, "text": "words"},
        {**ANSWER, "status": 503},
        {"status": 200, "headers": {}, "base64": "/w=="},
        {"tags": []},
    ],
    ids=["silent", "list", "text", "failed", "bytes", "other"],
)
def test_anything_but_an_object_is_an_empty_one(answer: Mapping[str, Any] | None) -> None:
    assert _trials(SayingEngine(answer)).describe_handle(_version()) == {}


def test_a_version_that_no_instance_holds_says_nothing() -> None:
    assert _trials(SayingEngine(ANSWER), held=False).describe_handle(_version()) == {}
