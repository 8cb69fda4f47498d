"""Tests are no packages: pytest cannot collect two files of one name."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_each_file_of_tests_has_a_name_of_its_own() -> None:
    files = [*TESTS.rglob("test_*.py"), *(TESTS.parent / "benchmarks" / "tests").rglob("test_*.py")]
    counts = Counter(file.name for file in files)
    assert [name for name, count in counts.items() if count > 1] == []
