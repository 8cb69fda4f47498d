"""docs/architecture.md draws the packages as the import contracts have them, and all of them."""

import re
import tomllib
from pathlib import Path

import pytest

from support.documents import PROJECT, fences

PAGE = PROJECT / "docs" / "architecture.md"


def diagram(first: str) -> list[str]:
    """Return the left column of the fence that begins with ``first``."""
    for _, body in fences(PAGE):
        if body.startswith(first):
            return [re.split(r"\s{2,}", line)[0] for line in body.splitlines()]
    raise LookupError(first)


def layers(container: str) -> list[str]:
    """Return the rows of the import contract of one package, as the page writes them."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract.get("containers") == [container]:
            return list(contract["layers"])
    raise LookupError(container)


@pytest.mark.parametrize(("first", "container"), [("cli ", "vlserve"), ("api ", "vlserve.control")])
def test_the_diagrams_are_the_import_contracts(first: str, container: str) -> None:
    assert diagram(first) == layers(container)


@pytest.mark.parametrize("container", ["vlserve", "vlserve.control"])
def test_every_package_is_drawn(container: str) -> None:
    folder = PROJECT / "src" / Path(*container.split("."))
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py"} - {"__init__"}
    names |= {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    diagram_names = {name for row in layers(container) for name in row.split(" | ")}
    assert names == diagram_names
