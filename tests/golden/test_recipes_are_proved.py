"""No family comes into export/ without numbers that it is held to."""

import ast
from pathlib import Path

import pytest

from vlserve.exporter.recipe import load_recipe, recipe_files

EXPORT = Path(__file__).parents[2] / "export"


@pytest.mark.parametrize("file", recipe_files(EXPORT), ids=lambda file: file.stem)
def test_a_recipe_has_golden_or_reference_tests(file: Path) -> None:
    recipe = load_recipe(file.stem, EXPORT)
    assert recipe.spec.rtol <= 1e-3 and recipe.spec.atol <= 1e-3, "a tolerance that lets all pass"
    tests = Path(__file__).parent / f"test_{file.stem}.py"
    assert tests.is_file(), f"{file.name} needs {tests.name}: golden cases or a reference"
    functions = [node for node in ast.parse(tests.read_text()).body if _is_test(node)]
    assert functions, f"{tests.name} holds no test"


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
