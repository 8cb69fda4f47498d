"""The verbs on the real stack: a version comes, gets the traffic, gives it back and goes."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.background_load import QUESTION, load_on
from support.edited_archives import with_edited_entry_points
from support.engines import on_triton
from support.running_stack import wait_until
from vlserve.control.domain import State
from vlserve.control.wire.views import Released
from vlserve.errors import LoadFailed, StillServing
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

pytestmark = on_triton


def ask(stack: RunningStack, model: str, version: int | None = None) -> dict[str, Any]:
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    answer = stack.http.post(path, json=QUESTION)
    return {"status": answer.status_code} | answer.json()


def states(stack: RunningStack, model: str) -> dict[int, State]:
    return {each.version: each.state for each in stack.control.model(model).versions}


def test_from_register_to_retired_and_back(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    first, second = (pack_echo(tmp_path, new_model, v, answer_shift=v) for v in (1, 2))
    stack.control.register(first)
    assert ask(stack, new_model, 1)["version"] == 1
    assert ask(stack, new_model)["status"] == 404  # ready has no traffic

    stack.control.release(new_model, 1)
    assert ask(stack, new_model)["version"] == 1
    before = ask(stack, new_model)["tags"]

    stack.control.register(second)
    assert ask(stack, new_model)["version"] == 1
    stack.control.release(new_model, 2)
    answer = ask(stack, new_model)
    assert answer["version"] == 2
    assert answer["tags"] != before

    with pytest.raises(StillServing):
        stack.control.unload(new_model, 2)
    assert stack.control.rollback(new_model).version == 1
    assert ask(stack, new_model)["tags"] == before

    stack.control.release(new_model, 2)
    assert stack.control.unload(new_model, 1).state is State.RETIRED
    assert ask(stack, new_model, 1)["status"] == 404
    assert stack.control.rollback(new_model).version == 1  # loads it first
    assert ask(stack, new_model)["tags"] == before
    assert states(stack, new_model) == {1: State.STABLE, 2: State.READY}


def test_an_edited_handler_counts(stack: RunningStack, new_model: str, tmp_path: Path) -> None:
    """As one that sees other values than the client sent."""
    data = "data = [{**item, 'text': b'cat'} if 'text' in item else item for item in data]"
    original = pack_echo(tmp_path, new_model, 1)
    archive = with_edited_entry_points(original, tmp_path / "edited", "result = ", data)
    stack.control.register(archive)

    def tags(text: str) -> Any:
        form = {"image": base64.b64decode(QUESTION["image"]), "text": text.encode()}
        return stack.http.post(f"/predictions/{new_model}/1", files=form).json()["tags"]

    assert tags("a dog") == tags("cat")


def test_a_handler_that_raises_is_told_by_its_words_and_the_number_stays_free(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    good = pack_echo(tmp_path / "good", new_model, 1)
    bad = with_edited_entry_points(
        *(good, tmp_path / "bad"), "self.answering = ", "raise OSError('no such disk')"
    )
    with pytest.raises(LoadFailed, match="OSError: no such disk"):
        stack.control.register(bad)
    assert states(stack, new_model) == {1: State.FAILED}
    assert ask(stack, new_model, 1)["status"] == 404
    stack.control.register(good)
    assert ask(stack, new_model, 1)["version"] == 1


def test_traffic_has_moved_when_the_word_returns(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    """Release and roll back under load: what is sent after one has returned, and is answered
    before the next begins, comes from the version that was asked for."""
    for version in (1, 2):
        stack.control.register(pack_echo(tmp_path, new_model, version, answer_shift=version))
    stack.control.release(new_model, 1)
    moves: list[tuple[float, float, int]] = []

    def move(verb: Callable[[], Released]) -> None:
        start = time.monotonic()
        version = verb().version
        in_force = time.monotonic()
        moves.append((start, in_force, version))
        wait_until(
            lambda: any(
                each.path_version is None and each.sent_at >= in_force for each in load.requests
            )
        )

    with load_on(stack.gateway_url, new_model, [None, None, 1, 2]) as load:
        for _ in range(2):
            move(lambda: stack.control.release(new_model, 2))
            move(lambda: stack.control.rollback(new_model))
    assert {each.status for each in load.requests} == {200}
    assert all(each.version == each.path_version for each in load.requests if each.path_version)
    ends = [start for start, _, _ in moves[1:]] + [float("inf")]
    for (_, in_force, version), end in zip(moves, ends, strict=True):
        versions = [
            each.version
            for each in load.requests
            if each.path_version is None and in_force <= each.sent_at and each.answered_at <= end
        ]
        assert versions
        assert set(versions) == {version}
