"""What tests of several folders share."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from tiny_models import Archives
from xdist.scheduler import LoadFileScheduling

from vlserve.exporter.convert import Converter

# What a test finds must not depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

TOGETHER = {"archives: Archives": "archives", "stack: RunningStack": "stack"}
"""Parameters that ask for something that takes long to make -> what their files have in common."""


class Together(LoadFileScheduling):  # type: ignore[misc]
    """Tests of one file run in one process, and so do files that share what takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        text = (self.config.rootpath / file).read_text(encoding="utf-8")
        shared = [group for parameter, group in TOGETHER.items() if parameter in text]
        return shared[0] if shared else file


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
    made.begin((one["name"], one["format"]) for one in named if {"name", "format"} <= one.keys())
    try:
        yield made
    finally:
        made.close()
