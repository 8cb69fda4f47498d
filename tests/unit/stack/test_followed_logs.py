"""Log files are followed as they are written, renamed and emptied."""

from pathlib import Path

import pytest

from support.running_stack import wait_until
from vlserve.stack import followed_logs
from vlserve.stack.followed_logs import FollowedLogs


def test_lines_are_shown_once_whatever_becomes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_logs, "_LOOK_S", 0.01)
    log = tmp_path / "a.log"
    log.write_text("before\n", encoding="utf-8")
    lines: list[str] = []
    with FollowedLogs({"a": log, "later": tmp_path / "b.log"}, lambda _, line: lines.append(line)):
        with log.open("a", encoding="utf-8") as file:
            file.write("one\ntwo and ")
            file.flush()
            wait_until(lambda: lines == ["one"])
            log.rename(tmp_path / "a.log.1")
            file.write("a half\n")
        log.write_text("three\n", encoding="utf-8")
        wait_until(lambda: lines == ["one", "two and a half", "three"])
        log.write_text("", encoding="utf-8")
        (tmp_path / "b.log").write_text("of another\nwithout an end", encoding="utf-8")
        wait_until(lambda: lines[3:] == ["of another"])
        log.write_text("four\n", encoding="utf-8")
        wait_until(lambda: lines[4:] == ["four"])


def test_a_line_without_an_end_is_shown_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_logs, "_LONGEST_LINE_BYTES", 4)
    lines: list[str] = []
    with FollowedLogs({"a": tmp_path / "a.log"}, lambda _, line: lines.append(line)):
        (tmp_path / "a.log").write_text("12345678", encoding="utf-8")
    assert lines == ["1234", "5678"]
