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


def same(record: Any, fields: Line) -> bool:
    return all(getattr(record, name) == value for name, value in fields.items())


def test_every_line_is_read_with_all_its_fields(project: Path) -> None:
    readers = {
        "access.jsonl": read_access_line,
        "answers.jsonl": read_answer_line,
        "shadow.jsonl": read_shadow_line,
    }
    for name, reader in readers.items():
        entries = lines(project, name)
        assert len(entries) > 20
        assert [line for line in entries if not same(reader(line), line)] == []


def test_requests_of_a_canary_are_evidence_for_both_versions(project: Path) -> None:
    answers = AnswerLog(project / LOGS / "answers.jsonl", "tagger", Cursor())
    answers.read()
    log = project / LOGS / "access.jsonl"
    log_lines, _ = read_since(log, Cursor(), b'"1/0"')
    outcomes = [outcome(line, BOTH, answers) for line in as_model(log_lines, read_access_line, log)]
    evidence = [item for item in outcomes if item is not None]
    assert len(evidence) == len(outcomes) >= 60
    assert {item.candidate for item in evidence} == {True, False}
    assert all(not item.failed and item.latency_ms > 0 for item in evidence)
    assert all(bool(item.tag) != item.refused for item in evidence)
    assert any(item.refused for item in evidence)
    assert any(item.caller for item in evidence)


def test_copies_of_a_shadow_find_both_answers(project: Path) -> None:
    answers = AnswerLog(project / LOGS / "answers.jsonl", "banner", Cursor())
    answers.read()
    shadow_copies = copies(map(read_shadow_line, lines(project, "shadow.jsonl")), now=0.0)
    pairs, rest = join(shadow_copies, BOTH, answers, now=1.0)
    # one may be of the refused request
    successes = [copy for copy in shadow_copies if copy.status == 200]
    assert (len(pairs), rest) == (len(successes), [])
    assert len(shadow_copies) - 1 <= len(pairs)
