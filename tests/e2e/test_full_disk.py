"""The disks of the store and of the state are full in the middle of a rollout: real processes."""

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
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


def versions(running: RunningStack, count: int = 40) -> set[int]:
    """Which versions answer."""
    url = f"{running.gateway_url}/predictions/tagger"
    answers = [httpx.post(url, json=QUESTION, trust_env=False, timeout=60) for _ in range(count)]
    assert {each.status_code for each in answers} == {200}
    return {each.json()["version"] for each in answers}


@pytest.mark.long
@pytest.mark.parametrize("word", ["abort", "rollback"])
def test_traffic_goes_back_while_the_disks_are_full(
    engine_kind: EngineKind, tmp_path: Path, word: str
) -> None:
    settings = make_settings(tmp_path, engine_kind)
    with (
        small_disk(settings.model_store, "48m") as store,
        small_disk(settings.state_dir, "256m") as state,
        running_stack(settings) as running,
    ):
        control = running.control
        for version in (1, 2):
            control.register(pack_echo(tmp_path, "tagger", version))
        control.release("tagger", 1)
        control.start_rollout("tagger", 2, STAYS)
        wait_until(lambda: (store / f"{LEDGER}.reserve").exists(), 30)
        assert versions(running) == {1, 2}
        filling = [fill(store), fill(state)]
        with pytest.raises(StoreUnwritable, match="cannot take the archive: No space left"):
            control.register(pack_echo(tmp_path, "tagger", 3))
        with pytest.raises(LedgerUnwritable, match="its disk is full"):
            control.pause("tagger")
        health = control.health()
        assert str(store) in health.status and str(state) in health.status
        if word == "abort":
            assert control.abort("tagger").status is RolloutStatus.ABORTED
        else:
            assert control.rollback("tagger").version == 1
        assert versions(running) == {1}
        assert control.model("tagger").weights == {1: 100}
        for file in filling:
            file.unlink()
        wait_until(lambda: control.health().status == "ok", 60)
        with closing(sqlite3.connect(store / LEDGER)) as raw:
            assert raw.execute("SELECT status FROM gray_releases").fetchall() == [("aborted",)]
            assert raw.execute("SELECT weights FROM models").fetchall() == [('{"1": 100}',)]
        assert versions(running) == {1}
        fill(store), fill(state)  # `vlserve down` needs no room either


@pytest.mark.long
def test_full_logs_are_named_and_keep_nothing_from_going_back(
    engine_kind: EngineKind, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, engine_kind)
    with (
        small_disk(settings.state_dir / "logs", "32m") as logs,
        running_stack(settings) as running,
    ):
        control = running.control
        for version in (1, 2):
            control.register(pack_echo(tmp_path, "tagger", version))
        control.release("tagger", 1)
        control.start_rollout("tagger", 2, STAYS)
        fill(logs)
        assert f"the disk of logs ({logs})" in control.health().status
        assert versions(running) == {1, 2}
        aborted = control.abort("tagger")
        assert (aborted.status, aborted.unrecorded) == (RolloutStatus.ABORTED, "")
        assert versions(running) == {1}


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
