"""Logs that grow, are renamed and are cut off: each line is read once."""

import json
from pathlib import Path

import pytest

from vlserve.control.log_rotation import rotate
from vlserve.control.rollouts.answer_log import KEPT, OWN_FAULTS, AnswerLog
from vlserve.control.rollouts.log_reader import Cursor, end_of, read_since
from vlserve.runtime.answering import HTTP_STATUS

ALL = b""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.jsonl"


def write(log: Path, *numbers: int, end: str = "\n") -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps({"n": number}) for number in numbers) + end)


def numbers(log: Path, cursor: Cursor) -> tuple[list[int], Cursor]:
    lines, after = read_since(log, cursor, ALL)
    return [line["n"] for line in lines], after


def test_lines_are_read_once_and_only_whole_ones(log: Path) -> None:
    assert numbers(log, Cursor()) == ([], Cursor())
    write(log, 1, 2)
    write(log, 3, end="")
    entries, cursor = numbers(log, Cursor())
    assert entries == [1, 2]
    assert numbers(log, cursor)[0] == []
    write(log, end="\n")
    assert numbers(log, cursor)[0] == [3]


def test_a_line_that_is_no_json_object_hides_none_of_its_neighbours(log: Path) -> None:
    write(log, 1)
    with log.open("a", encoding="utf-8") as file:
        file.write("no JSON\n[1]\n" + "[" * 100_000 + "\n")
    write(log, 2)
    assert numbers(log, Cursor())[0] == [1, 2]


def test_what_was_there_before_the_cursor_is_not_read(log: Path) -> None:
    write(log, 1)
    cursor = end_of(log)
    write(log, 2)
    assert numbers(log, cursor)[0] == [2]
    assert end_of(log.with_name("none.jsonl")) == Cursor()


def test_renamed_files_are_read_to_their_end_in_their_order(log: Path) -> None:
    write(log, 1)
    _, cursor = numbers(log, Cursor())
    write(log, 2)
    assert rotate(log, largest=1)
    write(log, 3)
    assert rotate(log, largest=1)
    write(log, 4)
    entries, cursor = numbers(log, cursor)
    assert entries == [2, 3, 4]
    assert rotate(log, largest=1)
    assert numbers(log, cursor)[0] == []  # between the rename and the first line of a new file
    write(log, 5)
    assert numbers(log, cursor)[0] == [5]


def test_a_cursor_into_a_file_that_is_gone_means_all_that_is_left(log: Path) -> None:
    write(log, 1)
    _, cursor = numbers(log, Cursor())
    for number in range(2, 5):
        rotate(log, largest=1, count=1)
        write(log, number)
    assert numbers(log, cursor)[0] == [3, 4]


def test_rotation_waits_for_a_large_file_and_keeps_some(log: Path) -> None:
    write(log, 1)
    assert not rotate(log, largest=1000)
    for number in range(2, 6):
        assert rotate(log, largest=1, count=2)
        write(log, number)
    assert sorted(file.name for file in log.parent.iterdir()) == [
        "access.jsonl",
        "access.jsonl.1",
        "access.jsonl.2",
    ]


def test_lines_that_are_no_json_or_of_another_release_are_left_out(log: Path) -> None:
    log.write_text(
        '{"step": "1/0"}\nnot json "1/0"\n["1/0"]\n{"step": "11/0"}\n{"step": "1/0"}\n',
        encoding="utf-8",
    )
    lines, _ = read_since(log, Cursor(), b'"1/0"')
    assert lines == [{"step": "1/0"}, {"step": "1/0"}]


def answer(name: str, version: int, **rest: object) -> str:
    return json.dumps({"request_id": name, "model": "tagger", "version": version, **rest}) + "\n"


def test_answers_are_found_by_request_and_version(log: Path) -> None:
    log.write_text(
        answer("a", 1, scores={"music": 0.7, "food": 0.2}, digest="d")
        + answer("a", 2, error="inference_failed")
        + '{"model": "tagger", "request_id": "b"}\n'
        + answer("c", 1, scores={}).replace("tagger", "other"),
        encoding="utf-8",
    )
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    first = answers.of("a", 1)
    assert first is not None and (first.label, first.failed) == ("music", False)
    second = answers.of("a", 2)
    assert second is not None and (second.label, second.failed) == (None, True)
    assert answers.of("b", 1) is None
    assert answers.of("c", 1) is None


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" ,\t", " :  ")])
def test_answers_are_found_whatever_white_space_a_line_has(
    log: Path, separators: tuple[str, str]
) -> None:
    line = {"request_id": "a", "model": "tagger", "version": 1, "scores": {"music": 0.7}}
    log.write_text(json.dumps(line, separators=separators) + "\n", encoding="utf-8")
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    result = answers.of("a", 1)
    assert result is not None and result.label == "music"


def test_a_line_of_a_newer_schema_is_left_out_and_warned_of(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.write_text(
        answer("a", 1, schema=2) + answer("b", 1, schema=1) + answer("c", 1), encoding="utf-8"
    )
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    assert [answers.of(name, 1) is not None for name in "abc"] == [False, True, True]
    assert "answers" not in caplog.text and "access.jsonl: 1 lines cannot be read" in caplog.text
    assert "schema" in caplog.text


def test_another_process_reads_the_answers_of_the_last_minutes_alone(log: Path) -> None:
    answers, places = AnswerLog(log, "tagger", Cursor()), [Cursor()]
    for minute in range(20):
        with log.open("a", encoding="utf-8") as file:
            file.write(answer(f"r{minute}", 1, scores={}))
        answers.read()
        begin = answers.begin_at(60.0 * minute)
        places.append(end_of(log))
        assert begin == places[max(0, minute - 9)]
    another = AnswerLog(log, "tagger", begin)
    another.read()
    found = [minute for minute in range(20) if another.of(f"r{minute}", 1)]
    assert found == list(range(10, 20))


def test_a_request_id_that_came_twice_stands_for_neither(log: Path) -> None:
    log.write_text(answer("a", 1, scores={"x": 1.0}) * 2, encoding="utf-8")
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    assert answers.of("a", 1) is None


def test_the_items_of_a_request_are_known_from_any_of_their_lines(log: Path) -> None:
    log.write_text(answer("a~1~3", 1, scores={"x": 1.0}) + answer("b", 1), encoding="utf-8")
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    assert answers.items_of("a") == ["a~0~3", "a~1~3", "a~2~3"]
    assert answers.items_of("b") == ["b"]
    assert answers.items_of("a~1~3") == ["a~1~3"]
    assert answers.of("a~1~3", 1) is not None


def test_an_id_that_came_with_other_numbers_of_items_has_none(log: Path) -> None:
    """Else a request of 64 items would give each plain one of its id as many labels."""
    for first, second in (("a~0~3", "a"), ("a", "a~0~3"), ("a~0~2", "a~0~3")):
        log.write_text(answer(first, 1) + answer(second, 1) + answer(first, 2), encoding="utf-8")
        answers = AnswerLog(log, "tagger", Cursor())
        answers.read()
        assert answers.items_of("a") == []


def test_whose_fault_an_error_is_stands_beside_it(log: Path) -> None:
    assert {code for code, status in HTTP_STATUS.items() if status >= 500} == OWN_FAULTS
    codes = {"a": "inference_failed", "b": "image_unreadable", "c": "a_later_one"}
    log.write_text("".join(answer(n, 1, error=e) for n, e in codes.items()), encoding="utf-8")
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    results = {name: answers.of(name, 1) for name in codes}
    assert {n: (result.failed, result.lost) for n, result in results.items() if result} == {
        "a": (True, True),
        "b": (True, False),
        "c": (True, False),
    }


def test_only_so_many_answers_are_remembered(log: Path) -> None:
    log.write_text(
        "".join(answer(f"{n}", 1, scores={"x": 1.0}) for n in range(KEPT + 5)), encoding="utf-8"
    )
    answers = AnswerLog(log, "tagger", Cursor())
    answers.read()
    assert answers.of("4", 1) is None
    assert answers.of("5", 1) is not None
