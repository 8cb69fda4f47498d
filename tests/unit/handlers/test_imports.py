"""Handler files travel inside archives, where of vlserve there is the runtime alone."""

import ast
from pathlib import Path

import pytest

HANDLERS = sorted((Path(__file__).parents[3] / "handlers").glob("*.py"))


def imported(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("file", HANDLERS, ids=lambda file: file.stem)
def test_handlers_import_the_runtime_and_nothing_else_of_ours(file: Path) -> None:
    ours = {name for name in imported(file) if name.split(".")[0] in ("vlserve", "handlers")}
    assert ours
    assert all(name.startswith("vlserve.runtime") for name in ours)
