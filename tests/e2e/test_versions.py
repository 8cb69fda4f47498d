"""The verbs on the real stack: a version comes, gets the traffic, gives it back and goes."""

import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, RunningStack
from load import QUESTION, load_on

from vlserve.control.contract import State
from vlserve.errors import LoadFailed, StillServing, VersionConflict
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.pack import draft_of, pack_archive
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.errors import ArchiveTampered, ArchiveUnreadable, ManifestInvalid


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


def test_the_same_archive_again_is_a_no_op_and_another_is_refused(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, new_model, 1)
    stack.control.register(archive)
    assert stack.control.register(archive).already_registered
    other = pack_echo(tmp_path / "other", new_model, 1, answer_shift=1)
    with pytest.raises(VersionConflict):
        stack.control.register(other)
    assert ask(stack, new_model, 1)["version"] == 1


def truncated(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:-200])


def random_bytes(good: Path, bad: Path) -> None:
    bad.write_bytes(random.randbytes(good.stat().st_size))


def rewritten(change: Callable[[dict[str, bytes]], None]) -> Callable[[Path, Path], None]:
    def write(good: Path, bad: Path) -> None:
        with zipfile.ZipFile(good) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(bad, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def tamper(members: dict[str, bytes]) -> None:
    members["graphs/model.echo.json"] = b'{"answer_shift": 4}'


def forget_tokenizer(members: dict[str, bytes]) -> None:
    del members["assets/vocabulary.json"]


def contradict_version(members: dict[str, bytes]) -> None:
    manifest = members["MAR-INF/MANIFEST.json"]
    members["MAR-INF/MANIFEST.json"] = manifest.replace(b'"1"', b'"7"')


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (truncated, ArchiveUnreadable),
        (random_bytes, ArchiveUnreadable),
        (rewritten(tamper), ArchiveTampered),
        (rewritten(forget_tokenizer), ArchiveTampered),
        (rewritten(contradict_version), ArchiveTampered),
    ],
    ids=["truncated", "random", "tampered", "no tokenizer", "wrong version"],
)
def test_a_bad_archive_is_refused_and_nothing_is_left(
    stack: RunningStack,
    new_model: str,
    tmp_path: Path,
    spoil: Callable[[Path, Path], None],
    error: type[Exception],
) -> None:
    good = pack_echo(tmp_path / "good", new_model, 1)
    bad = tmp_path / f"{new_model}-1.mar"
    spoil(good, bad)
    with pytest.raises(error):
        stack.control.register(bad)
    assert new_model not in [model.model for model in stack.control.models()]


def test_a_file_that_carries_another_model_s_name_is_refused(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, new_model, 1)
    renamed = archive.rename(tmp_path / "somebody-else-1.mar")
    with pytest.raises(ManifestInvalid, match=f"is {new_model} 1 by its manifest"):
        stack.control.register(renamed)


def test_a_handler_that_raises_is_told_by_its_words_and_the_number_stays_free(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    good = pack_echo(tmp_path / "good", new_model, 1)
    handlers = tmp_path / "handlers"
    shutil.copytree(PROJECT / "handlers", handlers, ignore=shutil.ignore_patterns("__pycache__"))
    entry = handlers / "torchserve_handler.py"
    entry.write_text(
        entry.read_text().replace(
            "def initialize(self, context: Any) -> None:",
            "def initialize(self, context: Any) -> None:\n        raise OSError('no such disk')",
        )
    )
    with zipfile.ZipFile(good) as archive:
        content = {n: archive.read(n) for n in archive.namelist() if n.startswith(("gr", "as"))}
    bad = pack_archive(tmp_path / "bad", draft_of(verify_archive(good)), content, handlers)
    with pytest.raises(LoadFailed, match="OSError: no such disk"):
        stack.control.register(bad)
    assert states(stack, new_model) == {1: State.FAILED}
    assert ask(stack, new_model, 1)["status"] == 404
    stack.control.register(good)
    assert ask(stack, new_model, 1)["version"] == 1


def test_hot_updates_under_load_lose_nothing_and_hold_from_the_moment_they_return(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    """Rounds of register, release, roll back, release, unload the one before."""
    rounds = 2
    archives = [pack_echo(tmp_path, new_model, v, answer_shift=v) for v in range(1, rounds + 3)]
    for archive in archives[:2]:
        stack.control.register(archive)
    fixed = 2  # keeps its path for the whole run
    stack.control.release(new_model, 1)
    changes = [(time.monotonic(), time.monotonic(), 1)]

    def move(verb: Callable[[], Any], version: int) -> None:
        begun = time.monotonic()
        verb()
        changes.append((begun, time.monotonic(), version))

    before = 1
    with load_on(stack.gateway_url, new_model, [None, None, None, fixed]) as load:
        for archive in archives[2:]:
            version = stack.control.register(archive).version
            move(lambda v=version: stack.control.release(new_model, v), version)
            move(lambda: stack.control.rollback(new_model), before)
            move(lambda v=version: stack.control.release(new_model, v), version)
            stack.control.unload(new_model, before)
            before = version
    assert len(load.asked) > 20 * rounds
    assert {each.status for each in load.asked} == {200}
    assert {each.version for each in load.asked if each.wanted} == {fixed}
    ends = [begun for begun, _, _ in changes[1:]] + [float("inf")]
    for (_, in_force, version), end in zip(changes, ends, strict=True):
        within = [
            each.version
            for each in load.asked
            if each.wanted is None and in_force <= each.sent and each.answered <= end
        ]
        assert set(within) <= {version}
    assert {each.version for each in load.asked if not each.wanted} >= {1, before}
