"""The logs that earlier code wrote are read line by line, and as a rollout's evidence."""

import json
from pathlib import Path
from typing import Any

from support.recorded import LOGS
from vlserve.control.gateway.log_lines import read_access_line, read_shadow_line
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.log_evidence import Pair, copies, join, outcome
from vlserve.control.rollouts.log_reader import Cursor, Line, as_model, read_since
from vlserve.runtime.answer_log import read_answer_line

BOTH = Pair(candidate=2, stable=1)


def lines(project: Path, name: str) -> list[Line]:
    return [
        json.loads(line)
        for line in (project / LOGS / name).read_text(encoding="utf-8").splitlines()
    ]


def same(read: Any, fields: Line) -> bool:
    return all(getattr(read, name) == value for name, value in fields.items())


def test_every_line_is_read_with_all_its_fields(project: Path) -> None:
    read = {
        "access.jsonl": read_access_line,
        "answers.jsonl": read_answer_line,
        "shadow.jsonl": read_shadow_line,
    }
    for name, reader in read.items():
        written = lines(project, name)
        assert len(written) > 20
        assert [line for line in written if not same(reader(line), line)] == []


def test_requests_of_a_canary_are_evidence_for_both_versions(project: Path) -> None:
    answers = AnswerLog(project / LOGS / "answers.jsonl", "tagger", Cursor())
    answers.read()
    log = project / LOGS / "access.jsonl"
    found, _ = read_since(log, Cursor(), b'"1/0"')
    outcomes = [outcome(line, BOTH, answers) for line in as_model(found, read_access_line, log)]
    judged = [each for each in outcomes if each is not None]
    assert len(judged) == len(outcomes) >= 60
    assert {each.candidate for each in judged} == {True, False}
    assert all(not each.failed and each.latency_ms > 0 for each in judged)
    assert all(bool(each.tag) != each.refused for each in judged)
    assert any(each.refused for each in judged)
    assert any(each.caller for each in judged)


def test_copies_of_a_shadow_find_both_answers(project: Path) -> None:
    answers = AnswerLog(project / LOGS / "answers.jsonl", "banner", Cursor())
    answers.read()
    copied = copies(map(read_shadow_line, lines(project, "shadow.jsonl")), now=0.0)
    pairs, waiting = join(copied, BOTH, answers, now=1.0)
    answered = [copy for copy in copied if copy.status == 200]  # one may be of the refused request
    assert (len(pairs), waiting) == (len(answered), [])
    assert len(copied) - 1 <= len(pairs)
