"""Handler files are found by path and define one task; answers are compared with tolerance."""

from pathlib import Path
from typing import Any

import pytest

from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.runtime.task import difference, load_task

TASK = """
from vlserve.runtime.body import RequestFields
from vlserve.runtime.task import Task

class Asked(RequestFields):
    n: int

class {name}(Task[Asked]):
    fields = Asked
    def preprocess(self, fields):
        return {{}}
    def postprocess(self, outputs, index, fields):
        return {{}}
"""


def test_one_task_a_file(tmp_path: Path) -> None:
    file = tmp_path / "count.py"
    file.write_text(TASK.format(name="Count"), encoding="utf-8")
    task = load_task(file)
    assert task.__name__ == "Count"
    assert set(task.fields.model_fields) == {"n"}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("from vlserve.runtime.task import Task\n", "0 tasks"),
        (TASK.format(name="One") + TASK.format(name="Two"), "2 tasks"),
        ("def (", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
        ("raise SystemError('x')\n", "SystemError"),
    ],
)
def test_what_is_no_task_file(tmp_path: Path, source: str, why: str) -> None:
    file = tmp_path / "count.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ArchiveUnreadable, match=why):
        load_task(file)


def test_a_missing_task_file(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnreadable, match="none"):
        load_task(tmp_path / "none.py")


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": 1}, {"a": 1.0005, "b": 2}),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "x"}]}),
        ({"a": True, "b": None}, {"a": True, "b": None}),
        ([], []),
    ],
)
def test_same_answers(expected: Any, actual: Any) -> None:
    assert difference(expected, actual) is None


@pytest.mark.parametrize(
    ("expected", "actual", "where"),
    [
        ({"a": 1}, {"a": 1.002}, "answer.a"),
        ({"a": 1}, {}, "no a"),
        ({"a": [1, 2]}, {"a": [1]}, "1 entries"),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "y"}]}, r"answer\.a\[1\]\.b"),
        ({"a": True}, {"a": 1}, "answer.a"),
        ({"a": 1}, {"a": True}, "answer.a"),
        ({"a": "1"}, {"a": 1}, "answer.a"),
        ({"a": 1}, [1], "answer"),
        ({"a": 1}, {"a": float("nan")}, "answer.a"),
    ],
)
def test_different_answers_say_where(expected: Any, actual: Any, where: str) -> None:
    with pytest.raises(AssertionError, match=where):
        assert difference(expected, actual) is None, difference(expected, actual)
