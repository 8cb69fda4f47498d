"""Spans of a handler's stages, from lines of the access log."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from support.control_fakes import FakeEngine, FakeGateway
from support.running_stack import wait_until
from vlserve.control import stage_spans
from vlserve.control.assembly import Control, assemble
from vlserve.control.stage_spans import StageSpans, message, spans_of
from vlserve.settings import Settings
from vlserve.settings_sections import TracesSettings

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
TRACE = {
    "parent": PARENT,
    "timing": "decode;dur=1.000, infer;dur=2.500",
    "began_us": "1800000000000000",
    "sent_us": 300,
    "engine_us": 4500,
}
LINE = {"model": "tagger", "version": "2", "request_id": "r1", "trace": TRACE}


def test_stages_end_with_the_engines_answer() -> None:
    engine, decode, infer = spans_of(LINE)
    assert (engine["name"], engine["parentSpanId"]) == ("engine", "b" * 16)
    assert engine["startTimeUnixNano"] == "1800000000000300000"
    assert engine["endTimeUnixNano"] == "1800000000004800000"
    assert decode["parentSpanId"] == infer["parentSpanId"] == engine["spanId"]
    assert decode["startTimeUnixNano"] == "1800000000001300000"  # 1 ms in the queue
    assert infer["endTimeUnixNano"] == engine["endTimeUnixNano"]
    attributes = {each["key"]: each["value"]["stringValue"] for each in engine["attributes"]}
    assert attributes == {
        "vlserve.model": "tagger",
        "vlserve.version": "2",
        "vlserve.request_id": "r1",
    }
    assert list(spans_of(LINE)) == [engine, decode, infer]  # the same ids each time


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": f"00-{'a' * 32}-{'b' * 16}-00"},
        {"parent": f"00-{'0' * 32}-{'b' * 16}-01"},
        {"parent": None},
        {"parent": "garbage"},
        {"began_us": None},
        {"began_us": "-1"},
        {"sent_us": None},
        {"sent_us": "12"},
        {"engine_us": None},  # no engine answered
    ],
)
def test_what_was_not_sampled_or_answered_has_none(changes: dict[str, Any]) -> None:
    assert list(spans_of(LINE | {"trace": TRACE | changes})) == []


def test_lines_of_while_traces_were_off_have_none() -> None:
    assert list(spans_of({"model": "tagger"})) == []
    assert list(spans_of({"trace": "me"})) == []


def test_stages_that_add_up_to_more_than_the_engine_begin_with_it() -> None:
    """An item of several: its batches' times may overlap."""
    many = TRACE | {"timing": "decode;dur=9"}
    engine, decode = spans_of(LINE | {"trace": many})
    assert decode["startTimeUnixNano"] == engine["startTimeUnixNano"]


@pytest.mark.parametrize(
    ("timing", "stages"),
    [
        (None, []),
        ("garbage;;;, =, ;dur=1", []),
        ("decode;dur=NaN, infer;dur=1e999, a;dur=-1, b;dur=2", ["b"]),
        ("decode;dur=1, engine;dur=4500e-3", ["decode"]),  # of Triton
    ],
)
def test_only_readable_times_are_stages(timing: str | None, stages: list[str]) -> None:
    _, *spans = spans_of(LINE | {"trace": TRACE | {"timing": timing}})
    assert [span["name"] for span in spans] == stages


def test_a_message_names_the_service() -> None:
    (resource,) = message(spans_of(LINE))["resourceSpans"]
    assert resource["resource"]["attributes"][0]["value"] == {"stringValue": "vlserve"}
    assert len(resource["scopeSpans"][0]["spans"]) == 3


def test_the_service_follows_the_log_where_traces_are_on(
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        StageSpans, "_send", lambda _, spans: names.extend(span["name"] for span in spans)
    )
    monkeypatch.setattr(stage_spans, "EVERY_S", 0.01)
    traces = TracesSettings(otlp_url="http://127.0.0.1:4318/v1/traces")
    control = assemble(settings.model_copy(update={"traces": traces}), engine, gateway)
    try:
        control.start()
        log = settings.state_dir / "logs" / "access.jsonl"
        log.write_text(f"{json.dumps(LINE)}\n{json.dumps({'model': 'tagger'})}\n", encoding="utf-8")
        wait_until(lambda: names)
        assert names == ["engine", "decode", "infer"]
    finally:
        control.stop()


def test_nothing_follows_the_log_where_traces_are_off(control: Control) -> None:
    assert control.stage_spans is None


@pytest.mark.parametrize(
    "url", ["https://collector/v1/traces", "grpc://collector:4317", "http://", "http://a:0/", "x"]
)
def test_other_collectors_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        TracesSettings(otlp_url=url)
