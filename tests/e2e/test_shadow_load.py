"""Shadows that are well, slow or dead, while clients ask: benchmarks/release/shadow.py in short."""

from pathlib import Path

import pytest

from vlserve.control.domain import ModelRoute
from vlserve.drill.shadow_cost import KINDS, MODEL, STABLE, engines, measure
from vlserve.testing.clients import Load, drawn_questions
from vlserve.testing.own_gateway import own_gateway


@pytest.mark.long
def test_no_shadow_costs_a_client_its_answer(tmp_path: Path) -> None:
    questions = drawn_questions(tmp_path / "covers", count=10)
    with own_gateway(tmp_path) as own, engines(KINDS) as instances:
        own.route([ModelRoute(MODEL, {STABLE: 100}, (STABLE,))], instances[KINDS[0]])
        load = Load(own.url, MODEL, clients=12, rate_per_s=60.0)
        costs, lost = measure(own, instances, questions, load, rounds=1, seconds=1.5)
    assert lost == 0
    for kind, cost in costs.items():
        print(kind, cost.requests, cost.copies)
        assert bool(cost.copies) == bool(kind.percent)
