"""What tests of several folders share."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from support.tiny_models import Archives
from vlserve.exporter.convert import Converter

# What a test finds must not depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

LONGEST = {
    "archives: Archives": "archives",
    "checkout: Checkout": "documents",
    "stack: RunningStack": "stack",
}
"""Parameters that ask for something that takes long to make -> what their files have in common.
Those files come first, in this order, so that no process has them left when the others are done."""


@cache
def shared(file: Path) -> str | None:
    """The first of LONGEST that a file of tests asks for."""
    text = file.read_text(encoding="utf-8")
    return next((name for parameter, name in LONGEST.items() if parameter in text), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [*LONGEST.values(), None]
    items.sort(key=lambda item: names.index(shared(item.path)))


class Together(LoadFileScheduling):  # type: ignore[misc]
    """Tests of one file run in one process, and so do files that share what takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return shared(self.config.rootpath / file) or file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


@pytest.fixture(scope="session")
def converter() -> Iterator[Converter]:
    """One for all exports of a process: it takes seconds to import what an export needs."""
    with Converter() as converter:
        yield converter


@pytest.fixture(scope="session")
def archives(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archives]:
    """Archives of tiny models. Those that the selected tests name, as their parameters ``name``
    and ``format``, are exported in the background while the first ones are tested."""
    made = Archives(tmp_path_factory.mktemp("archives"))
    named = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    try:
        made.begin(
            (one["name"], one["format"]) for one in named if {"name", "format"} <= one.keys()
        )
        yield made
    finally:
        made.close()
