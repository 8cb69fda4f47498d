"""Versions that come, take over, give back and go while clients ask: in short what
benchmarks/release/hot_update.py does, on the shared stack."""

from pathlib import Path

from support.engines import on_triton
from vlserve.drill.hot_update import judge, update_in_rounds
from vlserve.testing import RunningStack
from vlserve.testing.clients import Clients, Load, drawn_questions
from vlserve.testing.editions import echo_editions

pytestmark = on_triton(tier="long")

ROUNDS = 1
SLOW_MS = 100.0
"""So long takes an answer: requests are always under way, also when a version is unloaded."""


def test_updates_under_load_lose_no_request_and_give_no_wrong_answer(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    questions = drawn_questions(tmp_path / "covers", count=10)
    editions = echo_editions(tmp_path, new_model, questions, delay_ms=SLOW_MS)
    load = Load(stack.gateway_url, new_model, clients=20, rate_per_s=40.0)
    clients = Clients(load, questions, right={})
    steps, exchanges = update_in_rounds(stack.control, clients, editions, ROUNDS, print)
    result = judge(load, None, clients.connections, steps, exchanges, (0.0, 0.0))
    print(result)
    assert result.lost == {}
    assert result.wrong == {}
    assert result.connections == load.clients  # every connection was kept
    releases = [step.version for step in steps if step.verb == "release"]
    for target in (None, releases[-1]):
        versions = {each.version for each in exchanges if each.wanted == target}
        assert versions == ({*releases} if target is None else {target})
