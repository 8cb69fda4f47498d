"""Samples of logs by time, found by bisection."""

import json
from pathlib import Path

import pytest

from vlserve.control.log_sampling import sample_lines

LINES, GAP = 2000, 400


def _time_of(line: bytes) -> float | None:
    try:
        return float(json.loads(line)["at"])
    except ValueError:
        return None


@pytest.mark.parametrize("late", [10, 900, 1000, 1500, 1990])
def test_lines_without_a_time_hide_none_that_are_late_enough(tmp_path: Path, late: int) -> None:
    """Wherever they stand: the bisection meets them."""
    log = tmp_path / "access.jsonl"
    timed = [json.dumps({"at": number}) for number in range(LINES)]
    middle = LINES // 2
    lines = [*timed[:middle], *["no such line"] * GAP, *timed[middle:]]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sample = sample_lines([log], since=late, until=None, most=10**6, time_of=_time_of)
    times = [_time_of(line) for line in sample.lines]
    assert [at for at in times if at is not None and at >= late] == list(range(late, LINES))
