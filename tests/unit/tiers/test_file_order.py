"""Which files of tests share what takes long to make."""

from pathlib import Path

import pytest

from support.file_order import shared, shares_stack

TYPES = {
    "archives": "Archives",
    "converter": "Converter",
    "stack": "RunningStack",
    "own_stack": "RunningStack",
}


@pytest.mark.parametrize(
    ("fixtures", "first", "shares"),
    [
        (["stack"], "stack", True),
        (["archives", "stack"], "archives", True),
        (["converter"], "archives", False),
        (["own_stack"], None, False),
    ],
)
def test_a_file_shares_what_it_asks_for(
    fixtures: list[str], first: str | None, shares: bool, tmp_path: Path
) -> None:
    parameters = ", ".join(f"{name}: {TYPES[name]}" for name in fixtures)
    file = tmp_path / "test_it.py"
    file.write_text(f"def test_it({parameters}) -> None: ...\n", encoding="utf-8")
    assert (shared(file), shares_stack(file)) == (first, shares)
