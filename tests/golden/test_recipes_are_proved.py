"""No family comes into export/ without numbers that it is held to."""

import ast
from pathlib import Path

import pytest

from support.golden_cases import COPY, golden_folder
from vlserve.exporter.recipe import load_recipe, recipe_files

EXPORT = Path(__file__).parents[2] / "export"


@pytest.mark.parametrize("file", recipe_files(EXPORT), ids=lambda file: file.stem)
def test_a_recipe_has_golden_or_reference_tests(file: Path) -> None:
    recipe = load_recipe(file.stem, EXPORT)
    assert recipe.spec.rtol <= 1e-3 and recipe.spec.atol <= 1e-3, "a tolerance that lets all pass"
    tests = Path(__file__).parent / f"test_{file.stem}.py"
    assert tests.is_file(), f"{file.name} needs {tests.name}: golden cases or a reference"
    functions = [
        node for node in ast.parse(tests.read_text(encoding="utf-8")).body if _is_test(node)
    ]
    assert functions, f"{tests.name} holds no test"


@pytest.mark.parametrize("file", recipe_files(EXPORT), ids=lambda file: file.stem)
def test_a_recipe_says_what_its_tests_hold_it_to(file: Path) -> None:
    spec = load_recipe(file.stem, EXPORT).spec
    assert spec.reads, f"{file.name} does not say which checkpoints it reads"
    tests = Path(__file__).parent / f"test_{file.stem}.py"
    assert set(spec.golden) == asked_for(ast.parse(tests.read_text(encoding="utf-8")))


def asked_for(tests: ast.Module) -> set[str]:
    """Families of cases that a module asks for, and the published key lists that it names."""
    nodes = list(ast.walk(tests))
    families = {
        node.args[0].value
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "cases"
        and isinstance(node.args[0], ast.Constant)
    }
    key_lists = {file.stem for file in (golden_folder() / "keys").glob("*.json")}
    key_lists |= {file.stem for file in (COPY / "keys").glob("*.json")}
    words = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return families | {f"keys/{name}" for name in key_lists & words}


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
