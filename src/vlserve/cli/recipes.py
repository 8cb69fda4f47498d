"""recipes: the families that can be exported, their tasks, and what they are held to."""

from typing import Any

import typer

from vlserve.cli.output import AsJson, print_json, print_table
from vlserve.settings import load_settings

KEYS = "keys/"


def recipes(as_json: AsJson = False) -> None:
    """Families, their tasks, the checkpoints that they read, and their golden numbers: cases of
    the original code that tests reproduce, and published checkpoints whose keys they know."""
    from vlserve.exporter.recipe import load_recipe, recipe_files

    folder = load_settings().project_dir / "export"
    found = [
        {"recipe": file.stem, **describe(load_recipe(file.stem, folder).spec)}
        for file in recipe_files(folder)
    ]
    if as_json:
        print_json(found)
        return
    rows = [
        (one["recipe"], ", ".join(one["tasks"]), "\n".join(one["reads"]), said_of(one))
        for one in found
    ]
    print_table(("RECIPE", "TASKS", "READS", "GOLDEN"), rows)


def describe(spec: Any) -> dict[str, Any]:
    """A Spec's own words; ``golden`` cases apart from lists of keys."""
    keys = [name.removeprefix(KEYS) for name in spec.golden if name.startswith(KEYS)]
    return {
        "tasks": list(spec.tasks),
        "reads": list(spec.reads),
        "golden_cases": [name for name in spec.golden if not name.startswith(KEYS)],
        "golden_keys": keys,
    }


def said_of(one: dict[str, Any]) -> str:
    """Its golden status in a few words."""
    cases, keys = ", ".join(one["golden_cases"]), len(one["golden_keys"])
    if not cases:
        return "own reference: no original has numbers"
    return f"{cases}; {keys} key list{'' if keys == 1 else 's'}" if keys else cases


def add_to(app: typer.Typer) -> None:
    app.command()(recipes)
