"""The ledger: transitions, the stack of stable versions, what survives a crash, what stays."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from vlserve.control.domain import State
from vlserve.control.gateway.routing import full_weight
from vlserve.control.store.database import LEDGER
from vlserve.control.store.ledger import Ledger
from vlserve.control.transitions import TRANSITIONS
from vlserve.errors import ControlError, ModelNotFound, VersionNotFound
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Manifest


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as ledger:
        yield ledger


@pytest.fixture(scope="session")
def manifest(pack: Callable[..., Path]) -> Manifest:
    return verify_archive(pack())


def add(ledger: Ledger, manifest: Manifest, version: int, *states: State) -> None:
    """A version of tagger, moved through ``states``."""
    version_manifest = manifest.model_copy(update={"version": version})
    ledger.add(
        version_manifest, ledger.store / "tagger" / f"tagger-{version}.mar", f"{version:064x}"
    )
    for state in states:
        ledger.move("tagger", version, state, str(state))


READY = (State.LOADING, State.READY)


def test_a_version_is_kept_with_everything_about_it(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1)
    record = ledger.version("tagger", 1)
    assert record.state is State.REGISTERED
    assert record.archive == ledger.store / "tagger" / "tagger-1.mar"
    assert record.manifest == manifest
    assert record.registered_at == record.changed_at
    assert record.registered_at.endswith("+00:00")


def test_the_archive_is_found_after_the_store_moved(tmp_path: Path, manifest: Manifest) -> None:
    with Ledger(tmp_path / "before") as ledger:
        add(ledger, manifest, 1)
    (tmp_path / "before").rename(tmp_path / "after")
    with Ledger(tmp_path / "after") as ledger:
        assert ledger.version("tagger", 1).archive == tmp_path / "after/tagger/tagger-1.mar"


@pytest.mark.parametrize("before", State)
def test_states_move_as_the_table_says(ledger: Ledger, manifest: Manifest, before: State) -> None:
    add(ledger, manifest, 1)
    for after in State:
        with closing(sqlite3.connect(ledger.store / LEDGER)) as raw, raw:
            raw.execute("UPDATE versions SET state = ?", (before,))
        if after in TRANSITIONS[before]:
            assert ledger.move("tagger", 1, after, "moved").state is after
            continue
        with pytest.raises(ControlError, match=f"tagger 1 is {before}: it cannot become {after}"):
            ledger.move("tagger", 1, after, "moved")
        assert ledger.version("tagger", 1).state is before


def test_every_state_can_be_reached_and_left() -> None:
    states = {State.REGISTERED}.union(*TRANSITIONS.values())
    assert states == set(State) == {state for state in TRANSITIONS if TRANSITIONS[state]}


def test_release_pushes_and_rollback_pops(ledger: Ledger, manifest: Manifest) -> None:
    for version in (1, 2, 3):
        add(ledger, manifest, version, *READY)
        ledger.release("tagger", version, full_weight(version))
    assert ledger.model("tagger").stack == (1, 2, 3)
    ledger.roll_back("tagger", 1, full_weight(1))
    record = ledger.model("tagger")
    assert (record.stack, record.weights, record.stable) == ((1,), {1: 100}, 1)
    assert [each.state for each in ledger.versions("tagger")] == [
        State.STABLE,
        State.READY,
        State.READY,
    ]


def test_a_version_released_twice_is_rolled_back_once(ledger: Ledger, manifest: Manifest) -> None:
    for version in (1, 2):
        add(ledger, manifest, version, *READY)
    for version in (1, 2, 1, 2):
        ledger.release("tagger", version, full_weight(version))
    ledger.roll_back("tagger", 1, full_weight(1))
    assert ledger.model("tagger").stack == (1, 2, 1)


def test_each_release_has_a_salt_of_its_own(ledger: Ledger, manifest: Manifest) -> None:
    salts = [None]
    for version in (1, 2):
        add(ledger, manifest, version, *READY)
        ledger.release("tagger", version, full_weight(version))
        salts.append(ledger.model("tagger").salt)
    assert len(set(salts)) == 3


def test_a_release_of_a_version_that_is_not_ready_changes_nothing(
    ledger: Ledger, manifest: Manifest
) -> None:
    add(ledger, manifest, 1, State.LOADING)
    with pytest.raises(ControlError, match="loading: it cannot become stable"):
        ledger.release("tagger", 1, full_weight(1))
    assert ledger.model("tagger").stack == ()
    assert ledger.model("tagger").weights == {}


def test_history_is_in_order_and_says_what(ledger: Ledger, manifest: Manifest) -> None:
    for version in (1, 2):
        add(ledger, manifest, version, *READY)
        ledger.release("tagger", version, full_weight(version))
    ledger.roll_back("tagger", 1, full_weight(1))
    history = [(event.version, event.kind) for event in ledger.events("tagger")]
    once = ["registered", "loading", "ready", "released"]
    assert history == [(1, kind) for kind in once] + [(2, kind) for kind in once] + [
        (1, "rolled_back")
    ]
    assert ledger.events("tagger")[-1].detail == {"previous": 2, "weights": {"1": 100}}


@pytest.mark.parametrize("statement", ["DELETE FROM events", "UPDATE events SET kind = 'nothing'"])
def test_history_is_append_only(ledger: Ledger, manifest: Manifest, statement: str) -> None:
    add(ledger, manifest, 1)
    with (
        closing(sqlite3.connect(ledger.store / LEDGER)) as raw,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        raw.execute(statement)


def test_a_transaction_is_kept_whole_or_not_at_all(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1, *READY)
    with pytest.raises(RuntimeError, match="gateway"), ledger.transaction():
        ledger.release("tagger", 1, full_weight(1))
        assert ledger.model("tagger").stable == 1
        raise RuntimeError("the gateway refused")
    assert ledger.model("tagger").stable is None
    assert ledger.version("tagger", 1).state is State.READY
    assert [event.kind for event in ledger.events("tagger")][-1] == "ready"


def test_reading_does_not_wait_for_a_change_under_way(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1, *READY)
    versions = []
    with ledger.transaction():
        ledger.release("tagger", 1, full_weight(1))
        reader = threading.Thread(target=lambda: versions.append(ledger.model("tagger").stable))
        reader.start()
        reader.join()
    assert versions == [None]
    assert ledger.model("tagger").stable == 1


def test_many_threads_write_without_losing_one(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1)
    threads = [
        threading.Thread(
            target=lambda: [ledger.record("tagger", 1, "noted", at=each) for each in range(10)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.kind for event in ledger.events("tagger")].count("noted") == 80


def test_threads_that_end_leave_no_open_file(ledger: Ledger) -> None:
    for _ in range(50):
        thread = threading.Thread(target=ledger.models)
        thread.start()
        thread.join()
    paths = [file.path for file in psutil.Process().open_files()]
    assert paths.count(str(ledger.store / LEDGER)) <= 2


def test_a_failed_version_gives_its_number_up(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1, State.LOADING, State.FAILED)
    ledger.add(manifest, ledger.store / "tagger-1.mar", "f" * 64)
    record = ledger.version("tagger", 1)
    assert (record.sha256, record.state) == ("f" * 64, State.REGISTERED)


def test_a_version_that_was_ready_does_not(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1, *READY)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.add(manifest, ledger.store / "tagger-1.mar", "f" * 64)


@pytest.mark.parametrize(
    "states",
    [
        (*READY, State.DRAINING, State.RETIRED),
        (*READY, State.DRAINING, State.RETIRED, State.DELETED),
        (State.LOADING, State.FAILED),
    ],
    ids=lambda states: states[-1],
)
def test_probes_of_a_version_that_is_out_are_not_kept_in_memory(
    ledger: Ledger, manifest: Manifest, states: tuple[State, ...]
) -> None:
    """It may be loaded again, by its probes."""
    assert manifest.probes
    add(ledger, manifest, 1, *states)
    assert ledger.version("tagger", 1).manifest == manifest.model_copy(update={"probes": ()})
    assert [each.probes for *_, each in ledger._manifests._read.values()] == [()]
    assert ledger.move("tagger", 1, State.LOADING, "loading").manifest == manifest


def test_manifests_of_archives_that_failed_do_not_pile_up_in_memory(
    ledger: Ledger, manifest: Manifest
) -> None:
    """Each of them gave its number to the next one."""
    for number in range(3):
        options = {"options": {"number": number}}
        ledger.add(manifest.model_copy(update=options), ledger.store / "a.mar", f"{number:064x}")
        assert ledger.version("tagger", 1).manifest.options == options["options"]
        for state in (State.LOADING, State.FAILED):
            ledger.move("tagger", 1, state, str(state))
    assert len(ledger._manifests._read) == 1


def test_members_that_archives_have_in_common_are_kept_in_memory_once(
    ledger: Ledger, manifest: Manifest
) -> None:
    for version in (1, 2):
        add(ledger, manifest, version)
    one, other = (record.manifest.files for record in ledger.versions())
    assert one == other == manifest.files
    assert {id(text) for text in (*one, *one.values())} == {
        id(text) for text in (*other, *other.values())
    }


def test_what_is_not_there_is_said_with_what_is(ledger: Ledger, manifest: Manifest) -> None:
    add(ledger, manifest, 1)
    with pytest.raises(ModelNotFound, match=r"no model tager.*there is tagger"):
        ledger.model("tager")
    with pytest.raises(VersionNotFound, match=r"tagger has no version 2.*there is 1"):
        ledger.version("tagger", 2)
    with pytest.raises(ModelNotFound):
        ledger.events("tager")


def test_two_services_do_not_share_a_store(ledger: Ledger) -> None:
    with pytest.raises(ControlError, match=rf"\(pid {os.getpid()}\).*another control service"):
        Ledger(ledger.store)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    raw = sqlite3.connect(tmp_path / LEDGER)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(ControlError, match="schema 99"):
        Ledger(tmp_path)


KILLED_WITHIN_A_RELEASE = """
import os, signal, sys
from pathlib import Path
from vlserve.control.store.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.record("tagger", 1, "noted")
with ledger.transaction():
    ledger.release("tagger", 1, {1: 100})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_the_middle_of_a_release_leaves_what_was_before(
    tmp_path: Path, manifest: Manifest
) -> None:
    with Ledger(tmp_path) as ledger:
        add(ledger, manifest, 1, *READY)
    command = [sys.executable, "-c", KILLED_WITHIN_A_RELEASE, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with Ledger(tmp_path) as ledger:
        assert ledger.model("tagger").stack == ()
        assert ledger.version("tagger", 1).state is State.READY
        assert [event.kind for event in ledger.events("tagger")][-1] == "noted"
