"""The game day, small: every case is decided right, and nothing of it is left but a stable twin."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import on_triton
from support.running_stack import ANY_LATENCY, make_settings, tolerate_latency
from support.running_triton import need_triton
from vlserve.control.domain import State
from vlserve.drill.cases import PROMOTED, REFUSED, ROLLED_BACK, Policy
from vlserve.drill.engine_comparison import compare_engines
from vlserve.drill.game_day import run_drill
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

SMALL = Policy(weights=(50, 100), hold_s=1.0, shadow_percent=100, minimum=40, pairs=45)


TWICE = 1.0
"""Twice as slow is tolerated; the slow release takes at least three times as long as stable."""


@pytest.fixture
def latency_gates(stack: RunningStack) -> Iterator[None]:
    """The slow release is to be taken back by them."""
    policy = stack.settings.config_file("rollout.yaml")
    tolerate_latency(policy, TWICE)
    yield
    tolerate_latency(policy, ANY_LATENCY)


@on_triton(tier="same")
@pytest.mark.long
def test_six_releases_are_decided_right(
    stack: RunningStack, latency_gates: None, new_model: str, tmp_path: Path
) -> None:
    stack.control.register(pack_echo(tmp_path, new_model, 1, delay_ms=3))
    stack.control.release(new_model, 1)
    before = stack.control.history(new_model)

    result = run_drill(
        stack.settings, stack.control, new_model, tmp_path / "drill", print, SMALL, 30.0
    )

    decisions = {case.name: (case.decision, case.lost, case.passed) for case in result.cases}
    crashing_lost = decisions["crashing"][1]
    assert decisions == {
        "good": (PROMOTED, 0, True),
        "slow": (ROLLED_BACK, 0, True),
        "failing": (ROLLED_BACK, 0, True),
        "different": (ROLLED_BACK, 0, True),
        "crashing": (ROLLED_BACK, crashing_lost, True),
        "bad archive": (REFUSED, 0, True),
    }, result
    assert result.passed
    assert "by version" in result.report.read_text(encoding="utf-8")

    assert stack.control.history(new_model) == before
    view = stack.control.model(f"{new_model}-drill")
    assert view.stable == 2  # the good one
    states = {version.version: version.state for version in view.versions}
    assert states == {2: State.STABLE} | dict.fromkeys((1, 3, 4, 5, 6), State.RETIRED)


@pytest.mark.long
def test_both_engines_give_the_archive_s_answers(tmp_path: Path) -> None:
    need_triton()
    archive = pack_echo(tmp_path, "tagger", 1)
    result = compare_engines(make_settings(tmp_path), archive, tmp_path / "drill", print, good=20)
    assert result.passed, result
    assert {each.side for each in result.comparisons} == {
        f"{kind}, {way}" for kind in ("torchserve", "triton") for way in ("alone", "16 connections")
    }
    record = json.loads(result.result.read_text(encoding="utf-8"))
    assert len(record["comparisons"]) == 5
    assert {each["requests"] for each in record["comparisons"]} == {result.requests}
