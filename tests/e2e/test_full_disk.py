"""The disks of the store and of the state are full in the middle of a rollout: real processes."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.background_load import QUESTION
from support.running_stack import make_settings, running_gateway, wait_until
from support.small_disk import fill, small_disk
from vlserve.control.domain import EngineKind, ModelRoute, RolloutStatus
from vlserve.control.store.database import LEDGER
from vlserve.control.store.reserve import Reserve
from vlserve.errors import GatewayUnwritable, LedgerUnwritable, StoreUnwritable
from vlserve.exporter.echo import pack_echo
from vlserve.testing import running_stack
from vlserve.testing.stack import RunningStack

STAYS = {"weights": [50, 100], "hold_s": 3600, "unit": "request"}


@dataclass(frozen=True)
class OnSmallDisks:
    """A stack whose store, state and logs are on disks of their own."""

    running: RunningStack
    store: Path
    state: Path
    logs: Path

    def release(self, model: str, folder: Path) -> None:
        """Have a rollout of ``model`` under way: version 1 stable, half of the traffic on 2."""
        control = self.running.control
        for version in (1, 2):
            control.register(pack_echo(folder, model, version))
        control.release(model, 1)
        control.start_rollout(model, 2, STAYS)
        wait_until((self.store / f"{LEDGER}.reserve").exists, 30)
        assert self.versions(model) == {1, 2}

    def versions(self, model: str, count: int = 40) -> set[int]:
        """Which versions answer."""
        path = f"/predictions/{model}"
        answers = [self.running.http.post(path, json=QUESTION) for _ in range(count)]
        assert {each.status_code for each in answers} == {200}
        return {each.json()["version"] for each in answers}

    @contextmanager
    def full(self, *disks: Path) -> Iterator[None]:
        """Have no room on these disks while the body runs; afterwards all is well again."""
        files = [fill(disk) for disk in disks]
        try:
            yield
        finally:
            for file in files:
                file.unlink()
            wait_until(lambda: self.running.control.health().status == "ok", 60)


@pytest.fixture(scope="module")
def on_small_disks(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnSmallDisks]:
    settings = make_settings(tmp_path_factory.mktemp("small-disks"), engine_kind)
    with (
        small_disk(settings.model_store, "48m") as store,
        small_disk(settings.state_dir, "256m") as state,
        small_disk(settings.state_dir / "logs", "32m") as logs,
        running_stack(settings) as stack,
    ):
        yield OnSmallDisks(stack, store, state, logs)
        for disk in (store, state, logs):  # `vlserve down` needs no room either
            fill(disk)


@pytest.mark.long
@pytest.mark.parametrize("word", ["abort", "rollback"])
def test_traffic_goes_back_while_the_disks_are_full(
    on_small_disks: OnSmallDisks, new_model: str, tmp_path: Path, word: str
) -> None:
    control = on_small_disks.running.control
    store, state = on_small_disks.store, on_small_disks.state
    on_small_disks.release(new_model, tmp_path)
    with on_small_disks.full(store, state, on_small_disks.logs):
        with pytest.raises(StoreUnwritable, match="cannot take the archive: No space left"):
            control.register(pack_echo(tmp_path, new_model, 3))
        with pytest.raises(LedgerUnwritable, match="its disk is full"):
            control.pause(new_model)
        health = control.health()
        assert str(store) in health.status and str(state) in health.status
        if word == "abort":
            assert control.abort(new_model).status is RolloutStatus.ABORTED
        else:
            assert control.rollback(new_model).version == 1
        assert on_small_disks.versions(new_model) == {1}
        assert control.model(new_model).weights == {1: 100}
    with closing(sqlite3.connect(store / LEDGER)) as raw:
        for query, expected in (
            ("SELECT status FROM gray_releases", "aborted"),
            ("SELECT weights FROM models", '{"1": 100}'),
        ):
            rows = raw.execute(f"{query} WHERE model = ?", [new_model]).fetchall()
            assert rows == [(expected,)]
    assert on_small_disks.versions(new_model) == {1}


@pytest.mark.long
def test_full_logs_are_named_and_keep_nothing_from_going_back(
    on_small_disks: OnSmallDisks, new_model: str, tmp_path: Path
) -> None:
    control, logs = on_small_disks.running.control, on_small_disks.logs
    on_small_disks.release(new_model, tmp_path)
    with on_small_disks.full(logs):
        assert f"the disk of logs ({logs})" in control.health().status
        assert on_small_disks.versions(new_model) == {1, 2}
        report = control.abort(new_model)
        assert (report.status, report.unrecorded) == (RolloutStatus.ABORTED, "")
        assert on_small_disks.versions(new_model) == {1}


def test_the_gateways_files_on_a_full_disk(tmp_path: Path) -> None:
    """What it cannot write is refused and leaves the routing; the reserve makes it work."""
    with small_disk(tmp_path / ".vlserve", "16m") as disk, running_gateway(tmp_path) as envoy:
        first, second = (
            ModelRoute("tagger", weights={version: 100}, versions=(1, 2)) for version in (1, 2)
        )
        envoy.route(first, to=[])
        reserve = Reserve(disk / "gateway" / "reserve")
        reserve.keep()
        fill(disk)
        with pytest.raises(
            GatewayUnwritable, match=r"routes.json cannot be written: No space left"
        ):
            envoy.route(second, to=[])
        assert envoy.gateway.ready()
        reserve.give_up()
        envoy.route(second, to=[])
        assert envoy.gateway.ready()
