"""recipes: the families that can be exported, their tasks and their golden cases."""

from typing import Any

import typer

from vlserve.cli.output import AsJson, print_json, print_table
from vlserve.cli.parameters import Group
from vlserve.settings import load_settings

KEYS = "keys/"


def recipes(as_json: AsJson = False) -> None:
    """List the recipes: their tasks, the checkpoints that they read, and their golden cases.

    A golden case is an output of the original code that a test reproduces; a key list names the
    tensors of a published checkpoint.
    """
    from vlserve.exporter.recipe import load_recipe, recipe_files

    folder = load_settings().folder("export")
    entries = [
        {"recipe": file.stem, **describe(load_recipe(file.stem, folder).spec)}
        for file in recipe_files(folder)
    ]
    if as_json:
        print_json(entries)
        return
    rows = [
        (recipe["recipe"], ", ".join(recipe["tasks"]), "\n".join(recipe["reads"]), golden(recipe))
        for recipe in entries
    ]
    print_table(("RECIPE", "TASKS", "READS", "GOLDEN"), rows)


def describe(spec: Any) -> dict[str, Any]:
    """Return what a recipe's Spec says, with golden cases and key lists apart."""
    keys = [name.removeprefix(KEYS) for name in spec.golden if name.startswith(KEYS)]
    return {
        "tasks": list(spec.tasks),
        "reads": list(spec.reads),
        "golden_cases": [name for name in spec.golden if not name.startswith(KEYS)],
        "golden_keys": keys,
    }


def golden(recipe: dict[str, Any]) -> str:
    """Return a recipe's golden cases and number of key lists in a few words."""
    cases, keys = ", ".join(recipe["golden_cases"]), len(recipe["golden_keys"])
    if not cases:
        return "own reference: no original has numbers"
    return f"{cases}; {keys} key list{'' if keys == 1 else 's'}" if keys else cases


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.BUILD)(recipes)
