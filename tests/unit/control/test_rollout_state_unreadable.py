"""A rollout whose kept state this code cannot read: a person can still end it either way."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import QUICK, Requests, drive, kinds, look, register, start, state
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import RolloutStatus, State
from vlserve.control.rollouts.active import STATE_UNREADABLE
from vlserve.control.rollouts.state import SCHEMA, RolloutState, StateUnreadable, read_state
from vlserve.control.rollouts.steps import KEEP_S
from vlserve.control.store.rollouts import RolloutStore
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.errors import GatewayRefused, NotReady, ReleaseUnderWay
from vlserve.settings import Settings

Archive = Callable[..., Path]
Fields = dict[str, Any]


def unknown_gate(fields: Fields) -> None:
    fields["judge"]["policy"]["gates"]["drift"] = {"share": 0.01}


def missing_field(fields: Fields) -> None:
    del fields["judge"]["errors"]


def newer_schema(fields: Fields) -> None:
    fields["schema"] = SCHEMA + 1


def step_after_the_last(fields: Fields) -> None:
    fields["judge"]["step"] = 7


def words_for_numbers(fields: Fields) -> None:
    fields["judge"]["errors"]["purses"] = {"cash": "half"}


def row_for_purses(fields: Fields) -> None:
    fields["judge"]["errors"]["purses"] = [fields["judge"]["errors"]["purses"]]


def number_for_histogram(fields: Fields) -> None:
    fields["judge"]["latency"]["candidate"] = 0.0


def tags_without_names(fields: Fields) -> None:
    fields["judge"]["tags"]["candidate"] = [1.0, 2.0]


def null_in_purses(fields: Fields) -> None:
    fields["judge"]["sample_ratio"]["peak"] = None


def short_window(fields: Fields) -> None:
    fields["windows"]["latencies"]["stable"] = [1.0]


def cut_table_of_callers(fields: Fields) -> None:
    fields["judge"]["seen_callers"] = "AAAA"


def place_before_a_log(fields: Fields) -> None:
    fields["requests"]["offset"] = -1


def changed(change: Callable[[Fields], None]) -> Callable[[str], str]:
    def write(text: str) -> str:
        fields = json.loads(text)
        change(fields)
        return json.dumps(fields)

    return write


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "unknown gate": (changed(unknown_gate), r"judge\.policy\.gates\.drift"),
    "missing field": (changed(missing_field), r"judge\.errors: Field required"),
    "newer schema": (changed(newer_schema), f"schema {SCHEMA + 1}, this vlserve reads {SCHEMA}"),
    "step after the last": (changed(step_after_the_last), "step 7 of 3 weights"),
    "words for numbers": (changed(words_for_numbers), "not 'dict'"),
    "row for purses": (changed(row_for_purses), r"judge\.errors\.purses has shape \(1, 8\)"),
    "number for histogram": (changed(number_for_histogram), r"latency\.candidate has shape \(\)"),
    "tags without names": (changed(tags_without_names), r"judge\.tags\.candidate has shape"),
    "null for a number": (changed(null_in_purses), r"sample_ratio\.peak holds something else"),
    "short window": (changed(short_window), r"windows\.latencies\.stable has shape \(1,\)"),
    "cut table": (changed(cut_table_of_callers), "a table of 3 bytes, not 8192"),
    "place before a log": (changed(place_before_a_log), "a place in a log is before"),
    "not JSON": (lambda text: text[:-5], "it is not JSON"),
    "no object": (lambda text: "[]", "it is no JSON object"),
    "empty": (lambda text: "", "it is not JSON"),
}


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
def why(request: pytest.FixtureRequest, tagger: Control) -> str:
    """tagger 2 is at 20 %, and its state is broken; a pattern of what is said of it."""
    write, pattern = request.param
    start(tagger)
    break_state(tagger, write)
    return str(pattern)


@pytest.fixture
def unreadable_rollout(tagger: Control) -> Control:
    """tagger 2 is at 20 %, under a gate that this code does not have."""
    start(tagger)
    break_state(tagger, changed(unknown_gate))
    return tagger


def break_state(control: Control, write: Callable[[str], str]) -> str:
    """Write another state into the ledger; return it."""
    database = control.ledger.database
    (row,) = database.query("SELECT progress FROM gray_releases WHERE ended_at IS NULL")
    text = write(row["progress"])
    database.execute("UPDATE gray_releases SET progress = ? WHERE ended_at IS NULL", text)
    return text


@contextmanager
def restarted(
    control: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> Iterator[Control]:
    """The control service after a kill: nothing of the old process is left but the ledger."""
    control.ledger.close()
    second = assemble(settings, engine, gateway)
    try:
        second.reconciler.tick()
        yield second
    finally:
        second.stop()


def unreadable_events(control: Control) -> list[Any]:
    return [event for event in control.ledger.events("tagger") if event.kind == STATE_UNREADABLE]


def test_abort_takes_the_traffic_back_and_the_history_says_why(
    tagger: Control, gateway: FakeGateway, why: str
) -> None:
    rollout = tagger.service.rollouts.abort("tagger")
    assert (rollout.status, rollout.weight) == (RolloutStatus.ABORTED, 0)
    assert gateway.route().weights == {1: 100}
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.READY)
    event = tagger.ledger.events("tagger")[-1]
    assert (event.kind, event.version, event.detail["by"]) == ("aborted", 1, "user")
    assert re.search(f"the state of the rollout cannot be read.*{why}", event.detail["reason"])


def test_rollback_takes_the_traffic_back(tagger: Control, gateway: FakeGateway, why: str) -> None:
    rollback = tagger.service.rollback("tagger")
    assert (rollback.version, rollback.previous) == (1, 2)
    assert gateway.route().weights == {1: 100}
    assert re.search(why, tagger.ledger.events("tagger")[-1].detail["reason"])
    assert look(tagger).status is RolloutStatus.ABORTED


def test_promote_by_hand_gives_the_candidate_all_traffic(
    tagger: Control, gateway: FakeGateway, why: str
) -> None:
    rollout = tagger.service.rollouts.promote("tagger")
    assert (rollout.status, rollout.weight) == (RolloutStatus.PROMOTED, 100)
    assert gateway.route().weights == {2: 100}
    assert tagger.ledger.model("tagger").stack == (1, 2)
    event = tagger.ledger.events("tagger")[-1]
    assert (event.kind, event.detail["by"]) == ("released", "user")
    assert re.search(why, event.detail["reason"])


def test_it_is_shown_with_what_to_do(tagger: Control, why: str) -> None:
    view = look(tagger)
    assert (view.status, view.weight, view.step) == (RolloutStatus.RUNNING, 20, 0)
    assert (view.weights, view.hold_s) == ((20, 50, 100), 0)
    assert (view.decision, view.windows) == (None, ())
    assert re.search(f"cannot be read.*{why}", view.state_error)
    assert "`vlserve abort tagger`" in view.state_error
    assert "`vlserve promote tagger`" in view.state_error
    (model,) = tagger.service.models()
    assert model.weights == {2: 20, 1: 80}


def test_the_tick_says_it_once_and_leaves_the_traffic(
    tagger: Control,
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    requests: Requests,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    before = kinds(tagger)
    view = drive(tagger, requests, ticks=5)
    assert (view.status, view.weight) == (RolloutStatus.RUNNING, 20)
    (event,) = unreadable_events(tagger)
    assert (event.version, event.detail["rollout"]) == (2, view.id)
    assert re.search(f"{why}.*vlserve abort tagger.*vlserve promote", event.detail["reason"])
    assert kinds(tagger) == [*before, STATE_UNREADABLE]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    with restarted(tagger, settings, engine, gateway) as second:
        drive(second, requests, ticks=5)
        assert gateway.route().weights == {2: 20, 1: 80}
        assert unreadable_events(second) == [event]


def test_after_a_restart_of_the_service_it_can_be_ended(
    tagger: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway, why: str
) -> None:
    with restarted(tagger, settings, engine, gateway) as second:
        second.rollout_loop.tick()
        assert re.search(why, look(second).state_error)
        assert second.service.health().status == "ok"
        second.service.rollouts.abort("tagger")
        assert gateway.route().weights == {1: 100}
    with restarted(second, settings, engine, gateway) as third:
        assert look(third).status is RolloutStatus.ABORTED
        assert re.search(why, look(third).state_error)
        assert "vlserve abort" not in look(third).state_error


def test_pause_and_resume_work(unreadable_rollout: Control) -> None:
    assert unreadable_rollout.service.rollouts.pause("tagger").status is RolloutStatus.PAUSED
    assert unreadable_rollout.service.rollouts.resume("tagger").status is RolloutStatus.RUNNING


def test_another_rollout_is_refused_until_it_has_ended(
    unreadable_rollout: Control, pack: Archive
) -> None:
    register(unreadable_rollout, pack("tagger", 3))
    with pytest.raises(ReleaseUnderWay, match="vlserve abort tagger"):
        start(unreadable_rollout, 3)
    unreadable_rollout.service.rollouts.abort("tagger")
    assert start(unreadable_rollout, 3).weight == 20
    assert look(unreadable_rollout).state_error == ""


def test_the_candidate_that_was_taken_back_stays_loaded_for_a_while(
    unreadable_rollout: Control,
) -> None:
    unreadable_rollout.service.rollouts.abort("tagger")
    unreadable_rollout.rollout_loop.tick()
    assert state(unreadable_rollout, 2) is State.READY
    (record,) = RolloutStore(unreadable_rollout.ledger).kept()
    assert record.keep_until is not None
    assert 0 < record.keep_until - time.time() <= KEEP_S


def test_what_cannot_be_read_stays_as_it_was(tagger: Control) -> None:
    start(tagger)
    text = break_state(tagger, changed(newer_schema))
    tagger.rollout_loop.tick()
    tagger.service.rollouts.abort("tagger")
    (row,) = tagger.ledger.database.query("SELECT progress FROM gray_releases")
    assert row["progress"] == text


def test_never_back_onto_a_stable_that_is_not_healthy(
    unreadable_rollout: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    engine.answer_wrong.add(("tagger", 1))
    with pytest.raises(NotReady, match="tagger 1 is not healthy"):
        unreadable_rollout.service.rollouts.abort("tagger")
    assert gateway.route().weights == {2: 20, 1: 80}


def test_a_gateway_that_refuses_leaves_all_as_it_was(
    unreadable_rollout: Control, gateway: FakeGateway
) -> None:
    gateway.refuse = "busy"
    with pytest.raises(GatewayRefused):
        unreadable_rollout.service.rollouts.abort("tagger")
    assert look(unreadable_rollout).status is RolloutStatus.RUNNING
    gateway.refuse = ""
    assert unreadable_rollout.service.rollouts.abort("tagger").status is RolloutStatus.ABORTED


def test_other_models_go_on(
    unreadable_rollout: Control, pack: Archive, requests: Requests, gateway: FakeGateway
) -> None:
    register(unreadable_rollout, pack("other", 1), pack("other", 2))
    unreadable_rollout.service.release("other", 1)
    unreadable_rollout.reconciler.tick()
    unreadable_rollout.service.rollouts.start("other", 2, QUICK)
    for _ in range(60):
        requests.send(40, model="other")
        unreadable_rollout.rollout_loop.tick()
    assert look(unreadable_rollout, "other").status is RolloutStatus.PROMOTED
    assert gateway.route().weights == {2: 20, 1: 80}


def test_over_http_it_has_the_fields_of_any_other(unreadable_rollout: Control) -> None:
    view = RolloutView.model_validate(look(unreadable_rollout))
    assert RolloutView.model_validate_json(view.model_dump_json()) == view
    assert view.state_error == look(unreadable_rollout).state_error
    assert view.decision is None


def test_a_state_without_a_schema_number_is_that_of_0_1_0(tagger: Control) -> None:
    start(tagger)
    text = break_state(tagger, changed(lambda fields: fields.pop("schema")))
    state = read_state(text)
    assert isinstance(state, RolloutState)
    assert json.loads(state.to_json())["schema"] == SCHEMA


def test_a_reason_is_no_longer_than_a_person_reads(tagger: Control) -> None:
    start(tagger)
    text = break_state(tagger, changed(lambda fields: fields["judge"].clear()))
    state = read_state(text)
    assert isinstance(state, StateUnreadable)
    assert len(str(state)) < 400
