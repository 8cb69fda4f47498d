"""A way back while the gateway says nothing is kept, and put in force once it answers."""

from contextlib import nullcontext

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.ledger_troubles import Trouble, read_only
from support.rollout_traffic import Behaviour, Requests, drive, kinds, start
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import RolloutStatus
from vlserve.errors import GatewaySilent, NothingToRollBackTo
from vlserve.settings import Settings

LEDGERS: dict[str, Trouble] = {"open": lambda control: nullcontext(), "read-only": read_only}
FOLLOWS = "tagger goes back to 1 as soon as the gateway answers.*nothing is to be repeated"


@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS)
def test_rollback_is_carried_out_by_the_next_tick(
    tagger: Control, gateway: FakeGateway, ledger: Trouble
) -> None:
    tagger.service.release("tagger", 2)
    gateway.silent = True
    with ledger(tagger):
        for _ in range(2):  # to repeat it does not go back further
            with pytest.raises(GatewaySilent, match=FOLLOWS):
                tagger.service.rollback("tagger")
        assert gateway.route().weights == {2: 100}
        assert "gateway" in {trouble.check for trouble in tagger.service.health().troubles}
        gateway.silent = False
        tagger.reconciler.tick()
        assert gateway.route().weights == {1: 100}
    tagger.reconciler.tick()
    assert tagger.ledger.model("tagger").stack == (1,)
    assert kinds(tagger).count("rolled_back") == 1
    with pytest.raises(NothingToRollBackTo):
        tagger.service.rollback("tagger")


@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS)
def test_abort_is_carried_out_by_the_next_tick(
    tagger: Control, gateway: FakeGateway, ledger: Trouble
) -> None:
    start(tagger)
    weights = gateway.route().weights
    gateway.silent = True
    with ledger(tagger):
        for _ in range(2):
            with pytest.raises(GatewaySilent, match=FOLLOWS):
                tagger.service.rollouts.abort("tagger")
        assert gateway.route().weights == weights
        gateway.silent = False
        tagger.reconciler.tick()
        assert gateway.route().weights == {1: 100}
    tagger.reconciler.tick()
    assert tagger.service.rollouts.latest("tagger").status is RolloutStatus.ABORTED


def test_to_repeat_it_once_the_gateway_answers_is_to_carry_it_out(
    tagger: Control, gateway: FakeGateway
) -> None:
    tagger.service.release("tagger", 2)
    gateway.silent = True
    with pytest.raises(GatewaySilent):
        tagger.service.rollback("tagger")
    gateway.silent = False
    rollback = tagger.service.rollback("tagger")
    assert (rollback.version, rollback.previous) == (1, 2)
    assert gateway.route().weights == {1: 100}


def test_what_the_judge_takes_back_comes_too(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    start(tagger)
    gateway.silent = True
    view = drive(tagger, requests, {2: Behaviour(fail_rate=0.3)})
    assert view.status is RolloutStatus.ROLLED_BACK
    gateway.silent = False
    tagger.reconciler.tick()
    assert gateway.route().weights == {1: 100}


def test_a_control_service_that_is_started_anew_carries_it_out(
    tagger: Control, gateway: FakeGateway, settings: Settings, engine: FakeEngine
) -> None:
    tagger.service.release("tagger", 2)
    gateway.silent = True
    with pytest.raises(GatewaySilent):
        tagger.service.rollback("tagger")
    tagger.stop()
    gateway.silent = False
    second = assemble(settings, engine, gateway)
    second.reconciler.tick()
    assert gateway.route().weights == {1: 100}
    second.stop()


def test_forward_is_not_kept(tagger: Control, gateway: FakeGateway) -> None:
    gateway.silent = True
    with pytest.raises(GatewaySilent):
        tagger.service.release("tagger", 2)
    gateway.silent = False
    tagger.reconciler.tick()
    assert gateway.route().weights == {1: 100}
